"""The one alignment rule: half-pixel centres, no antialiasing, edges clamped."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def _weights(source: int, target: int, length: jax.Array, shown: jax.Array) -> jax.Array:
    """Bilinear weights [target, source] that stretch the first `length` source samples over `shown` targets."""
    centre = (jnp.arange(target, dtype=jnp.float32) + 0.5) * (length / shown) - 0.5
    centre = jnp.clip(centre, 0.0, length - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(centre[:, None] - jnp.arange(source, dtype=jnp.float32)[None, :]))


def resize(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b y x c"]:
    """Bilinear resize with half-pixel centres, without antialiasing: torch's align_corners=False.

    Two small matrix products, which the MXU of a TPU runs faster than gathers; an axis that keeps its length
    is left alone.

    Args:
        x: float maps [b, h, w, c].
        size: rows and columns of the result.

    Returns:
        Maps [b, *size, c] of the same dtype.

    Example:
        >>> resize(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 4)).ravel()
        Array([0.  , 0.25, 0.75, 1.  ], dtype=float32)
    """
    (h, w), (y, u) = x.shape[1:3], size
    if y != h:
        rows = _weights(h, y, jnp.float32(h), jnp.float32(y)).astype(x.dtype)
        x = jnp.einsum("yh,bhwc->bywc", rows, x, precision="highest")
    if u != w:
        columns = _weights(w, u, jnp.float32(w), jnp.float32(u)).astype(x.dtype)
        x = jnp.einsum("xw,bywc->byxc", columns, x, precision="highest")
    return x


def fit(
    x: Float[Array, "b h w c"], content: Int[Array, "b 4"], canvas: tuple[int, int], size: tuple[int, int]
) -> Float[Array, "b y x c"]:
    """Resizes the part of each map that holds its image to the part of the result that holds its label.

    Args:
        x: float maps [b, h, w, c] over an input canvas, of which each image fills the top left part.
        content: rows and columns of the input canvas that image i fills, then rows and columns of the result
            that it shall fill [b, 4].
        canvas: rows and columns of the input canvas; `x` may be at a stride of it.
        size: rows and columns of the result.

    Returns:
        Maps [b, *size, c]; what lies outside an image's label repeats its edge.
    """
    height, width = x.shape[1:3]

    def one(image, part):
        rows = _weights(height, size[0], part[0] * (height / canvas[0]), part[2])
        columns = _weights(width, size[1], part[1] * (width / canvas[1]), part[3])
        image = jnp.einsum("yh,hwc->ywc", rows.astype(image.dtype), image, precision="highest")
        return jnp.einsum("xw,ywc->yxc", columns.astype(image.dtype), image, precision="highest")

    return jax.vmap(one)(x, content.astype(jnp.float32))
