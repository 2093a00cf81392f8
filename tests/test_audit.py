"""The audit counts what a set holds and reports every fault; class weights follow their formulas."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from segjax.checks import UserError
from segjax.cli import inspect
from segjax.data.audit import audit
from segjax.data.class_weights import effective_number, inverse_frequency, median_frequency
from segjax.data.sources.arrays import arrays
from segjax.data.sources.folder import folder
from segjax.spec import DatasetSpec

RNG = np.random.default_rng(0)
CLASSES = ("a", "b", "c")


def brute_force(labels, k, ignore):
    """Pixels, images and image pixels of each class, label by label."""
    pixels, images, image_pixels = np.zeros((3, k), int)
    for label in labels:
        for c in range(k):
            seen = label if label.ndim == 2 else label[..., c]
            count = (seen == (c if label.ndim == 2 else 1)).sum()
            pixels[c] += count
            images[c] += count > 0
            image_pixels[c] += (seen != ignore).sum() if count else 0
    return tuple(pixels.tolist()), tuple(images.tolist()), tuple(image_pixels.tolist())


@pytest.mark.parametrize("multilabel", [False, True])
def test_counts_equal_brute_force(multilabel):
    labels = []
    for n in range(5):
        label = RNG.integers(0, 2, (4 + n % 2, 6, *(3,) * multilabel))
        label[0, :n] = 255
        labels.append(label)
    images = [np.zeros((*label.shape[:2], 3), np.uint8) for label in labels]
    found = audit(arrays("x", data={"x": {"image": images, "label": labels}}, classes=CLASSES))
    assert found.samples == 5 and found.errors == {} and found.ids is None
    assert found.sizes == {"4 x 6": 3, "5 x 6": 2}
    assert (found.pixels, found.images, found.image_pixels) == brute_force(labels, 3, 255)
    assert found.ignored == sum((label == 255).sum() for label in labels)
    assert found.labelled == sum((label != 255).sum() for label in labels)
    assert found.ignored_share == found.ignored / sum(label.size for label in labels)


def write(root, stem, image, label):
    for kind, pixels in (("images", image), ("masks", label)):
        (root / kind).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / kind / f"{stem}.png")


@pytest.fixture
def faulty(tmp_path):
    """Nine samples, of which 1, 3, 5 and 7 are faulty in a way of their own."""
    for i in range(9):
        write(tmp_path, str(i), np.zeros((4, 6, 3), np.uint8), np.full((4, 6), i % 2, np.uint8))
    (tmp_path / "images/1.png").write_bytes(b"nonsense")
    write(tmp_path, "3", np.zeros((4, 6, 3), np.uint8), np.zeros((6, 4), np.uint8))
    write(tmp_path, "5", np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 77, np.uint8))
    content = (tmp_path / "masks/7.png").read_bytes()
    (tmp_path / "masks/7.png").write_bytes(content[: len(content) // 2])
    return folder("all", root=str(tmp_path), images="images", masks="masks", classes=CLASSES, fractions={"all": (0, 1)})


def test_goes_on_after_faults_and_names_each_file(faulty):
    found = audit(faulty)
    assert found.samples == 9 and set(found.errors) == {"1", "3", "5", "7"}
    assert set(found.unreadable) == {"1", "7"} and set(found.mismatched) == {"3"} and set(found.invalid) == {"5"}
    assert "images/1.png" in found.errors["1"] and "masks/7.png" in found.errors["7"]
    assert "images/3.png" in found.errors["3"] and "masks/3.png" in found.errors["3"]
    assert "masks/5.png" in found.errors["5"] and "77 (24 pixels)" in found.errors["5"]
    assert found.pixels == (5 * 24, 0, 0) and found.sizes == {"4 x 6": 5}
    assert found.ids == {0: 6 * 24, 1: 24, 77: 24}
    assert found == audit(faulty, workers=1)


def test_limit_is_spread_over_the_source(faulty):
    found = audit(faulty, limit=3)  # samples 0, 3, 6
    assert found.samples == 3 and set(found.errors) == {"3"}
    assert audit(faulty, limit=0).samples == 0 and audit(faulty, limit=0).ignored_share == 0
    assert audit(faulty, limit=99) == audit(faulty)


def test_as_dict_survives_json(faulty):
    found = json.loads(json.dumps(audit(faulty).as_dict()))
    assert found["classes"] == list(CLASSES) and found["pixels"] == [120, 0, 0]
    assert found["ids"] == {"0": 144, "1": 24, "77": 24} and found["ignored_share"] == 0


def test_checks_the_labels_of_any_source():
    class Source:
        spec = DatasetSpec(CLASSES)

        def __len__(self):
            return 2

        def name(self, i):
            return f"sample{i}"

        def read(self, i):
            label = np.array([[0, 1 + 4 * i, 255]], np.uint8)
            return {"image": np.zeros((1, 3 - 0 * i, 3), np.uint8), "label": label}

    found = audit(Source())
    assert found.pixels == (1, 1, 0) and found.ignored == 1
    assert list(found.invalid) == ["sample1"] and "{5: 1}" in found.invalid["sample1"]


def test_counts_objects(faulty):
    """Of each class over the set, and the most in an image."""
    assert audit(faulty).objects is None and audit(faulty).most_objects == 0
    label = np.array([[[0, 1, 1, 2]], [[2, 2, 1, 1]]])
    instance = np.array([[[0, 1, 1, 0]], [[4, 9, 2, 2]]])
    data = {"x": {"image": np.zeros((2, 1, 4, 3), np.uint8), "label": label, "instance": instance}}
    found = audit(arrays("x", data=data, classes=CLASSES, things=(1, 2)))
    assert found.objects == (0, 2, 2) and found.most_objects == 3 and found.errors == {}
    assert json.loads(json.dumps(found.as_dict()))["objects"] == [0, 2, 2]


def test_inspect_prints_objects(faulty, capsys):
    data = {"x": {"image": np.zeros((1, 1, 3, 3), np.uint8), "label": [[[0, 1, 1]]], "instance": [[[0, 1, 2]]]}}
    data["x"] = {key: np.array(value) for key, value in data["x"].items()}
    inspect._print(audit(arrays("x", data=data, classes=CLASSES, things=(1,))), {})
    printed = capsys.readouterr().err
    assert re.search(r"images\W+objects", printed) and re.search(r"b\W+2\W+66\.67%\W+1\W+2", printed)
    assert "objects per image: 2 at most" in printed
    inspect._print(audit(faulty), {})
    assert not re.search(r"images\W+objects|objects in an image", capsys.readouterr().err)


@pytest.mark.parametrize("instance", [[[0, 1, 3, 0]], [[0, 1, 1, 2]], [[1, 2, 0, 0]], [[0, 0, 0, 1]], [[0, 2, 2, 0]]])
def test_checks_the_numbers_of_any_source(instance):
    """Numbers leave none out, an object has one class, and it is of a thing."""

    class Source:
        spec = DatasetSpec(CLASSES, things=(1, 2))

        def __len__(self):
            return 1

        def name(self, i):
            return "sample"

        def read(self, i):
            label = np.array([[0, 1, 2, 255]], np.uint8)
            return {"image": np.zeros((1, 4, 3), np.uint8), "label": label, "instance": np.array(instance, np.uint16)}

    found = audit(Source())
    assert "1 .. n" in found.invalid["sample"] and found.objects is None


def test_faults_of_the_program_are_not_hidden(faulty, monkeypatch):
    monkeypatch.setattr(type(faulty), "read", lambda self, i: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        audit(faulty)


def test_median_frequency_by_hand():
    # a: 10 of 100, b: 40 of 200, c: 90 of 100, d: absent; the median of .1 .2 .9 is .2
    weights = median_frequency((10, 40, 90, 0), (100, 200, 100, 0))
    np.testing.assert_allclose(weights, [2, 1, 2 / 9, 0], rtol=1e-14)


def test_inverse_frequency_averages_one_over_pixels():
    pixels = RNG.integers(1, 10**9, 7)
    weights = inverse_frequency(pixels)
    np.testing.assert_allclose((weights * pixels).sum() / pixels.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(weights * pixels, np.full(7, pixels.sum() / 7), rtol=1e-12)
    np.testing.assert_allclose(inverse_frequency((0, 5, 15)), [0, 2, 2 / 3], rtol=1e-14)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.9999])
def test_effective_number_is_the_formula(beta):
    pixels = np.array([3, 50, 700, 0])
    raw = np.array([(1 - beta) / (1 - beta ** float(n)) if n else 0 for n in pixels])
    np.testing.assert_allclose(effective_number(pixels, beta), raw * 3 / raw.sum(), rtol=1e-9)


def test_effective_number_between_equal_and_inverse():
    pixels = np.array([10**3, 10**6, 10**9])
    np.testing.assert_array_equal(effective_number(pixels, 0.0), [1, 1, 1])
    np.testing.assert_allclose(effective_number(pixels[1:], 0.9999), [1, 1], rtol=1e-14)
    inverse = (1 / pixels) / (1 / pixels).mean()
    np.testing.assert_allclose(effective_number(pixels, 1 - 1e-12)[:2], inverse[:2], rtol=1e-3)
    weights = effective_number(pixels)
    assert 600 < weights[0] / weights[1] < 640  # 1000 (1 - 1/e)
    assert 1 < weights[1] / weights[2] < 1.6


@pytest.mark.parametrize("weigh", [inverse_frequency, effective_number, lambda n: median_frequency(n, n)])
def test_weights_need_pixels(weigh):
    with pytest.raises(UserError, match="no class occurs"):
        weigh((0, 0))
    assert weigh((0, 5))[0] == 0
    with pytest.raises(UserError, match="beta"):
        effective_number((1, 2), 1.0)
