"""From a network's maps to objects: one batched function of fixed shapes, compiled with the step.

Panoptic-DeepLab, section 3.2 (Cheng et al., 2020, arXiv:1911.10194): peaks of the centre map are objects, a pixel
belongs to the centre that it points nearest to, and the pixels of an object vote on its class.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from segjax import space
from segjax.checks import UserError

CHUNK = 8  # centres that one pass over the maps compares


class Objects(NamedTuple):
    """What was found in a batch; object i has the number i + 1.

    label: class of each pixel int32 [b, y, x]; `ignore` where nothing was decided (void).
    instance: number of the object int32 [b, y, x]; 0 for stuff and void.
    semantic: class of the largest logit int32 [b, y, x], before objects voted.
    classes: class of each object int32 [b, n]; -1 where it has no pixel.
    scores: confidence of each object float32 [b, n]: mean probability of its class over its pixels times the centre
        map at its centre; 0 where it has no pixel.
    points: centre of each object (y, x) int32 [b, n, 2].
    valid: which of the n places are peaks of the centre map bool [b, n]; they come first.
    """

    label: Int32[Array, "b y x"]
    instance: Int32[Array, "b y x"]
    semantic: Int32[Array, "b y x"]
    classes: Int32[Array, "b n"]
    scores: Float32[Array, "b n"]
    points: Int32[Array, "b n 2"]
    valid: Bool[Array, "b n"]


def find_centres(
    centre: Float[Array, "b y x"], inside: Bool[Array, "b y x"], *, threshold: float, nms_kernel: int, top_k: int
) -> tuple[Int32[Array, "b n 2"], Float32[Array, "b n"], Bool[Array, "b n"]]:
    """Finds the peaks of a centre map.

    A peak is above `threshold` and not below any pixel of the window around it; of equal neighbours each is one.

    Args:
        centre: centre map.
        inside: which pixels belong to the image; others are no peaks, and hide none.
        threshold: least value of a peak.
        nms_kernel: rows and columns of that window, odd.
        top_k: greatest number of peaks n; the highest are kept, of equal ones the first by rows.

    Returns:
        (y, x) of the peaks, highest first; their values; and which of the n places are taken.

    Raises:
        UserError: an even window, which has no middle.

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
    values, places = space.top_k(jnp.where(peak, centre, -jnp.inf), top_k)
    return jnp.stack([places // w, places % w], -1), values, values > -jnp.inf


def _largest_around(x, window):
    """Maximum over a window around each pixel, as maxima of ever longer runs: the cost grows with its logarithm."""
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
    """Gives each pixel to the centre nearest to where it points: argmin_n |p + offset(p) - point_n|.

    Centres are compared in chunks, only as many as there are, so that no array of pixels by centres is made.

    Args:
        offset: (dy, dx) in pixels.
        points: (y, x) of the centres.
        valid: which of them count; those must come first.

    Returns:
        Place of the centre + 1, of equally near ones the first; 0 where there is none.

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


def panoptic(
    logits: Float[Array, "b y x k"],
    centre: Float[Array, "b y x"],
    offset: Float[Array, "b y x 2"],
    inside: Bool[Array, "b y x"],
    *,
    things: Sequence[int],
    ignore: int,
    threshold: float = 0.1,
    nms_kernel: int = 7,
    top_k: int = 200,
    stuff_area: int = 2048,
) -> Objects:
    """Merges classes and objects into one map.

    Thing pixels go to objects; an object has the class that most of its pixels have (of equal counts the first).
    Thing pixels where no centre was found, and stuff of fewer pixels than `stuff_area`, are void.

    Args:
        logits: scores of the classes.
        centre: centre map of the same size.
        offset: (dy, dx) in pixels of that size.
        inside: which pixels belong to the image; others are void and have no vote.
        things: indices of the classes that are countable objects.
        ignore: label of void.
        threshold: least value of a centre; 0.1 in section 4.1.
        nms_kernel: rows and columns in which a centre is the largest value; 7 in section 3.2.
        top_k: greatest number of objects n; 200 in section 4.1.
        stuff_area: least pixels of a stuff class; 2048 for Cityscapes in Panoptic-DeepLab's code.

    Returns:
        The objects.

    Example:
        >>> logits = jnp.array([[[[0.0, 9.0], [0.0, 9.0], [9.0, 0.0]]]])
        >>> centre = jnp.array([[[0.9, 0.0, 0.0]]])
        >>> settings = {"things": (1,), "ignore": 255, "stuff_area": 0}
        >>> found = panoptic(logits, centre, jnp.zeros((1, 1, 3, 2)), centre > -1, **settings)
        >>> found.label.tolist(), found.instance.tolist(), [round(s, 3) for s in found.scores[0, :2].tolist()]
        ([[[1, 1, 0]]], [[[1, 1, 0]]], [0.9, 0.0])
    """
    b, h, w, k = logits.shape
    n = min(top_k, h * w)
    logits = logits.astype(jnp.float32)
    semantic = jnp.argmax(logits, -1).astype(jnp.int32)
    points, heights, valid = find_centres(centre, inside, threshold=threshold, nms_kernel=nms_kernel, top_k=n)
    # Which classes are things is known here, so that this is no lookup.
    is_thing = jnp.zeros(semantic.shape, bool)
    for thing in things:
        is_thing |= semantic == thing
    instance = jnp.where(is_thing & inside, group_pixels(offset, points, valid), 0)

    # One count of (object, class) pairs tells the votes, the areas of stuff, and from them the class of each pair.
    pairs = instance * k + semantic
    counted = space.filled(jnp.where(inside, pairs, (n + 1) * k), (n + 1) * k)
    counts = jax.vmap(lambda i: jnp.zeros((n + 1) * k, jnp.int32).at[i].add(1, mode="drop"))(counted)
    counts = counts.reshape(b, n + 1, k)
    is_stuff = jnp.array([i not in things for i in range(k)])[None]
    has_pixels = counts[:, 1:].sum(-1) > 0
    classes = jnp.where(has_pixels, jnp.argmax(counts[:, 1:], -1).astype(jnp.int32), -1)
    stuff = jnp.where(is_stuff & (counts[:, 0] >= stuff_area), jnp.arange(k, dtype=jnp.int32)[None], ignore)
    decided = jnp.concatenate([stuff[:, None], jnp.broadcast_to(classes[..., None], (b, n, k))], 1)
    label = jax.vmap(lambda table, i: table[i])(decided.reshape(b, -1), pairs)
    label = jnp.where(inside, label, ignore)

    picked = jnp.where(jax.nn.one_hot(label, k, dtype=bool), logits, 0.0).sum(-1)
    probability = jnp.exp(picked - jax.nn.logsumexp(logits, -1))
    totals = jax.vmap(lambda i, p: jnp.zeros(n + 1, jnp.float32).at[i].add(p))(
        *map(space.filled, (instance, probability))
    )
    totals = totals[:, 1:]
    area = jnp.maximum(counts[:, 1:].sum(-1), 1).astype(jnp.float32)
    scores = jnp.where(has_pixels, totals / area * jnp.where(valid, heights, 0.0), 0.0)
    return Objects(label, instance, semantic, classes, scores, points, valid)
