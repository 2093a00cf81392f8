"""Gradient accumulation: several batches make the update of one large batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from segjax.checks import UserError
from segjax.objectives import Objective


class AccumulationState(NamedTuple):
    """What is kept between the batches of one update.

    batches: batches since the last update, int32.
    gradients: for each part of the loss the sum of its gradients times its divisors; a tuple of trees.
    divisors: for each part the sum of its divisors, float32 [parts].
    inner: state of the optimiser.
    """

    batches: Any
    gradients: Any
    divisors: Any
    inner: Any


class Accumulation(optax.GradientTransformationExtraArgs):
    """A transformation that updates once in several batches, with the gradient of all of them.

    `update(gradients, state, params)` averages the gradients of the batches. `update(gradients, state, params,
    divisors=...)` takes a tuple of gradients, one for each part of the loss, and the divisor of each part [parts]:
    every part's gradient becomes the sum over batches divided by the sum of its divisors.
    """


def accumulate(tx: optax.GradientTransformation, batches: int, parts: int = 1) -> Accumulation:
    r"""Makes a transformation that updates once in several batches, with the gradient of one large batch.

    A part of the loss is a mean, :math:`\sum v / \sum w`. With the gradients :math:`g_i` of a part in batch i and its
    divisors :math:`w_i`, the part's gradient over all batches is :math:`\sum_i w_i g_i / \sum_i w_i`: sum over sum,
    never mean of means. The parts are then added.

    Args:
        tx: the transformation of the large batch's gradient.
        batches: batches per update.
        parts: parts of the loss, each with its own divisor; see `segjax.objectives.LossOfMeans`.

    Returns:
        The transformation; its updates are 0 except for the last batch of each update.

    Example:
        >>> tx = accumulate(optax.sgd(1.0), batches=2)
        >>> state = tx.init(jnp.zeros(1))
        >>> for gradient, divisor in ((jnp.ones(1), 1.0), (jnp.zeros(1), 3.0)):
        ...     update, state = tx.update((gradient,), state, divisors=jnp.array([divisor]))
        >>> update.tolist()
        [-0.25]
    """

    def init(params):
        sums = tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(parts))
        return AccumulationState(jnp.zeros((), jnp.int32), sums, jnp.zeros(parts, jnp.float32), tx.init(params))

    def update(gradients, state, params=None, *, divisors=None, **_):
        if divisors is None:
            gradients, divisors = (gradients,), jnp.ones(1, jnp.float32)
        if len(gradients) != len(state.gradients):
            raise UserError(
                f"The loss has {len(gradients)} parts, but its gradients are accumulated for {len(state.gradients)}: "
                "pass parts=objective.num_parts to make_optimizer."
            )
        sums = tuple(
            jax.tree.map(lambda total, g, i=i: total + divisors[i] * g, total, gradient)
            for i, (total, gradient) in enumerate(zip(state.gradients, gradients, strict=True))
        )
        totals = state.divisors + divisors

        def last():
            nonzero = jnp.where(totals > 0, totals, 1.0)
            gradient = jax.tree.map(lambda *parts: sum(part / nonzero[i] for i, part in enumerate(parts)), *sums)
            updates, inner = tx.update(gradient, state.inner, params)
            zeros = jax.tree.map(jnp.zeros_like, sums)
            return updates, AccumulationState(jnp.zeros_like(state.batches), zeros, jnp.zeros_like(totals), inner)

        def between():
            updates = jax.tree.map(jnp.zeros_like, sums[0])
            return updates, AccumulationState(state.batches + 1, sums, totals, state.inner)

        return jax.lax.cond(state.batches == batches - 1, last, between)

    return Accumulation(init, update)


def check_loss(objective: Objective) -> None:
    """Raises a UserError if the gradients of this objective's loss cannot be accumulated."""
    loss = objective.loss
    if setting := getattr(loss, "whole_batch", ""):
        raise UserError(
            f"{setting} needs sums over the whole batch, which optimizer.accumulate above 1 splits: change the former, "
            "or set optimizer.accumulate=1."
        )
    if not getattr(loss, "parts", ()):
        raise UserError(
            "optimizer.accumulate above 1 needs a loss that gives its divisors, a segjax.objectives.LossOfMeans: make "
            "your objective's loss one, or set optimizer.accumulate=1."
        )
