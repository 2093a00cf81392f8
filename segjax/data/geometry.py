"""Draws scale, rotation, flips, crop and elastic deformation, and applies them as one resampling.

The draw is numpy, a few hundred bytes a sample; the resampling is written once for any module that offers
numpy's functions, and runs as TensorFlow operations inside tf.data and as numpy elsewhere.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from segjax.spec import Preprocess, UserError


class Warp(NamedTuple):
    """One resampling: canvas pixel p = (y, x) reads image position matrix @ (p + displacement(p), 1).

    matrix: from pixels of the label's canvas to pixels of the image.
    grid: displacements in network pixels on a coarse grid over the canvas; empty without elastic.
    size: rows and columns of the image.
    """

    matrix: Any  # float32 [2, 3]
    grid: Any  # float32 [g, g, 2]
    size: Any  # float32 [2]


class Geometry(NamedTuple):
    """How training crops are drawn; the fields are those of `data.pipeline.train_batches`."""

    crop: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    elastic: float = 0.0
    elastic_grid: int = 3
    rare: float = 0.0


def resized(size: tuple[int, int], resize: float | tuple[int, int] | None) -> tuple[int, int]:
    """Size of an image after `Preprocess.resize`.

    Args:
        size: rows and columns of the image.
        resize: a factor, or rows and columns to fit into with the aspect ratio kept; None keeps the size.

    Returns:
        Rows and columns, at least 1.

    Example:
        >>> resized((360, 480), (256, 256))
        (192, 256)
    """
    if resize is None:
        return size
    factor = resize if isinstance(resize, int | float) else min(resize[0] / size[0], resize[1] / size[1])
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def check(geometry: Geometry, sizes: Iterable[tuple[int, int]], preprocess: Preprocess) -> None:
    """Checks the settings against the images.

    Args:
        geometry: the settings.
        sizes: rows and columns of the images.
        preprocess: how images become inputs.

    Raises:
        UserError: a crop that is larger than every image, or a setting out of range.
    """
    for key in ("crop", "scale"):
        if len(getattr(geometry, key)) != 2:
            raise UserError(f"data.{key}={getattr(geometry, key)} must be two numbers.")
    low, high = geometry.scale
    if not 0 < low <= high:
        raise UserError(f"data.scale={geometry.scale} must be (low, high) with 0 < low <= high.")
    if geometry.elastic > 0 and geometry.elastic_grid < 2:
        raise UserError(f"data.elastic_grid={geometry.elastic_grid} must be at least 2.")
    largest = np.max([resized(size, preprocess.resize) for size in sizes], axis=0)
    if isinstance(preprocess.resize, tuple):
        largest = np.maximum(largest, preprocess.resize)  # a box that images are fitted into may be the crop
    limit = np.ceil(largest * high).astype(int).tolist()
    if geometry.crop[0] > limit[0] or geometry.crop[1] > limit[1]:
        raise UserError(
            f"data.crop={tuple(geometry.crop)} is larger than the largest image, {limit[0]}x{limit[1]} after "
            f"preprocess.resize and the largest data.scale: the rest would be padding. Use a crop within that, "
            f"or enlarge the images with preprocess.resize."
        )


def draw(
    geometry: Geometry, label: Shaped[np.ndarray, "y x *k"], ignore: int, preprocess: Preprocess, key: tuple[int, int]
) -> Warp:
    """Draws one training crop; the same key gives the same crop.

    Args:
        geometry: the settings.
        label: the label as read; its size is the image's, and `rare` crops are sought in it.
        ignore: label value without truth.
        preprocess: how images become inputs.
        key: (seed, global position of the sample).

    Returns:
        The warp to apply.
    """
    random = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
    # All draws are made, in this order, whatever is switched on: settings do not shift each other's numbers.
    zoom, angle, flip_y, flip_x, top, left, rare, which, pixel = random.random(9)
    size = np.array(label.shape[:2], np.float64)
    crop = np.array(geometry.crop, np.float64)
    low, high = np.log(geometry.scale)
    scale = np.exp(low + zoom * (high - low)) * (np.array(resized(label.shape[:2], preprocess.resize)) / size)
    # A whole offset, and a crop that stays inside the image (or the image inside the crop).
    room = np.round(size * scale) - crop
    start = np.floor(np.array([top, left]) * (np.abs(room) + 1)) + np.minimum(room, 0)
    if rare < geometry.rare:
        seek = _pixel_of_random_class(label, ignore, which, pixel)
        if seek is not None:
            # The crop is placed uniformly among those that hold the pixel.
            start = np.floor(seek * scale) - np.floor(np.array([top, left]) * crop)
            start = np.clip(start, np.minimum(room, 0), np.maximum(room, 0))
    theta = math.radians(geometry.rotate) * (2 * angle - 1)
    turn = np.array([[math.cos(theta), math.sin(theta)], [-math.sin(theta), math.cos(theta)]])
    flip = np.array([geometry.flip_vertical and flip_y < 0.5, geometry.flip_horizontal and flip_x < 0.5])
    matrix = turn * np.where(flip, -1.0, 1.0) / scale[:, None]
    centre = (start + crop / 2) / scale
    g = geometry.elastic_grid if geometry.elastic > 0 else 0
    grid = random.standard_normal((g, g, 2)) * geometry.elastic
    return Warp(_about(matrix, crop / 2, centre), grid.astype(np.float32), size.astype(np.float32))


def whole(size: tuple[int, int], preprocess: Preprocess) -> Warp:
    """The warp of evaluation: the whole image, resized as `Preprocess.resize` says, at the top left.

    Args:
        size: rows and columns of the image.
        preprocess: how images become inputs.

    Returns:
        The warp to apply.
    """
    factor = np.array(size) / np.array(resized(size, preprocess.resize))
    matrix = _about(np.diag(factor), np.zeros(2), np.zeros(2))
    return Warp(matrix, np.zeros((0, 0, 2), np.float32), np.array(size, np.float32))


def _about(matrix, canvas_point, image_point):
    """Affine matrix [2, 3] between pixel centres that takes one continuous point to the other."""
    offset = image_point - matrix @ (canvas_point - 0.5) - 0.5
    return np.concatenate([matrix, offset[:, None]], axis=1).astype(np.float32)


def _pixel_of_random_class(label, ignore, which, pixel):
    """Position (y, x) of a random pixel of a random class among those present; None where nothing is labelled."""
    if label.ndim == 3:
        present = np.flatnonzero((label == 1).any(axis=(0, 1)))
    else:
        present = np.unique(label)
        present = present[present != ignore]
    if not len(present):
        return None
    chosen = present[int(which * len(present))]
    hits = np.flatnonzero(label[..., chosen] == 1 if label.ndim == 3 else label == chosen)
    return np.array(np.unravel_index(hits[int(pixel * len(hits))], label.shape[:2]), np.float64)


@functools.lru_cache(maxsize=32)
def _bicubic(points: int, length: int, margin: int) -> np.ndarray:
    """Weights [length + 2 margin, points] that interpolate `points` values spread over a canvas of `length`.

    Keys' cubic with a = -1/2; beyond the first and last point the nearest value is repeated.
    """
    at = (np.arange(-margin, length + margin) + 0.5) / length * (points - 1)
    at = np.clip(at, 0, points - 1)
    base = np.minimum(np.floor(at), points - 2).astype(int)
    t = at - base
    weights = np.zeros((len(at), points))
    cubic = [
        ((-t + 2) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((-3 * t + 4) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    ]
    for k, w in enumerate(cubic):
        np.add.at(weights, (np.arange(len(at)), np.clip(base + k - 1, 0, points - 1)), w)
    return weights.astype(np.float32)


def positions(xp: Any, warp: Warp, size: tuple[int, int], margin: int, points: int) -> tuple[Any, Any]:
    """Image positions that the pixels of a canvas read.

    Args:
        xp: numpy, or tensorflow.experimental.numpy.
        warp: its arrays.
        size: rows and columns of the label canvas.
        margin: pixels of canvas around it on each side.
        points: side of the warp's grid of displacements; 0 without.

    Returns:
        Two float32 arrays [rows + 2 margin, columns + 2 margin]: y and x in image pixels.
    """
    rows = xp.asarray(np.arange(-margin, size[0] + margin, dtype=np.float32)[:, None])
    columns = xp.asarray(np.arange(-margin, size[1] + margin, dtype=np.float32)[None, :])
    if points:
        down, across = (_bicubic(points, n, margin) for n in size)
        shift_y, shift_x = (
            # Sums of products instead of a matrix product: the same bits from every implementation.
            sum(
                sum(down[:, i : i + 1] * warp.grid[i, j, axis] for i in range(points)) * across[:, j]
                for j in range(points)
            )
            for axis in (0, 1)
        )
        rows, columns = rows + shift_y, columns + shift_x
    matrix = warp.matrix
    return tuple(matrix[i, 0] * rows + (matrix[i, 1] * columns + matrix[i, 2]) for i in (0, 1))


def sample_image(xp: Any, image: Any, warp: Warp, at: tuple[Any, Any], preprocess: Preprocess) -> Any:
    """Bilinear samples of an image.

    Args:
        xp: numpy, or tensorflow.experimental.numpy.
        image: uint8 [y, x, c].
        warp: where its size stands.
        at: positions from `positions`, each [h, w].
        preprocess: what lies outside: the mean pixel, or the mirror image.

    Returns:
        uint8 [h, w, c].
    """
    pixels = xp.reshape(image, (-1, len(preprocess.mean)))
    y, x = at
    if preprocess.outside == "mirror":
        y, x = _mirror(xp, y, warp.size[0]), _mirror(xp, x, warp.size[1])
    y0, x0 = xp.floor(y), xp.floor(x)
    fy, fx = (y - y0)[..., None], (x - x0)[..., None]

    def corner(dy, dx):
        values = xp.take(pixels, _index(xp, y0 + np.float32(dy), x0 + np.float32(dx), warp.size), axis=0)
        return xp.asarray(values, dtype=np.float32)

    one = np.float32(1)
    top = corner(0, 0) * (one - fx) + corner(0, 1) * fx
    bottom = corner(1, 0) * (one - fx) + corner(1, 1) * fx
    pixel = xp.floor(top * (one - fy) + bottom * fy + np.float32(0.5))
    if preprocess.outside == "mean":
        mean = xp.asarray(np.round(preprocess.mean).astype(np.float32))
        pixel = xp.where(_inside(y, x, warp.size)[..., None], pixel, mean)
    return xp.asarray(pixel, dtype=np.uint8)


def sample_label(xp: Any, label: Any, warp: Warp, at: tuple[Any, Any], outside: int) -> Any:
    """Nearest samples of a label or instance map: values never mix.

    Args:
        xp: numpy, or tensorflow.experimental.numpy.
        label: integer [y, x] or [y, x, k].
        warp: where its size stands.
        at: positions from `positions`, each [h, w].
        outside: value of pixels outside the map.

    Returns:
        The same dtype, [h, w] or [h, w, k].
    """
    y, x = at
    half = np.float32(0.5)
    layers = label.shape[2:]
    flat = xp.reshape(label, (-1, *layers))
    nearest = xp.take(flat, _index(xp, xp.floor(y + half), xp.floor(x + half), warp.size), axis=0)
    inside = _inside(y, x, warp.size)
    return xp.where(inside[..., None] if len(layers) else inside, nearest, xp.asarray(outside, dtype=label.dtype))


def _index(xp, y, x, size):
    """Flat index of the pixel (y, x), clamped to the image; in integers, for float32 ends at 2^24."""
    one, zero = np.float32(1), np.float32(0)
    y = xp.asarray(xp.minimum(xp.maximum(y, zero), size[0] - one), dtype=np.int32)
    x = xp.asarray(xp.minimum(xp.maximum(x, zero), size[1] - one), dtype=np.int32)
    return y * xp.asarray(size[1], dtype=np.int32) + x


def _inside(y, x, size):
    """Whether a position lies on the image, whose border is half a pixel beyond its outermost centres."""
    half = np.float32(0.5)
    return (y >= -half) & (y < size[0] - half) & (x >= -half) & (x < size[1] - half)


def _mirror(xp, at, length):
    """Reflects positions about the image's border, as often as it takes."""
    half, two = np.float32(0.5), np.float32(2)
    return xp.abs(xp.mod(at + half + length, two * length) - length) - half
