"""The source of noise: the contract of a source, objects of the thing classes, faults."""

import numpy as np
import pytest

from segjax.checks import UserError
from segjax.data.sources.noise import noise


def test_an_image_is_a_function_of_split_and_number():
    source = noise("train", count=3, size=(70, 33), classes=5, things=2)
    first, again, other = source.read(1), source.read(1), source.read(2)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["image"], other["image"])
    assert not np.array_equal(first["image"], noise("test", count=3, size=(70, 33)).read(1)["image"])
    assert first["image"].shape == (70, 33, 3) and first["image"].dtype == np.uint8


def test_each_block_of_things_is_an_object():
    source = noise("train", size=(256, 256), classes=4, things=2)
    sample = source.read(0)
    label, instance = sample["label"], sample["instance"]
    assert source.spec.things == (2, 3) and set(np.unique(label)) == {0, 1, 2, 3}
    assert np.array_equal(instance > 0, label >= 2)
    numbers, counts = np.unique(instance[instance > 0], return_counts=True)
    assert numbers.tolist() == list(range(1, len(numbers) + 1)) and set(counts) == {32 * 32}


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": (0, 4)}, {"classes": 0}, {"classes": 256}, {"things": 20}])
def test_faults(wrong):
    with pytest.raises(UserError, match="source\\."):
        noise("train", **wrong)
