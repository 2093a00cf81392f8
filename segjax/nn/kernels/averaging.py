"""Average pooling, in the fastest formulation for the platform it is lowered for."""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from segjax.nn.kernels.formulations import enabled
from segjax.parallel import platform_dependent


def mean_pool(x: Float[Array, "b h w c"], window: tuple[int, int]) -> Float[Array, "b _ _ c"]:
    """Averages each window that fits into the maps, with stride 1; a window larger than the maps is cut to their size.

    On a CPU it sums along rows, then along columns: 0.11 s for windows of 32x64 on 64x128 maps of 2048 channels, batch
    1. XLA sums 2048 pixels for each result and takes 33 s (two cores, 2026-11-24).

    Args:
        x: maps [b, h, w, c].
        window: rows and columns of the window.

    Returns:
        Means, of the dtype of x but computed in float32.

    Example:
        >>> mean_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), (1, 2)).ravel()
        Array([0.5, 2.5], dtype=float32)
    """
    window = tuple(map(min, window, x.shape[1:3]))
    if window == x.shape[1:3]:
        return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)

    def add(x, *window):
        return nn.pool(x, 0.0, lax.add, window, (1, 1), "VALID")

    def at_once(x):
        return add(x, *window)

    def one_axis_each(x):
        return add(add(x, window[0], 1), 1, window[1])

    total = x.astype(jnp.float32)
    total = platform_dependent(total, cpu=one_axis_each, default=at_once) if enabled() else at_once(total)
    return (total / (window[0] * window[1])).astype(x.dtype)
