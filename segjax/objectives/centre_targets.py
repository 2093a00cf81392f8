"""Makes centre heatmaps and offsets from label and instance maps, inside the compiled step.

Panoptic-DeepLab, section 3.1 (Cheng et al., 2020, arXiv:1911.10194): each object is a Gaussian at its centre of mass,
and the offset of each of its pixels points there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, Integer, UInt

from segjax.checks import UserError

CHUNK = 8  # objects drawn in one pass over the maps; each pass reads and writes the full maps


class Targets(NamedTuple):
    """Target maps of a batch, float32.

    centre: heatmap, 1 at the centre of each object and falling to 0 [b, h, w].
    offset: (dy, dx) to the centre of mass of the pixel's object, in pixels [b, h, w, 2]; 0 outside objects.
    centre_weight: 0 on crowds and unlabelled pixels, else 1 [b, h, w].
    offset_weight: 1 on objects, else 0 [b, h, w].
    semantic_weight: `small_weight` on small objects, else 1 [b, h, w].
    """

    centre: Float32[Array, "b h w"]
    offset: Float32[Array, "b h w 2"]
    centre_weight: Float32[Array, "b h w"]
    offset_weight: Float32[Array, "b h w"]
    semantic_weight: Float32[Array, "b h w"]


def is_one_of(label: Integer[Array, "*shape"], classes: Sequence[int]) -> Bool[Array, "*shape"]:
    """Marks the pixels whose label is one of some classes.

    Args:
        label: class indices, any shape.
        classes: class indices to look for.

    Returns:
        bool, of the same shape.

    Example:
        >>> is_one_of(jnp.array([0, 1, 2, 255]), (1, 2)).tolist()
        [False, True, True, False]
    """
    indices = jnp.array(classes, label.dtype).reshape((1,) * label.ndim + (-1,))
    return (label[..., None] == indices).any(-1)


def centres_of_mass(
    instance: Integer[Array, "b h w"], count: int
) -> tuple[Int32[Array, "b {count}"], Float32[Array, "b {count} 2"]]:
    """Computes the area and centre of mass of each object, with exact integer sums.

    Args:
        instance: object numbers, 0 .. count - 1; 0 is no object.
        count: number of object numbers, including 0.

    Returns:
        Areas in pixels, and (y, x) in pixels; both are 0 for number 0 and for numbers that do not occur.

    Raises:
        UserError: the maps are so large that the sums could overflow int32.

    Example:
        >>> area, centre = centres_of_mass(jnp.array([[[0, 3, 3, 3]]]), 4)
        >>> area[0, 3].item(), centre[0, 3].tolist()
        (3, [0.0, 2.0])
    """
    b, h, w = instance.shape
    if h * w * max(h, w) >= 2**34:
        raise UserError(f"Crops of {h}x{w} are too large for exact object centres: use a smaller data.crop.")
    ids = instance.astype(jnp.int32).reshape(b, -1)
    # Coordinates are relative to the middle, so a sum is at most h w max(h, w) / 8.
    y = jnp.broadcast_to(jnp.arange(h, dtype=jnp.int32)[:, None] - h // 2, (h, w)).ravel()
    x = jnp.broadcast_to(jnp.arange(w, dtype=jnp.int32)[None, :] - w // 2, (h, w)).ravel()

    def total(values):
        return jax.vmap(lambda i: jnp.zeros(count, jnp.int32).at[i].add(values))(ids).at[:, 0].set(0)

    area = total(jnp.ones(h * w, jnp.int32))
    sums = jnp.stack([total(y), total(x)], -1).astype(jnp.float32)
    middle = jnp.array([h // 2, w // 2], jnp.float32).reshape(1, 1, 2)
    mean = sums / jnp.maximum(area, 1).astype(jnp.float32)[..., None] + middle
    return area, jnp.where(area[..., None] > 0, mean, 0.0)


def make_targets(
    label: UInt[Array, "b h w"],
    instance: UInt[Array, "b h w"],
    *,
    things: Sequence[int],
    ignore: int,
    count: int,
    sigma: float,
    small_area: int = 4096,
    small_weight: float = 3.0,
) -> Targets:
    """Makes the targets of a batch.

    Let c_n be the centre of mass of object n, and r_n the nearest pixel. Pixel p of object n gets offset c_n - p. Every
    pixel gets centre max_n exp(-|p - r_n|^2 / (2 sigma^2)) over objects with |p - r_n| <= 3 sigma + 1 in both axes.

    Args:
        label: class indices, `ignore` for unlabelled pixels.
        instance: object numbers, 0 .. count - 1; 0 is no object, or a crowd on a thing class.
        things: indices of the thing classes.
        ignore: label value of unlabelled pixels.
        count: an upper bound of the object numbers, exclusive.
        sigma: standard deviation of the Gaussians, in pixels.
        small_area: objects with fewer pixels are small; 4096 in Panoptic-DeepLab's code.
        small_weight: weight of their pixels in the semantic loss; 3 in section 3.1.

    Returns:
        The targets.

    Example:
        >>> label = jnp.array([[[0, 1, 1, 1]]], jnp.uint8)
        >>> targets = make_targets(label, label, things=(1,), ignore=255, count=2, sigma=1.0)
        >>> targets.offset[0, 0, :, 1].tolist(), [round(c, 2) for c in targets.centre[0, 0].tolist()]
        ([0.0, 1.0, 0.0, -1.0], [0.14, 0.61, 1.0, 0.61])
    """
    b, h, w = label.shape
    area, centre = centres_of_mass(instance, count)
    ids = instance.astype(jnp.int32).reshape(b, -1)
    y, x = (jnp.arange(n, dtype=jnp.float32) for n in (h, w))

    def at_pixels(values):
        return jnp.take_along_axis(values, ids, axis=1).reshape(b, h, w)

    is_object = instance > 0
    to_y = at_pixels(centre[..., 0]) - y[None, :, None]
    to_x = at_pixels(centre[..., 1]) - x[None, None, :]
    offset = jnp.where(is_object[..., None], jnp.stack([to_y, to_x], -1), 0.0)
    crowd = is_one_of(label, things) & ~is_object
    small = is_object & (at_pixels(area) < small_area)
    return Targets(
        centre=_gaussians(area > 0, jnp.round(centre), sigma, (h, w)),
        offset=offset,
        centre_weight=((label != ignore) & ~crowd).astype(jnp.float32),
        offset_weight=is_object.astype(jnp.float32),
        semantic_weight=jnp.where(small, small_weight, 1.0),
    )


def _gaussians(valid, points, sigma, size):
    """Draws the maximum of Gaussians at points [b, n, 2]; `valid` [b, n] marks the points that count."""
    b, count = valid.shape
    reach = 3 * sigma + 1

    def profile(points, length):
        distance = jnp.arange(length, dtype=jnp.float32)[None, None] - points[..., None]
        return jnp.where(jnp.abs(distance) <= reach, jnp.exp(-jnp.square(distance) / (2 * sigma**2)), 0.0)

    pad = -count % CHUNK
    valid, points = jnp.pad(valid, ((0, 0), (0, pad))), jnp.pad(points, ((0, 0), (0, pad), (0, 0)))
    # A Gaussian is the product of its profiles along rows and columns.
    rows = jnp.where(valid[..., None], profile(points[..., 0], size[0]), 0.0)
    columns = profile(points[..., 1], size[1])
    last = jnp.max(jnp.where(valid, jnp.arange(count + pad, dtype=jnp.int32)[None], -1))

    def draw(i, centre):
        part_rows = jax.lax.dynamic_slice_in_dim(rows, i * CHUNK, CHUNK, axis=1)
        part_columns = jax.lax.dynamic_slice_in_dim(columns, i * CHUNK, CHUNK, axis=1)
        for n in range(CHUNK):
            centre = jnp.maximum(centre, part_rows[:, n, :, None] * part_columns[:, n, None, :])
        return centre

    return jax.lax.fori_loop(0, last // CHUNK + 1, draw, jnp.zeros((b, *size), jnp.float32))
