"""Decodes a centre heatmap and offsets to objects, in fixed shapes: Panoptic-DeepLab, section 3.2 (arXiv:1911.10194).

Each peak of the heatmap is an object. A pixel belongs to the centre nearest to where its offset points.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from segjax import spatial
from segjax.checks import UserError

CHUNK = 8  # centres compared in one pass over the maps


def find_centres(
    centre: Float[Array, "b y x"], inside: Bool[Array, "b y x"], *, threshold: float, nms_kernel: int, top_k: int
) -> tuple[Int32[Array, "b n 2"], Float32[Array, "b n"], Bool[Array, "b n"]]:
    """Finds the peaks of a centre heatmap.

    A peak is above `threshold` and not below any pixel of the window around it; equal neighbours are all peaks.

    Args:
        centre: centre heatmap.
        inside: True for pixels of the image; other pixels are not peaks, and suppress none.
        threshold: peaks lie above this value.
        nms_kernel: rows and columns of the window, odd.
        top_k: maximum number of peaks n; keeps the highest, and on ties the first in row order.

    Returns:
        (y, x) of the peaks, highest first; their values; and which of the n slots hold a peak.

    Raises:
        UserError: the window is even.

    Example:
        >>> centre = jnp.array([[[0.1, 0.9, 0.2, 0.6]]])
        >>> points, values, valid = find_centres(centre, centre > 0, threshold=0.3, nms_kernel=3, top_k=3)
        >>> points[0, :, 1].tolist(), valid[0].tolist()
        ([1, 3, 0], [True, True, False])
    """
    if nms_kernel < 1 or nms_kernel % 2 == 0:
        raise UserError(f"nms_kernel={nms_kernel} must be odd and positive.")
    w = centre.shape[2]
    centre = jnp.where(inside, centre.astype(jnp.float32), -jnp.inf)
    peak = (centre >= _largest_around(centre, nms_kernel)) & (centre > threshold)
    values, places = spatial.top_k(jnp.where(peak, centre, -jnp.inf), top_k)
    return jnp.stack([places // w, places % w], -1), values, values > -jnp.inf


def _largest_around(x, window):
    """Computes the maximum over a window around each pixel from runs of doubling length: O(log window) passes."""
    for axis in (1, 2):
        before = window // 2
        pads = [(0, 0)] * 3
        pads[axis] = (before, window - 1 - before)
        run, length, size = jnp.pad(x, pads, constant_values=-jnp.inf), 1, x.shape[axis]
        while length < window:
            step = min(length, window - length)
            last = run.shape[axis] - step
            ahead = jax.lax.slice_in_dim(run, step, None, axis=axis)
            run = jnp.maximum(jax.lax.slice_in_dim(run, 0, last, axis=axis), ahead)
            length += step
        x = jax.lax.slice_in_dim(run, 0, size, axis=axis)
    return x


def group_pixels(
    offset: Float[Array, "b y x 2"], points: Int32[Array, "b n 2"], valid: Bool[Array, "b n"]
) -> Int32[Array, "b y x"]:
    """Assigns each pixel to the centre nearest to where its offset points: argmin_n |p + offset(p) - point_n|.

    Valid centres are compared in chunks, which avoids an array of pixels by centres.

    Args:
        offset: (dy, dx) in pixels.
        points: (y, x) of the centres.
        valid: which centres are valid; these must come first.

    Returns:
        Index of the centre + 1, the first on ties; 0 if there are no centres.

    Example:
        >>> points = jnp.array([[[0, 0], [0, 3]]])
        >>> group_pixels(jnp.zeros((1, 1, 4, 2)), points, jnp.array([[True, True]])).tolist()
        [[[1, 1, 2, 2]]]
    """
    b, h, w, _ = offset.shape
    count = valid.shape[1]
    pad = -count % CHUNK
    places = jnp.where(valid[..., None], points.astype(jnp.float32), jnp.inf)
    places = jnp.pad(places, ((0, 0), (0, pad), (0, 0)), constant_values=jnp.inf)
    y = jnp.arange(h, dtype=jnp.float32)[None, :, None] + offset[..., 0].astype(jnp.float32)
    x = jnp.arange(w, dtype=jnp.float32)[None, None, :] + offset[..., 1].astype(jnp.float32)

    def compare(i, best):
        part = jax.lax.dynamic_slice_in_dim(places, i * CHUNK, CHUNK, axis=1)[:, :, :, None, None]
        nearest, which = best
        for n in range(CHUNK):
            distance = jnp.square(y - part[:, n, 0]) + jnp.square(x - part[:, n, 1])
            nearer = distance < nearest
            nearest, which = jnp.where(nearer, distance, nearest), jnp.where(nearer, i * CHUNK + n + 1, which)
        return nearest, which

    start = (jnp.full((b, h, w), jnp.inf, jnp.float32), jnp.zeros((b, h, w), jnp.int32))
    passes = (valid.sum(1, dtype=jnp.int32).max() + CHUNK - 1) // CHUNK
    return jax.lax.fori_loop(0, passes, compare, start)[1]


def find_objects(
    centre: Float[Array, "b y x"],
    offset: Float[Array, "b y x 2"],
    inside: Bool[Array, "b y x"],
    *,
    threshold: float = 0.1,
    nms_kernel: int = 7,
    top_k: int = 200,
) -> tuple[Int32[Array, "b y x"], Float32[Array, "b n"], Int32[Array, "b n 2"]]:
    """Finds the objects of a batch, regardless of class.

    Args:
        centre: centre heatmap.
        offset: (dy, dx) from each pixel to the centre of its object, in pixels.
        inside: True for pixels of the image.
        threshold: centres lie above this value; 0.1 in section 4.1.
        nms_kernel: rows and columns of the window in which a centre is the maximum, odd; 7 in section 3.2.
        top_k: maximum number of objects n; 200 in section 4.1.

    Returns:
        Object number of each pixel, 1 .. n, or 0 for none; the heatmap value of each centre, 0 for the empty slots at
        the end; and (y, x) of the centres.

    Example:
        >>> centre = jnp.array([[[0.9, 0.0, 0.0, 0.8]]])
        >>> instance, confidence, _ = find_objects(centre, jnp.zeros((1, 1, 4, 2)), centre >= 0, nms_kernel=3, top_k=2)
        >>> instance.tolist(), [round(c, 2) for c in confidence[0].tolist()]
        ([[[1, 1, 2, 2]]], [0.9, 0.8])
    """
    top_k = min(top_k, centre.shape[1] * centre.shape[2])
    points, heights, valid = find_centres(centre, inside, threshold=threshold, nms_kernel=nms_kernel, top_k=top_k)
    return group_pixels(offset, points, valid), jnp.where(valid, heights, 0.0), points
