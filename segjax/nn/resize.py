"""The one alignment rule: half-pixel centres, no antialiasing, edges clamped; others for weights that need them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from segjax.checks import UserError
from segjax.nn.kernels import resample
from segjax.parallel import shards
from segjax.space import multiply_rows


def _check(x: jax.Array) -> None:
    """Raises a UserError where a backbone that rounds sizes down has left nothing of small images."""
    if 0 in x.shape[1:-1]:
        raise UserError(
            f"Maps of {'x'.join(map(str, x.shape[1:-1]))} pixels cannot be enlarged: the images are smaller than the "
            "network's stride, use larger ones, or a backbone that rounds up, such as a ResNet."
        )


def _weights(source: int, target: int, length: jax.Array, shown: jax.Array) -> jax.Array:
    """Bilinear weights [target, source] that stretch the first `length` source samples over `shown` targets."""
    centre = (jnp.arange(target, dtype=jnp.float32) + 0.5) * (length / shown) - 0.5
    centre = jnp.clip(centre, 0.0, length - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(centre[:, None] - jnp.arange(source, dtype=jnp.float32)[None, :]))


def _corner_weights(source: int, target: int) -> jax.Array:
    """Bilinear weights [target, source] that put the outermost sample centres upon each other."""
    centre = jnp.arange(target, dtype=jnp.float32) * ((source - 1) / max(target - 1, 1))
    return jnp.maximum(0.0, 1.0 - jnp.abs(centre[:, None] - jnp.arange(source, dtype=jnp.float32)[None, :]))


def _reach(source: int, target: int, align_corners: bool) -> tuple[int, int]:
    """Rows above and below its own that a device needs, where rows are divided as XLA divides them: ceil(n / count)."""
    row, count = np.arange(target), shards()
    scale = (source - 1) / max(target - 1, 1) if align_corners else source / target
    centre = np.clip(row * scale if align_corners else (row + 0.5) * scale - 0.5, 0, source - 1)
    first = row // -(-target // count) * -(-source // count)
    last = first + -(-source // count) - 1
    above, below = (first - np.floor(centre)).max(), (np.ceil(centre) - last).max()
    return max(0, int(above)), max(0, int(below))


def resize(
    x: Float[Array, "b *space c"], size: tuple[int, ...], align_corners: bool = False
) -> Float[Array, "b *out c"]:
    """Linear resize along every space axis with half-pixel centres, without antialiasing.

    A small matrix product an axis, which the MXU of a TPU runs faster than gathers; an axis that keeps its length
    is left alone.

    Args:
        x: float maps [b, *space, c].
        size: of the result along each space axis.
        align_corners: put the centres of the corner pixels upon each other instead, as segmentation_models.pytorch
            does in its DeepLab decoders.

    Returns:
        Maps [b, *size, c] of the same dtype.

    Raises:
        UserError: maps without pixels.

    Example:
        >>> resize(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 4)).ravel()
        Array([0.  , 0.25, 0.75, 1.  ], dtype=float32)
    """
    _check(x)
    if tuple(size) == x.shape[1:-1]:
        return x

    def weights(source, target):
        if align_corners:
            return _corner_weights(source, target).astype(x.dtype)
        return _weights(source, target, jnp.float32(source), jnp.float32(target)).astype(x.dtype)

    for axis, target in enumerate(size, 1):
        if x.shape[axis] == 1:
            x = jnp.repeat(x, target, axis)
    if x.ndim != 4:
        for axis, (source, target) in enumerate(zip(x.shape[1:-1], size, strict=True), 1):
            if source != target:
                along = jnp.moveaxis(x, axis, -1)
                x = jnp.moveaxis(
                    jnp.einsum("...s,ts->...t", along, weights(source, target), precision="highest"), -1, axis
                )
        return x
    rows, columns = (weights(a, b) if a != b else None for a, b in zip(x.shape[1:3], size, strict=True))
    return resample(x, rows, columns, _reach(x.shape[1], size[0], align_corners) if shards() > 1 else None)


def nearest(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b y x c"]:
    """Repeats pixels: row i of the result is row floor(i * h / y) of the maps, PyTorch's "nearest".

    Args:
        x: maps [b, h, w, c].
        size: rows and columns of the result.

    Returns:
        Maps [b, *size, c].

    Example:
        >>> nearest(jnp.arange(2.0).reshape(1, 1, 2, 1), (1, 5)).ravel()
        Array([0., 0., 0., 1., 1.], dtype=float32)
    """
    _check(x)
    for axis, target in enumerate(size, 1):
        source = x.shape[axis]
        if target % source == 0:
            x = jnp.repeat(x, target // source, axis)
            continue
        chosen = np.arange(target) * source // target
        if axis == 1 and shards() > 1:
            x = multiply_rows(jnp.asarray(np.eye(source)[chosen], x.dtype), x, None)
        else:
            x = jnp.take(x, chosen, axis)
    return x


def match(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b y x c"]:
    """Crops maps, or repeats their last row and column, where rounding made them differ from others by a pixel or two.

    Args:
        x: maps [b, h, w, c].
        size: rows and columns of the result.

    Returns:
        Maps [b, *size, c], each pixel where it was.

    Example:
        >>> match(jnp.arange(2.0).reshape(1, 1, 2, 1), (1, 3)).ravel()
        Array([0., 1., 1.], dtype=float32)
    """
    _check(x)
    for axis, target in enumerate(size, 1):
        missing = target - x.shape[axis]
        if missing > 0:
            last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)
            x = jnp.concatenate([x, jnp.repeat(last, missing, axis)], axis)
    return x[:, : size[0], : size[1]]


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
    _check(x)
    height, width = x.shape[1:3]

    def of_image(part):
        rows = _weights(height, size[0], part[0] * (height / canvas[0]), part[2])
        return rows, _weights(width, size[1], part[1] * (width / canvas[1]), part[3])

    rows, columns = jax.vmap(of_image)(content.astype(jnp.float32))
    return resample(x, rows.astype(x.dtype), columns.astype(x.dtype))
