"""Draws scale, rotation, flips, crop and elastic deformation, and applies them as one resampling."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Integer, Shaped

from segjax.checks import UserError
from segjax.data import elastic
from segjax.data.rare_classes import rare_pixel
from segjax.spec import Preprocess

# Pixels resampled at a time: intermediates then stay in a core's cache. The fastest of 2^12 .. 2^17.
BLOCK = 2**14

Positions = tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]


class Warp(NamedTuple):
    """One resampling: output pixel p = (y, x) reads image position matrix @ (p + displacement(p), 1).

    matrix: from pixels of the label to pixels of the image.
    grid: displacements in network pixels on a coarse grid over the output; empty without elastic deformation.
    """

    matrix: Float32[np.ndarray, "2 3"]
    grid: Float32[np.ndarray, "g g 2"] = np.zeros((0, 0, 2), np.float32)


class CropSettings(NamedTuple):
    """How training crops are drawn; the fields are those of `data.pipeline.train_batches`."""

    crop: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    elastic: float = 0.0
    elastic_grid: int = 3
    rare_class_fraction: float = 0.0


def resized_size(size: tuple[int, int], resize: float | tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns, at least 1, of an image after `Preprocess.resize`, which keeps the aspect ratio.

    Example:
        >>> resized_size((360, 480), (256, 256))
        (192, 256)
    """
    if resize is None:
        return size
    factor = resize if isinstance(resize, int | float) else min(resize[0] / size[0], resize[1] / size[1])
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def check_crop(geometry: CropSettings, sizes: Iterable[tuple[int, int]], preprocess: Preprocess) -> None:
    """Raises a UserError if no image (rows, columns) fills the crop, or if the zoom range is reversed."""
    low, high = geometry.scale
    if low > high:
        raise UserError(f"data.scale={geometry.scale} must be (low, high) with low <= high.")
    largest = np.max([resized_size(size, preprocess.resize) for size in sizes], axis=0)
    if isinstance(preprocess.resize, tuple):
        largest = np.maximum(largest, preprocess.resize)  # the crop may be the box that images are fitted into
    limit = np.ceil(largest * high).astype(int).tolist()
    if geometry.crop[0] > limit[0] or geometry.crop[1] > limit[1]:
        raise UserError(
            f"data.crop={tuple(geometry.crop)} is larger than the largest image, {limit[0]}x{limit[1]} after "
            f"preprocess.resize and the largest data.scale: the rest would be padding. Use a smaller crop, "
            f"or enlarge the images with preprocess.resize."
        )


def draw_warp(
    geometry: CropSettings,
    label: Shaped[np.ndarray, "y x *k"],
    ignore: int,
    preprocess: Preprocess,
    key: tuple[int, int],
) -> Warp:
    """Draws the warp of a training crop; the same key (seed, position of the sample) gives the same crop."""
    random = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
    # Always makes all draws, in this order: switching one setting on or off does not change the others' draws.
    zoom, angle, flip_y, flip_x, top, left, chance, which, pixel = random.random(9)
    size = np.array(label.shape[:2], np.float64)
    crop = np.array(geometry.crop, np.float64)
    low, high = np.log(geometry.scale)
    scale = np.exp(low + zoom * (high - low)) * (np.array(resized_size(label.shape[:2], preprocess.resize)) / size)
    # An integer offset that keeps the crop inside the image (or the image inside the crop).
    room = np.round(size * scale) - crop
    start = np.floor(np.array([top, left]) * (np.abs(room) + 1)) + np.minimum(room, 0)
    if chance < geometry.rare_class_fraction:
        target = rare_pixel(label, ignore, which, pixel)
        if target is not None:
            # The crop is drawn uniformly among those that contain the pixel.
            start = np.floor(target * scale) - np.floor(np.array([top, left]) * crop)
            start = np.clip(start, np.minimum(room, 0), np.maximum(room, 0))
    theta = math.radians(geometry.rotate) * (2 * angle - 1)
    turn = np.array([[math.cos(theta), math.sin(theta)], [-math.sin(theta), math.cos(theta)]])
    flip = np.array([geometry.flip_vertical and flip_y < 0.5, geometry.flip_horizontal and flip_x < 0.5])
    matrix = turn * np.where(flip, -1.0, 1.0) / scale[:, None]
    centre = (start + crop / 2) / scale
    g = geometry.elastic_grid if geometry.elastic > 0 else 0
    grid = random.standard_normal((g, g, 2)) * geometry.elastic
    return Warp(_about(matrix, crop / 2, centre), grid.astype(np.float32))


def evaluation_warp(size: tuple[int, int], preprocess: Preprocess) -> Warp:
    """Returns the evaluation warp: the whole image at the top left, resized as `Preprocess.resize` says."""
    factor = np.array(size) / np.array(resized_size(size, preprocess.resize))
    return Warp(_about(np.diag(factor), np.zeros(2), np.zeros(2)))


def _about(matrix, output_point, image_point):
    """Affine matrix [2, 3] between pixel centres that maps `output_point` to `image_point`, both continuous."""
    offset = image_point - matrix @ (output_point - 0.5) - 0.5
    return np.concatenate([matrix, offset[:, None]], axis=1).astype(np.float32)


def source_positions(warp: Warp, size: tuple[int, int], margin: int) -> Positions:
    """Returns the image positions (y, x) read by a label of `size` and `margin` pixels around it."""
    rows = np.arange(-margin, size[0] + margin, dtype=np.float32)[:, None]
    columns = np.arange(-margin, size[1] + margin, dtype=np.float32)[None, :]
    if len(warp.grid):
        shift_y, shift_x = elastic.displacement(warp.grid, size, margin)
        rows, columns = rows + shift_y, columns + shift_x
    matrix = warp.matrix
    return tuple(matrix[i, 0] * rows + (matrix[i, 1] * columns + matrix[i, 2]) for i in (0, 1))


def sample_image(
    image: Shaped[np.ndarray, "y x c"], at: Positions, preprocess: Preprocess
) -> Shaped[np.ndarray, "h w c"]:
    """Samples an image bilinearly, in its dtype, integers rounded; `preprocess` defines what lies outside."""
    y, x = at
    size = image.shape[:2]
    if mirror := preprocess.outside == "mirror":
        y, x = (_mirror(a, n) for a, n in zip(at, size, strict=True))
    inside = np.ones(y.shape, bool) if mirror else _inside(y, x, size)
    mean = np.array(preprocess.mean, np.float32)
    mean = mean if image.dtype == np.float32 else np.round(mean)
    out = np.empty((*y.shape, len(mean)), image.dtype)
    out[:] = np.tile(mean, (out.shape[1], 1))
    # Samples only the rows and columns of the output that show the image, from the part of it that they show.
    rows, columns = (_span(np.flatnonzero(inside.any(axis))) for axis in (1, 0))
    y, x, inside, shown = (a[rows, columns] for a in (y, x, inside, out))
    if not inside.size:
        return out
    window = tuple(
        _span(np.clip(np.floor((a.min(), a.max() + 1)), 0, n - 1)) for a, n in zip((y, x), size, strict=True)
    )
    # With a one-pixel border, one index finds the four neighbours of any position, in four views of a plane.
    planes, origin = _bordered(image[window]), [part.start - 1 for part in window]
    step = max(1, BLOCK // shown.shape[1])
    for first in range(0, len(shown), step):
        part = slice(first, first + step)
        _sample_rows(planes, origin, y[part], x[part], ~inside[part], mean, shown[part])
    return out


def _sample_rows(planes, origin, y, x, outside, mean, out):
    """Writes the bilinear samples at y, x of planes whose first pixel is at `origin` into `out`."""
    y0, x0 = np.floor(y), np.floor(x)
    down, right = y - y0, x - x0
    up, left = 1 - down, 1 - right
    rows, width = planes.shape[1:]
    index = _index(y0 - origin[0], x0 - origin[1], (rows - 1, width - 1), width)
    a, b, c, d = np.empty((4, *y.shape), np.float32)
    for channel, plane in enumerate(planes.reshape(len(planes), -1)):
        for start, corner in ((0, a), (1, b), (width, c), (width + 1, d)):
            # All indices are valid. "wrap" avoids a second copy, which numpy makes if it might have to raise.
            plane[start:].take(index, out=corner, mode="wrap")
        a *= left
        b *= right
        c *= left
        d *= right
        a += b
        c += d
        a *= up
        c *= down
        a += c
        if out.dtype != np.float32:
            a += np.float32(0.5)  # the cast truncates
        np.copyto(a, mean[channel], where=outside)
        out[..., channel] = a


def _span(ascending):
    """Slice from the first to the last of ascending indices; empty if there are none."""
    return slice(int(ascending[0]), int(ascending[-1]) + 1) if len(ascending) else slice(0, 0)


def _bordered(image):
    """Planes of an image with its edge pixels repeated once, float32 [c, y + 2, x + 2]."""
    rows, columns, channels = image.shape
    planes = np.empty((channels, rows + 2, columns + 2), np.float32)
    for channel in range(channels):
        planes[channel, 1:-1, 1:-1] = image[..., channel]
    planes[:, 0], planes[:, -1] = planes[:, 1], planes[:, -2]
    planes[..., 0], planes[..., -1] = planes[..., 1], planes[..., -2]
    return planes


def sample_label(label: Integer[np.ndarray, "y x *k"], at: Positions, outside: int) -> Integer[np.ndarray, "h w *k"]:
    """Samples a label or instance map at the nearest pixel, so values never mix; `outside` beyond its border."""
    y, x = at
    half, size, layers = np.float32(0.5), label.shape[:2], label.shape[2:]
    flat = label.reshape(-1, *layers)
    nearest = flat.take(_index(np.floor(y + half), np.floor(x + half), size, size[1]), axis=0)
    nearest[~_inside(y, x, size)] = outside
    return nearest


def _index(y, x, size, width):
    """Flat index of pixels (y, x), clamped to `size`, in rows of `width`; integers, since float32 ends at 2^24."""
    y, x = (np.clip(a, 0, n - 1, out=a).astype(np.int32) for a, n in zip((y, x), size, strict=True))
    y *= width
    y += x
    return y.astype(np.intp)


def _inside(y, x, size):
    """Whether a position lies on the image, whose border is half a pixel beyond its outermost centres."""
    half = np.float32(0.5)
    return (y >= -half) & (y < size[0] - half) & (x >= -half) & (x < size[1] - half)


def _mirror(at, length):
    """Reflects positions at the image's borders, repeatedly if needed."""
    half, length = np.float32(0.5), np.float32(length)
    return np.abs(np.mod(at + half + length, 2 * length) - length) - half
