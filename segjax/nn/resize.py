"""Resizes maps with half-pixel centres, no antialiasing and clamped edges; other rules only where weights need them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from segjax.checks import UserError
from segjax.nn.kernels import resample
from segjax.parallel import num_row_shards
from segjax.spatial import multiply_rows


def _check(x: jax.Array) -> None:
    """Raises a UserError for empty maps, which a backbone that rounds sizes down makes of small images."""
    if 0 in x.shape[1:-1]:
        raise UserError(
            f"Maps of {'x'.join(map(str, x.shape[1:-1]))} pixels cannot be upsampled: the images are smaller than the "
            "network's stride. Use larger images, or a backbone that rounds sizes up, such as a ResNet."
        )


def _weights(source: int, target: int, length: jax.Array, shown: jax.Array) -> jax.Array:
    """Returns bilinear weights [target, source] that resize the first `length` source samples to `shown` targets."""
    centre = (jnp.arange(target, dtype=jnp.float32) + 0.5) * (length / shown) - 0.5
    centre = jnp.clip(centre, 0.0, length - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(centre[:, None] - jnp.arange(source, dtype=jnp.float32)[None, :]))


def _corner_weights(source: int, target: int) -> jax.Array:
    """Returns bilinear weights [target, source] that align the centres of the outermost samples (align_corners)."""
    centre = jnp.arange(target, dtype=jnp.float32) * ((source - 1) / max(target - 1, 1))
    return jnp.maximum(0.0, 1.0 - jnp.abs(centre[:, None] - jnp.arange(source, dtype=jnp.float32)[None, :]))


def _reach(source: int, target: int, align_corners: bool) -> tuple[int, int]:
    """Returns the halo: rows above and below its own that a device needs if each shard has ceil(n / count) rows."""
    row, count = np.arange(target), num_row_shards()
    scale = (source - 1) / max(target - 1, 1) if align_corners else source / target
    centre = np.clip(row * scale if align_corners else (row + 0.5) * scale - 0.5, 0, source - 1)
    first = row // -(-target // count) * -(-source // count)
    last = first + -(-source // count) - 1
    above, below = (first - np.floor(centre)).max(), (np.ceil(centre) - last).max()
    return max(0, int(above)), max(0, int(below))


def resize(
    x: Float[Array, "b *space c"], size: tuple[int, ...], align_corners: bool = False
) -> Float[Array, "b *out c"]:
    """Resizes linearly along every spatial axis, with half-pixel centres and without antialiasing.

    Uses one small matrix product per axis, which a TPU's MXU runs faster than gathers; an axis that keeps its length
    is skipped.

    Args:
        x: float maps [b, *space, c].
        size: target size of each spatial axis.
        align_corners: align the centres of the corner pixels instead, as the DeepLab decoders of
            segmentation_models.pytorch do.

    Returns:
        Maps [b, *size, c] of the same dtype.

    Raises:
        UserError: the maps are empty.

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
    return resample(x, rows, columns, _reach(x.shape[1], size[0], align_corners) if num_row_shards() > 1 else None)


def nearest(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b y x c"]:
    """Resizes by repeating pixels: row i of the result is row floor(i * h / y) of the maps, PyTorch's "nearest".

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
        if axis == 1 and num_row_shards() > 1:
            x = multiply_rows(jnp.asarray(np.eye(source)[chosen], x.dtype), x, None)
        else:
            x = jnp.take(x, chosen, axis)
    return x


def crop_or_repeat_edge(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b y x c"]:
    """Crops maps, or repeats their last row and column, to correct sizes that rounding made a pixel or two off.

    Args:
        x: maps [b, h, w, c].
        size: rows and columns of the result.

    Returns:
        Maps [b, *size, c]; pixels keep their position.

    Example:
        >>> crop_or_repeat_edge(jnp.arange(2.0).reshape(1, 1, 2, 1), (1, 3)).ravel()
        Array([0., 1., 1.], dtype=float32)
    """
    _check(x)
    for axis, target in enumerate(size, 1):
        missing = target - x.shape[axis]
        if missing > 0:
            last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)
            x = jnp.concatenate([x, jnp.repeat(last, missing, axis)], axis)
    return x[:, : size[0], : size[1]]


def resize_valid_region(
    x: Float[Array, "b h w c"],
    valid_size: Int[Array, "b 2"],
    native_size: Int[Array, "b 2"],
    padded_size: tuple[int, int],
    size: tuple[int, int],
) -> Float[Array, "b y x c"]:
    """Resizes the part of each map that covers its image to the part of the result that covers its label.

    Args:
        x: float maps [b, h, w, c] of a padded input, in which each image fills the top left part.
        valid_size: rows and columns of the padded input that each image fills [b, 2].
        native_size: rows and columns of the result that each image must fill [b, 2].
        padded_size: rows and columns of the padded input; `x` may be at any stride.
        size: rows and columns of the result.

    Returns:
        Maps [b, *size, c]; pixels outside an image's label repeat its edge.
    """
    _check(x)
    height, width = x.shape[1:3]

    def of_image(valid, native):
        rows = _weights(height, size[0], valid[0] * (height / padded_size[0]), native[0])
        return rows, _weights(width, size[1], valid[1] * (width / padded_size[1]), native[1])

    rows, columns = jax.vmap(of_image)(valid_size.astype(jnp.float32), native_size.astype(jnp.float32))
    return resample(x, rows.astype(x.dtype), columns.astype(x.dtype))
