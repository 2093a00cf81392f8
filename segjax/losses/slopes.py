"""Gradients of losses at pixels that do not count."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def without_unused_slopes(loss: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable:
    """Makes the gradient of a loss of each pixel 0 wherever the gradient that comes in is 0.

    A pixel that does not count gets the gradient 0 from `weighted_mean`. Multiplied by the slope of the loss at NaN or
    infinite logits, it would become NaN.

    Args:
        loss: (logits [*space, ...], target) -> loss of each pixel [*space]; pixels are independent.

    Returns:
        The same function, for reverse-mode differentiation only.

    Example:
        >>> square = without_unused_slopes(lambda x, target: (x - target) ** 2)
        >>> x, count = jnp.array([3.0, jnp.nan]), jnp.array([True, False])
        >>> jax.grad(lambda x: jnp.where(count, square(x, jnp.ones(2)), 0.0).sum())(x).tolist()
        [4.0, 0.0]
    """

    def backward(pull, g):
        def used(slope):
            if slope.dtype == jax.dtypes.float0:  # of an integer target
                return slope
            return jnp.where(g.reshape(g.shape + (1,) * (slope.ndim - g.ndim)) != 0, slope, jnp.zeros((), slope.dtype))

        return jax.tree.map(used, pull(g))

    used_loss = jax.custom_vjp(loss)
    used_loss.defvjp(lambda logits, target: jax.vjp(loss, logits, target), backward)
    return used_loss
