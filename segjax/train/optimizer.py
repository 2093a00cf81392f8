"""Optimisers and learning rates, composed from optax."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from segjax.checks import UserError, choose

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
        name: constant, step, exponential, polynomial, cosine or one_cycle.
        learning_rate: rate at the peak.
        end: last rate as a share of the peak; constant and step take none.
        power: exponent of the polynomial.
        decay_rate: factor at each milestone (step), or of the whole decay (exponential).
        milestones: where the step schedule decays, as shares of the run.

    Returns:
        A function from the step, an integer or an int32 scalar, to the rate.

    Raises:
        UserError: an unknown name, no steps, a warm-up longer than the run, or a milestone outside the decay.

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
        if not all(0 <= share <= 1 for share in milestones) or min(boundaries, default=0) < 0:
            raise UserError(
                f"optimizer.milestones={tuple(milestones)} are shares of the run, between the end of the warm-up "
                f"({warmup / steps:.2g}) and 1."
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
    *,
    name: str = "adamw",
    learning_rate: float = 1e-3,
    schedule: str = "cosine",
    end: float = 0.0,
    power: float = 0.9,
    decay_rate: float = 0.1,
    milestones: Sequence[float] = (0.6, 0.85),
    momentum: float = 0.9,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    clip: float = 0.0,
    accumulate: int = 1,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds an optimiser and its learning rate.

    Gradients are averaged over `accumulate` batches, clipped by their global norm, and handed to the optimiser.
    Weight decay is added to the gradient (L2, as in torch.optim.SGD and Adam) by sgd and adam, and to the update
    (decoupled; Loshchilov and Hutter 2019) by adamw, lion and lamb. Only kernels decay; norms and biases do not.

    Args:
        steps: length of the run in batches.
        warmup: batches of linear warm-up.
        name: sgd, adam, adamw, lion or lamb.
        learning_rate: rate at the peak.
        schedule: name of the schedule, see `make_schedule`.
        end: last rate as a share of the peak.
        power: exponent of the polynomial schedule.
        decay_rate: factor of the step and the exponential schedule.
        milestones: of the step schedule, as shares of the run.
        momentum: of sgd.
        b1: decay of the first moment; sgd has none.
        b2: decay of the second moment; for lion, of the momentum (its authors use 0.99).
        eps: added to the root of the second moment; sgd and lion have none.
        weight_decay: factor of the decay.
        clip: largest global norm of the gradient; 0 is off.
        accumulate: batches that make one update. The batches between change nothing, and a remainder at the end
            of the run is dropped.

    Returns:
        The optimiser, whose state holds arrays only, and a schedule from a batch's number, counted from 0, to the
        rate of the update that the batch belongs to.

    Raises:
        UserError: an unknown name, or durations that do not fit, see `make_schedule`.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
        >>> tx, rate = make(100, name="sgd", learning_rate=0.5, weight_decay=0.1)
        >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        >>> updates["kernel"].round(3).tolist(), updates["bias"].tolist(), round(float(rate(0)), 3)
        ([-0.05000000074505806, -0.05000000074505806], [-0.0, -0.0], 0.5)
    """
    by_batch = make_schedule(
        steps,
        warmup,
        name=schedule,
        learning_rate=learning_rate,
        end=end,
        power=power,
        decay_rate=decay_rate,
        milestones=milestones,
    )
    if accumulate < 1:
        raise UserError(f"optimizer.accumulate={accumulate} must be at least 1, the number of batches of an update.")

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
    tx = build()
    if clip:
        tx = optax.chain(optax.clip_by_global_norm(clip), tx)
    if accumulate > 1:
        tx = optax.MultiSteps(tx, accumulate).gradient_transformation()
    return optax.GradientTransformation(tx.init, _standard(tx.update)), lambda batch: by_update(batch // accumulate)


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
