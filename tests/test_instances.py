"""Numbering of objects against a loop over ids, and painting against a loop over pixels."""

import numpy as np
import pytest

from segjax.checks import UserError
from segjax.data.instances import ObjectMask, number_instances, rasterise_masks
from segjax.spec import DatasetSpec

SPEC = DatasetSpec(("sky", "car", "road", "person"), things=(1, 3))


def brute_force(ids, label):
    """Ids in ascending order; each takes its pixels of the thing class that it has most of."""
    instance, n = np.zeros(ids.shape, int), 0
    for i in np.unique(ids[ids > 0]):
        pixels = {k: ((ids == i) & (label == k)).sum() for k in SPEC.things}
        k = max(pixels, key=pixels.get)
        if pixels[k]:
            n += 1
            instance[(ids == i) & (label == k)] = n
    return instance


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64])
def test_number_equals_brute_force(seed, dtype):
    rng = np.random.default_rng(seed)
    ids = rng.choice(np.array([0, 1, 5, 300, 65000, 7]), (7, 40)).repeat(rng.integers(1, 4), 1).astype(dtype)
    label = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), ids.shape)
    instance = number_instances(ids, label, SPEC, "a.png", allow_crowds=True)
    assert instance.dtype == np.uint16
    np.testing.assert_array_equal(instance, brute_force(ids, label))


def test_no_things_and_no_pixels():
    stuff = DatasetSpec(("a", "b"))
    assert not number_instances(np.ones((2, 3), int), np.ones((2, 3), np.uint8), stuff, "a.png").any()
    assert number_instances(np.ones((0, 3), int), np.ones((0, 3), np.uint8), SPEC, "a.png").shape == (0, 3)
    with pytest.raises(UserError, match=r"a\.png: 2 pixels of 'car', 1 pixels of 'person' belong to no object"):
        number_instances(np.zeros((1, 4), int), np.array([[1, 3, 1, 0]], np.uint8), SPEC, "a.png")


@pytest.mark.parametrize("seed", range(4))
def test_paint_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    masks = [
        ObjectMask(rng.random((8, 9)) < rng.uniform(0.02, 0.9), int(rng.choice(SPEC.things)), n % 4 == 3)
        for n in range(8)
    ]
    label, instance = rasterise_masks(masks, (8, 9), SPEC, "a.png")
    cut = [ObjectMask.of(mask.inside, mask.label, mask.crowd) for mask in masks]
    for one, other in zip(rasterise_masks(cut, (8, 9), SPEC, "a.png"), (label, instance), strict=True):
        np.testing.assert_array_equal(one, other)
    seen = []
    for y, x in np.ndindex(8, 9):
        here = [n for n, mask in enumerate(masks) if mask.inside[y, x]]
        top = min(here, key=lambda n: (masks[n].crowd, masks[n].inside.sum(), -n), default=None)
        assert label[y, x] == (0 if top is None else masks[top].label)
        assert (instance[y, x] == 0) == (top is None or masks[top].crowd)
        seen += [(top, int(instance[y, x]))] if instance[y, x] else []
    assert [n for _, n in sorted(set(seen))] == list(range(1, len(set(seen)) + 1))
    assert not any(map(np.any, rasterise_masks([], (8, 9), SPEC, "a.png")))
