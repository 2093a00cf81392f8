"""Objects from maps against a plain numpy version, on random and on adversarial maps."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.data.sources.shapes import shapes
from segjax.metrics.panoptic import encode_panoptic, panoptic_quality
from segjax.objectives import centre_grouping, centre_targets
from segjax.tasks.objects import vote

THINGS, IGNORE, K = (2, 3), 255, 4
SETTINGS = {"things": THINGS, "ignore": IGNORE, "threshold": 0.1, "nms_kernel": 5, "top_k": 6, "stuff_area": 10}


class Found(NamedTuple):
    label: Any
    instance: Any
    semantic: Any
    classes: Any
    scores: Any
    points: Any
    valid: Any


def panoptic(logits, centre, offset, inside, *, things, ignore, stuff_area=2048, **settings):
    """Objects from maps, and their classes from votes."""
    instance, confidence, points = centre_grouping.find_objects(centre, offset, inside, **settings)
    merged = vote(logits, instance, confidence, inside, things=things, ignore=ignore, stuff_area=stuff_area)
    return Found(*merged, points, confidence > 0)


@functools.cache
def compiled(**changes):
    return jax.jit(functools.partial(panoptic, **(SETTINGS | changes)))


def plain(logits, centre, offset, inside, *, things, ignore, threshold, nms_kernel, top_k, stuff_area):
    """One image, step by step."""
    h, w, k = logits.shape
    n = min(top_k, h * w)
    reach = nms_kernel // 2
    peaks = []
    for y, x in np.ndindex(h, w):
        around = np.s_[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        hidden = centre[around][inside[around]]
        if inside[y, x] and centre[y, x] > threshold and centre[y, x] >= hidden.max():
            peaks.append((-centre[y, x], y, x))
    peaks = sorted(peaks)[:n]  # the highest, of equal ones the first by rows
    semantic = logits.argmax(-1)
    label, instance = np.full((h, w), ignore), np.zeros((h, w), int)
    for y, x in zip(*np.nonzero(inside), strict=True):
        if semantic[y, x] in things:
            aim = np.array([y, x], np.float32) + offset[y, x]
            distances = [np.float32(((aim - (py, px)) ** 2).sum()) for _, py, px in peaks]
            if peaks:
                instance[y, x] = 1 + int(np.argmin(distances))
        elif (inside & (semantic == semantic[y, x])).sum() >= stuff_area:
            label[y, x] = semantic[y, x]
    classes, scores = np.full(n, -1), np.zeros(n)
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    probability = shifted / shifted.sum(-1, keepdims=True)
    for i in range(len(peaks)):
        mask = instance == i + 1
        if mask.any():
            classes[i] = np.bincount(semantic[mask], minlength=k).argmax()
            label[mask] = classes[i]
            scores[i] = probability[mask][:, classes[i]].mean() * -peaks[i][0]
    return label, instance, classes, scores, [(y, x) for _, y, x in peaks]


def check(logits, centre, offset, inside=None, **changes):
    """Compares a batch with the plain version, image by image; returns what was found."""
    inside = np.ones(centre.shape, bool) if inside is None else inside
    maps = [jnp.asarray(x, jnp.float32) for x in (logits, centre, offset)]
    found = jax.device_get(compiled(**changes)(*maps, jnp.asarray(inside)))
    for i in range(len(logits)):
        wanted = plain(*(np.asarray(x[i]) for x in maps), inside[i], **(SETTINGS | changes))
        label, instance, classes, scores, points = wanted
        np.testing.assert_array_equal(found.label[i], label)
        np.testing.assert_array_equal(found.instance[i], instance)
        np.testing.assert_array_equal(found.classes[i], classes)
        np.testing.assert_allclose(found.scores[i], scores, atol=1e-5)
        assert found.valid[i].sum() == len(points) and found.valid[i][: len(points)].all()
        assert [tuple(p) for p in found.points[i][: len(points)]] == points
    return found


def one_hot(semantic, size=8.0):
    return size * np.eye(K, dtype=np.float32)[np.asarray(semantic)]


def nothing(b=1, h=12, w=16):
    return one_hot(np.zeros((b, h, w), int)), np.zeros((b, h, w)), np.zeros((b, h, w, 2))


def random_maps(seed, b=2, h=23, w=30):
    random = np.random.default_rng(seed)
    coarse = random.normal(size=(b, h // 4 + 1, w // 4 + 1, K)).repeat(4, 1).repeat(4, 2)[:, :h, :w]
    return (
        coarse + 0.2 * random.normal(size=(b, h, w, K)),
        random.random((b, h, w)) ** 6,
        # Quarters of pixels: distances are exact in float32, and some are equal.
        random.integers(-20, 21, (b, h, w, 2)) / 4,
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("changes", [{}, {"top_k": 60}, {"nms_kernel": 1, "top_k": 3}, {"things": (1, 2, 3)}])
def test_equal_to_plain_numpy(seed, changes):
    inside = np.ones((2, 23, 30), bool)
    inside[1, 17:], inside[1, :, 21:] = False, False
    check(*random_maps(seed), inside, **changes)


def test_no_centre():
    """Thing pixels are void, stuff stays."""
    logits, centre, offset = nothing()
    logits[0, 2:6, 2:6] = one_hot(2)
    found = check(logits, centre, offset)
    assert (found.label[0, 2:6, 2:6] == IGNORE).all() and (found.label[0] == 0).sum() == 12 * 16 - 16
    assert not found.valid.any() and not found.scores.any()


@pytest.mark.parametrize("count", [5, 6, 7, 12])
def test_every_place_taken_and_one_more(count):
    """The highest are kept: deeplab2 keeps one less, or any."""
    logits, centre, offset = nothing(w=80)
    logits[:] = one_hot(2)
    for i in range(count):
        centre[0, 6, 6 * i + 3] = 0.2 + 0.05 * ((i * 5) % count)
    found = check(logits, centre, offset)
    heights = sorted(centre[centre > 0], reverse=True)[:6]
    kept = [centre[0, y, x] for y, x in found.points[0][found.valid[0]]]
    np.testing.assert_allclose(kept, heights)


def test_ties():
    """Of a plateau the first peaks by rows are kept, of equally near centres the first, of votes the lowest class."""
    logits, centre, offset = nothing()
    logits[0, :, :8], logits[0, :, 8:] = one_hot(2), one_hot(3)
    centre[0, 3:6, 3:6] = 0.5
    check(logits, centre, offset)
    centre[:] = 0
    centre[0, 6, 7] = 0.9
    found = check(logits, centre, offset)
    assert (found.label == 2).all()
    centre[0, 6, 3], centre[0, 6, 11] = 0.9, 0.9
    check(logits, centre, offset)


@pytest.mark.slow
def test_touching_things_of_one_class():
    label = np.zeros((1, 20, 24), np.uint8)
    instance = label.astype(np.uint16)
    for number, part in enumerate((np.s_[2:10, 2:12], np.s_[2:10, 12:22], np.s_[10:18, 2:22]), 1):
        label[0][part], instance[0][part] = 2, number
    aims = centre_targets.make_targets(
        jnp.asarray(label), jnp.asarray(instance), things=THINGS, ignore=IGNORE, count=9, sigma=2.0
    )
    found = check(one_hot(label), aims.centre, aims.offset)
    pairs = set(zip(instance.ravel().tolist(), found.instance.ravel().tolist(), strict=True))
    assert len(pairs) == 4 and len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 4


def test_things_of_one_pixel():
    logits, centre, offset = nothing()
    for i, (y, x) in enumerate(((0, 0), (0, 15), (11, 15), (5, 7))):
        logits[0, y, x], centre[0, y, x] = one_hot(2 + i % 2), 0.9 - 0.1 * i
    found = check(logits, centre, offset)
    assert found.classes[0].tolist() == [2, 3, 2, 3, -1, -1] and (found.instance > 0).sum() == 4


def test_all_void():
    """Stuff of too few pixels only, and an image that lies wholly outside."""
    logits, centre, offset = nothing(b=2)
    found = check(logits, centre + 0.5, offset, np.zeros(centre.shape, bool))
    assert (found.label == IGNORE).all() and not found.instance.any()
    found = check(logits, centre, offset, stuff_area=12 * 16 + 1)
    assert (found.label == IGNORE).all()


def test_pixels_outside_have_no_part():
    """What lies beyond the image changes nothing within it."""
    logits, centre, offset = random_maps(3)
    inside = np.zeros(centre.shape, bool)
    inside[:, :15, :20] = True
    found = check(logits, centre, offset, inside)
    cut = [np.ascontiguousarray(x[:, :15, :20]) for x in (logits, centre, offset)]
    alone = check(*cut)
    np.testing.assert_array_equal(found.label[:, :15, :20], alone.label)
    np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)


@pytest.mark.slow
def test_exact_maps_give_back_their_objects():
    """From a ground truth to its targets and back: all of PQ but what objects with one centre, such as rings, cost."""
    source = shapes("test", count=8, size=(96, 96), objects=(2, 6))
    scenes = [source.read(i) for i in range(len(source))]
    label, instance = (jnp.asarray(np.stack([scene[key] for scene in scenes])) for key in ("label", "instance"))
    aims = centre_targets.make_targets(label, instance, things=source.spec.things, ignore=255, count=99, sigma=2.0)
    logits = 9.0 * jax.nn.one_hot(label, 8)
    found = panoptic(
        logits, aims.centre, aims.offset, label >= 0, things=source.spec.things, ignore=255, stuff_area=0, top_k=40
    )
    np.testing.assert_array_equal(found.label, label)
    truth, ours = (np.asarray(encode_panoptic(label, numbers, 99)) for numbers in (instance, found.instance))
    assert panoptic_quality(list(truth), list(ours), source.spec, divisor=99, ignore=255)["pq"] > 0.97


def test_no_array_of_pixels_by_centres():
    """At 1024x2048 with 200 centres such an array would be 1.7 GB; all temporaries stay below a sixth of that."""
    shapes = [jax.ShapeDtypeStruct((1, 1024, 2048, *c), t) for c, t in (((19,), jnp.float32), ((), jnp.float32),
                                                                       ((2,), jnp.float32), ((), bool))]  # fmt: skip
    run = jax.jit(functools.partial(panoptic, things=tuple(range(11, 19)), ignore=255))
    compiled = run.lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1024 * 2048 * 200 * 4 / 6
