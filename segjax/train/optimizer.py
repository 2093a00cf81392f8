"""Optimisers and learning rate schedules, built from optax."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from segjax.checks import Key, UserError, choose
from segjax.train import accumulation, groups

# Rise as a fraction of the run, and start as a fraction of the peak: the defaults of fast.ai and optax.
ONE_CYCLE_RISE, ONE_CYCLE_START = 0.3, 1 / 25


def make_schedule(
    steps: int,
    warmup: int = 0,
    *,
    name: str = "cosine",
    learning_rate: float = 1e-3,
    end_factor: float = 0.0,
    power: float = 0.9,
    decay_rate: float = 0.1,
    milestones: Sequence[float] = (0.6, 0.85),
) -> optax.Schedule:
    r"""Builds a learning rate schedule: a linear warm-up from 0, then a decay over the remaining steps.

    With peak :math:`\eta`, `end_factor` :math:`e` and :math:`x \in [0, 1]` the fraction of the T = steps - warmup steps
    done since the warm-up, the learning rate is

    - constant: :math:`\eta`
    - step: :math:`\eta r^n` after n milestones, where r is `decay_rate`
    - exponential: :math:`\eta \max(r^x, e)`
    - polynomial: :math:`\eta (e + (1 - e) (1 - x)^p)`; p = 0.9 is DeepLab's (Chen et al. 2017, section 4.1)
    - cosine: :math:`\eta (e + (1 - e) (1 + \cos \pi x) / 2)` (Loshchilov and Hutter 2017, without restarts)
    - one_cycle: a cosine from :math:`\eta / 25` up to :math:`\eta` and another down to :math:`\eta e` (Smith and
      Topin 2018). The rise replaces the warm-up: it takes `warmup` steps, or 30 % of the run if `warmup` is 0.

    Args:
        steps: length of the run, including the warm-up.
        warmup: steps of the warm-up; the rate is 0 at step 0 and the peak at step `warmup`.
        name: name of the schedule; the other arguments are described at `make_optimizer`.

    Returns:
        A function from the step, an integer or an int32 scalar, to the learning rate.

    Raises:
        UserError: the name is unknown, the run has no steps, or the warm-up outlasts the run or a milestone.

    Example:
        >>> rate = make_schedule(100, 10, name="polynomial", learning_rate=0.5)
        >>> [round(float(rate(step)), 4) for step in (0, 5, 10, 55, 100)]
        [0.0, 0.25, 0.5, 0.2679, 0.0]
    """
    if steps < 1 or not 0 <= warmup <= steps:
        raise UserError(
            f"run.warmup={warmup} steps do not fit in a run of {steps} steps: lower run.warmup or raise run.total."
        )
    peak, decay = learning_rate, max(steps - warmup, 1)

    def step() -> optax.Schedule:
        boundaries = Counter(round(share * steps) - warmup for share in milestones)
        if min(boundaries, default=0) < 0:
            raise UserError(
                f"optimizer.milestones={tuple(milestones)} must come after the warm-up, which takes "
                f"the first {warmup / steps:.2g} of the run."
            )
        return optax.piecewise_constant_schedule(peak, {at: decay_rate**count for at, count in boundaries.items()})

    def polynomial(count):
        # Not optax's: when rounding makes its remaining fraction negative (jax 0.12), its last rate is NaN.
        left = jnp.clip(1.0 - count / decay, 0.0, 1.0)
        return peak * (end_factor + (1.0 - end_factor) * left**power)

    def one_cycle() -> optax.Schedule:
        rise = warmup or max(1, round(ONE_CYCLE_RISE * steps))
        factors = {rise: 1 / ONE_CYCLE_START, rise + max(steps - rise, 1): end_factor}
        return optax.piecewise_interpolate_schedule("cosine", peak * ONE_CYCLE_START, factors)

    build = choose(
        "optimizer.schedule",
        name,
        {
            "constant": lambda: optax.constant_schedule(peak),
            "step": step,
            "exponential": lambda: optax.exponential_decay(peak, decay, decay_rate, end_value=peak * end_factor),
            "polynomial": lambda: polynomial,
            "cosine": lambda: optax.cosine_decay_schedule(peak, decay, alpha=end_factor),
            "one_cycle": one_cycle,
        },
    )
    schedule = build()
    if warmup and name != "one_cycle":
        schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])
    return _standard_promotion(schedule)


def make_optimizer(
    steps: int,
    warmup: int = 0,
    layer_order: Sequence[str] = (),
    parts: int = 1,
    *,
    name: Annotated[str, Key("the optimiser", ("sgd", "adam", "adamw", "lion", "lamb"))] = "adamw",
    learning_rate: Annotated[float, Key("peak learning rate", "[0, inf)")] = 1e-3,
    schedule: Annotated[
        str, Key("learning rate schedule", ("constant", "step", "exponential", "polynomial", "cosine", "one_cycle"))
    ] = "cosine",
    end_factor: Annotated[float, Key("final learning rate as a fraction of the peak", "[0, inf)")] = 0.0,
    power: Annotated[float, Key("exponent of the polynomial schedule", "(0, inf)")] = 0.9,
    decay_rate: Annotated[float, Key("factor per milestone, or over the run (exponential)", "(0, inf)")] = 0.1,
    milestones: Annotated[tuple[float, ...], Key("of the step schedule, fractions of the run", "[0, 1]")] = (0.6, 0.85),
    momentum: Annotated[float, Key("momentum of sgd", "[0, 1)")] = 0.9,
    b1: Annotated[float, Key("decay of the first moment", "[0, 1)")] = 0.9,
    b2: Annotated[float, Key("decay of the second moment; lion: of the momentum", "[0, 1)")] = 0.999,
    eps: Annotated[float, Key("added to the square root of the second moment", "[0, inf)")] = 1e-8,
    weight_decay: Annotated[float, Key("applies to kernels, not to norms and biases", "[0, inf)")] = 1e-4,
    clip: Annotated[float, Key("maximum global norm of the gradient; 0: no clipping", "[0, inf)")] = 0.0,
    accumulate: Annotated[int, Key("batches that make one update, as one large batch would", "[1, inf)")] = 1,
    backbone_factor: Annotated[float, Key("factor on the backbone's learning rate", "[0, inf)")] = 1.0,
    layer_decay: Annotated[float, Key("learning rate factor from a layer to the one before", "(0, 1]")] = 1.0,
    frozen: Annotated[
        tuple[str, ...], Key("frozen modules, such as backbone or backbone/layer1_0, with their batch statistics")
    ] = (),
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds an optimiser and its learning rate schedule; the keyword arguments are the keys of `optimizer`.

    Gradients are accumulated over `accumulate` batches, clipped by their global norm, and passed to the optimiser. They
    are those of one large batch, sum over sum, however unevenly labelled pixels are spread over the batches, except
    that batch norm sees each batch alone. Every part of the loss that has its own divisor is kept apart, which takes a
    backward pass and a copy of the gradients for each: one for cross-entropy, with an auxiliary head or not, two with
    Dice, three for `centres`. With OHEM, an auxiliary head's cross-entropy is weighted by the pixels of the main one.
    Parameters do not change between updates; leftover batches at the end of the run are dropped. sgd and adam add
    weight decay to the gradient (L2, as in torch.optim.SGD and Adam); adamw, lion and lamb add it to the update
    (decoupled; Loshchilov and Hutter 2019). Lion's authors use a `b2` of 0.99. Group factors are applied to the updates
    last, so the optimiser state does not depend on them. Frozen parameters have no optimiser state: `update` takes
    gradients and parameters without them.

    Args:
        steps: length of the run in batches.
        warmup: batches of linear warm-up.
        layer_order: paths of the layers, from input to output, for `layer_decay`; see `segjax.train.groups`.
        parts: parts of the loss that `accumulate` keeps apart: `objective.num_parts`.

    Returns:
        The optimiser, whose state holds only arrays, and a schedule from a batch number, counted from 0, to the
        learning rate of the update that the batch belongs to.

    Raises:
        UserError: the name is unknown or the durations do not fit, see `make_schedule`; in `init`, the model lacks a
            frozen module, nothing is trainable, or a factor applies to no parameter.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
        >>> tx, rate = make_optimizer(100, name="sgd", learning_rate=0.5, weight_decay=0.1)
        >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        >>> updates["kernel"].round(3).tolist(), updates["bias"].tolist(), round(float(rate(0)), 3)
        ([-0.05000000074505806, -0.05000000074505806], [-0.0, -0.0], 0.5)
    """
    by_batch = make_schedule(
        steps, warmup, name=schedule, learning_rate=learning_rate, end_factor=end_factor, power=power,
        decay_rate=decay_rate, milestones=milestones,
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
        tx = accumulation.accumulate(tx, accumulate, parts)

    def init(params):
        params = groups.split_frozen(params, frozen)[0] if frozen else params
        if grouped:  # rejects a factor without effect before the run starts
            groups.learning_rate_factors(params, layer_order, backbone_factor, layer_decay)
        return tx.init(params)

    def update(gradients, opt_state, params=None, **divisors):
        updates, opt_state = tx.update(gradients, opt_state, params, **divisors)
        if grouped:
            factors = groups.learning_rate_factors(updates, layer_order, backbone_factor, layer_decay)
            updates = jax.tree.map(jnp.multiply, updates, factors)
        return updates, opt_state

    kind = accumulation.Accumulation if accumulate > 1 else optax.GradientTransformation
    return kind(init, _standard_promotion(update)), lambda batch: by_update(batch // accumulate)


def _kernels(params: Any) -> Any:
    """Marks the leaves that weight decay applies to: those named "kernel"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", params
    )


def _standard_promotion(function: Callable) -> Callable:
    """Runs a function under standard dtype promotion, because optax mixes integers and floats."""

    def wrapped(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return wrapped
