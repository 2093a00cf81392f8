"""Optimisers and learning rates, composed from optax."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from segjax.checks import Key, UserError, choose
from segjax.train import groups

ONE_CYCLE_RISE = 0.3  # share of the run, and
ONE_CYCLE_START = 1 / 25  # share of the peak, where fast.ai's one-cycle policy and optax start from


def make_schedule(
    steps: int,
    warmup: int = 0,
    *,
    name: str = "cosine",
    learning_rate: float = 1e-3,
    end: float = 0.0,
    power: float = 0.9,
    decay_rate: float = 0.1,
    milestones: Sequence[float] = (0.6, 0.85),
) -> optax.Schedule:
    r"""Builds a learning rate: a linear warm-up from 0, then a decay over the remaining steps.

    With peak :math:`\eta`, end :math:`e`, and :math:`x \in [0, 1]` the share of the T = steps - warmup steps done
    since the warm-up, the rate is

    - constant: :math:`\eta`
    - step: :math:`\eta r^n`, where n milestones lie behind and r is `decay_rate`
    - exponential: :math:`\eta \max(r^x, e)`
    - polynomial: :math:`\eta (e + (1 - e) (1 - x)^p)`; p = 0.9 is DeepLab's (Chen et al. 2017, section 4.1)
    - cosine: :math:`\eta (e + (1 - e) (1 + \cos \pi x) / 2)` (Loshchilov and Hutter 2017, without restarts)
    - one_cycle: a cosine from :math:`\eta / 25` up to :math:`\eta` and another down to :math:`\eta e` (Smith and
      Topin 2018). Its rise is its warm-up: it takes `warmup` steps, or 30 % of the run when that is 0.

    Args:
        steps: length of the run, warm-up included.
        warmup: steps of the rise; step 0 has rate 0, step `warmup` the peak.
        name: of the schedule; the other arguments are keys of `make`.

    Returns:
        A function from the step, an integer or an int32 scalar, to the rate.

    Raises:
        UserError: an unknown name, no steps, a warm-up longer than the run, or a milestone within it.

    Example:
        >>> rate = make_schedule(100, 10, name="polynomial", learning_rate=0.5)
        >>> [round(float(rate(step)), 4) for step in (0, 5, 10, 55, 100)]
        [0.0, 0.25, 0.5, 0.2679, 0.0]
    """
    if steps < 1 or not 0 <= warmup <= steps:
        raise UserError(
            f"run.warmup={warmup} steps do not fit into a run of {steps}: shorten run.warmup or lengthen run.total."
        )
    peak, decay = learning_rate, max(steps - warmup, 1)

    def step() -> optax.Schedule:
        boundaries = Counter(round(share * steps) - warmup for share in milestones)
        if min(boundaries, default=0) < 0:
            raise UserError(
                f"optimizer.milestones={tuple(milestones)} must not lie within the warm-up, the first "
                f"{warmup / steps:.2g} of the run."
            )
        return optax.piecewise_constant_schedule(peak, {at: decay_rate**count for at, count in boundaries.items()})

    def polynomial(count):
        # Not optax's: where rounding makes its remaining share negative (jax 0.12), its last rate is not a number.
        left = jnp.clip(1.0 - count / decay, 0.0, 1.0)
        return peak * (end + (1.0 - end) * left**power)

    def one_cycle() -> optax.Schedule:
        rise = warmup or max(1, round(ONE_CYCLE_RISE * steps))
        factors = {rise: 1 / ONE_CYCLE_START, rise + max(steps - rise, 1): end}
        return optax.piecewise_interpolate_schedule("cosine", peak * ONE_CYCLE_START, factors)

    build = choose(
        "optimizer.schedule",
        name,
        {
            "constant": lambda: optax.constant_schedule(peak),
            "step": step,
            "exponential": lambda: optax.exponential_decay(peak, decay, decay_rate, end_value=peak * end),
            "polynomial": lambda: polynomial,
            "cosine": lambda: optax.cosine_decay_schedule(peak, decay, alpha=end),
            "one_cycle": one_cycle,
        },
    )
    schedule = build()
    if warmup and name != "one_cycle":
        schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])
    return _standard(schedule)


def make(
    steps: int,
    warmup: int = 0,
    layer_order: Sequence[str] = (),
    *,
    name: Annotated[str, Key("of the optimiser", ("sgd", "adam", "adamw", "lion", "lamb"))] = "adamw",
    learning_rate: Annotated[float, Key("at the peak", "[0, inf)")] = 1e-3,
    schedule: Annotated[
        str, Key("of the learning rate", ("constant", "step", "exponential", "polynomial", "cosine", "one_cycle"))
    ] = "cosine",
    end: Annotated[float, Key("last learning rate as a share of the peak", "[0, inf)")] = 0.0,
    power: Annotated[float, Key("exponent of the polynomial schedule", "(0, inf)")] = 0.9,
    decay_rate: Annotated[float, Key("factor at each milestone, or over the run (exponential)", "(0, inf)")] = 0.1,
    milestones: Annotated[tuple[float, ...], Key("of the step schedule, as shares of the run", "[0, 1]")] = (0.6, 0.85),
    momentum: Annotated[float, Key("of sgd", "[0, 1)")] = 0.9,
    b1: Annotated[float, Key("decay of the first moment", "[0, 1)")] = 0.9,
    b2: Annotated[float, Key("decay of the second moment; of lion, of the momentum", "[0, 1)")] = 0.999,
    eps: Annotated[float, Key("added to the root of the second moment", "[0, inf)")] = 1e-8,
    weight_decay: Annotated[float, Key("of kernels; norms and biases do not decay", "[0, inf)")] = 1e-4,
    clip: Annotated[float, Key("largest global norm of the gradient; 0: no clipping", "[0, inf)")] = 0.0,
    accumulate: Annotated[int, Key("batches whose mean gradient makes one update", "[1, inf)")] = 1,
    backbone_factor: Annotated[float, Key("of the backbone's learning rate", "[0, inf)")] = 1.0,
    layer_decay: Annotated[float, Key("of the learning rate from a layer to the one before it", "(0, 1]")] = 1.0,
    frozen: Annotated[
        tuple[str, ...], Key("parts that do not learn, such as backbone or backbone/layer1_0; their statistics stay")
    ] = (),
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds an optimiser and its learning rate; the keyword arguments are the keys of the section `optimizer`.

    Gradients are averaged over `accumulate` batches, clipped by their global norm, and handed to the optimiser.
    Batches between updates change nothing, and a remainder at the end of the run is dropped. Weight decay is added to
    the gradient (L2, as in torch.optim.SGD and Adam) by sgd and adam, and to the update (decoupled; Loshchilov and
    Hutter 2019) by adamw, lion and lamb. Lion's authors use a `b2` of 0.99. Updates are scaled by the factor of their
    group last, so that the state is the same with groups and without. What is frozen has no state: `update` takes
    gradients and parameters without it.

    Args:
        steps: length of the run in batches.
        warmup: batches of linear warm-up.
        layer_order: paths of the layers from the input on, for `layer_decay`; see `segjax.train.groups.factors`.

    Returns:
        The optimiser, whose state holds arrays only, and a schedule from a batch's number, counted from 0, to the
        rate of the update that the batch belongs to.

    Raises:
        UserError: an unknown name, durations that do not fit, see `make_schedule`; in `init`, a frozen part that the
            model does not have, nothing that learns, or a factor that no parameter would get.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
        >>> tx, rate = make(100, name="sgd", learning_rate=0.5, weight_decay=0.1)
        >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        >>> updates["kernel"].round(3).tolist(), updates["bias"].tolist(), round(float(rate(0)), 3)
        ([-0.05000000074505806, -0.05000000074505806], [-0.0, -0.0], 0.5)
    """
    by_batch = make_schedule(
        steps, warmup, name=schedule, learning_rate=learning_rate, end=end, power=power, decay_rate=decay_rate,
        milestones=milestones,
    )  # fmt: skip

    def by_update(count):
        return by_batch(count * accumulate)

    l2 = optax.add_decayed_weights(weight_decay, _kernels)
    build = choose(
        "optimizer.name",
        name,
        {
            "sgd": lambda: optax.chain(l2, optax.sgd(by_update, momentum or None)),
            "adam": lambda: optax.chain(l2, optax.adam(by_update, b1, b2, eps)),
            "adamw": lambda: optax.adamw(by_update, b1, b2, eps, weight_decay=weight_decay, mask=_kernels),
            "lion": lambda: optax.lion(by_update, b1, b2, weight_decay=weight_decay, mask=_kernels),
            "lamb": lambda: optax.lamb(by_update, b1, b2, eps, weight_decay=weight_decay, mask=_kernels),
        },
    )
    tx, grouped = build(), backbone_factor != 1 or layer_decay != 1
    if clip:
        tx = optax.chain(optax.clip_by_global_norm(clip), tx)
    if accumulate > 1:
        tx = optax.MultiSteps(tx, accumulate).gradient_transformation()

    def init(params):
        params = groups.split(params, frozen)[0] if frozen else params
        if grouped:  # refuses a factor without effect before the run begins
            groups.factors(params, layer_order, backbone_factor, layer_decay)
        return tx.init(params)

    def update(gradients, opt_state, params=None):
        updates, opt_state = tx.update(gradients, opt_state, params)
        if grouped:
            factors = groups.factors(updates, layer_order, backbone_factor, layer_decay)
            updates = jax.tree.map(jnp.multiply, updates, factors)
        return updates, opt_state

    return optax.GradientTransformation(init, _standard(update)), lambda batch: by_update(batch // accumulate)


def _kernels(params: Any) -> Any:
    """Marks the leaves that decay: those named "kernel"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", params
    )


def _standard(function: Callable) -> Callable:
    """Runs a function under the standard dtype promotion, since optax mixes counts and floats."""

    def wrapped(*args):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args)

    return wrapped
