"""Arrays as a data source: what is in memory comes back, and faults name the sample."""

import numpy as np
import pytest

from segjax.checks import UserError
from segjax.data.sources.arrays import arrays

RNG = np.random.default_rng(0)


def pair(n=2, k=3):
    return {"image": np.zeros((n, 4, 6, 3), np.uint8), "label": RNG.integers(0, k, (n, 4, 6))}


def test_arrays_of_one_size_and_of_many(tmp_path):
    data = {"train": pair(), "test": {key: list(value) for key, value in pair(3).items()}}
    data["test"]["image"][1], data["test"]["label"][1] = np.ones((2, 5, 3), np.uint8), np.full((2, 5), 255)
    train, test = (arrays(split, data=data, classes=("a", "b", "c")) for split in data)
    assert len(train) == 2 and len(test) == 3 and test.name(1) == "test_1" and test.size(1) == (2, 5)
    assert test.read(1)["label"].dtype == np.uint8 and (test.read(1)["label"] == 255).all()
    np.testing.assert_array_equal(train.read(1)["label"], data["train"]["label"][1])
    np.savez(tmp_path / "x.npz", train_image=data["train"]["image"], train_label=data["train"]["label"])
    stored = arrays("train", data=str(tmp_path / "x.npz"), classes=("a", "b", "c"))
    np.testing.assert_array_equal(stored.read(0)["label"], train.read(0)["label"])
    with pytest.raises(UserError, match=r"x\.npz lacks an array: .*val_image"):
        arrays("val", data=str(tmp_path / "x.npz"), classes=("a",))
    (tmp_path / "y.npz").write_bytes(b"nonsense")
    for name in ("y", "gone"):
        with pytest.raises(UserError, match=rf"{name}\.npz cannot be read"):
            arrays("val", data=str(tmp_path / f"{name}.npz"), classes=("a",))


def test_arrays_multilabel():
    label = RNG.integers(0, 2, (2, 4, 6, 3))
    label[1, 2, 3, 0] = 255
    source = arrays("x", data={"x": {**pair(), "label": label}}, classes=("a", "b", "c"))
    assert source.spec.mode == "multilabel"
    np.testing.assert_array_equal(source.read(1)["label"], label[1])
    label[1, 0, 0, 1] = 2
    with pytest.raises(UserError, match=r"x_1: the label holds 2 \(1 pixels\); .* 0 to 1 and 255"):
        arrays("x", data={"x": {**pair(), "label": label}}, classes=("a", "b", "c"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((2, 4, 6, 3), np.float64)}, r"x_0: the image must be uint8 \[y, x, 3\], .*but is float64"),
        ({"image": np.zeros((2, 4, 6, 1), np.uint8)}, r"x_0: the image must be uint8 \[y, x, 3\]"),
        ({"image": np.zeros((2, 4, 5, 3), np.uint8)}, r"x_0: the image is \(4, 5\), the label \(4, 6\)"),
        ({"image": np.zeros((3, 4, 6, 3), np.uint8)}, "'x' has 3 images and 2 labels"),
        ({"label": np.zeros((2, 4, 6))}, "x_0: the label must be integers .* but is float64"),
        ({"label": np.full((2, 4, 6), -1)}, r"x_0: the label holds -1 \(24 pixels\)"),
        ({"label": np.full((2, 4, 6), 3)}, r"x_0: the label holds 3 \(24 pixels\); .* 0 to 2"),
    ],
)
def test_arrays_faults_name_the_sample(change, message):
    with pytest.raises(UserError, match=message):
        arrays("x", data={"x": {**pair(), **change}}, classes=("a", "b", "c"))


def test_arrays_missing_split_or_part():
    with pytest.raises(UserError, match="has the splits x, not 'y'"):
        arrays("y", data={"x": pair()}, classes=("a",))
    with pytest.raises(UserError, match="needs 'image' and 'label', but has image"):
        arrays("x", data={"x": {"image": np.zeros((1, 2, 2, 3), np.uint8)}}, classes=("a",))


LABEL = np.array([[0, 1, 1], [2, 2, 255]])


def objects(instance, **kwargs):
    data = {"image": np.zeros((1, 2, 3, 3), np.uint8), "label": LABEL[None], "instance": [np.array(instance)]}
    return arrays("x", **{"data": {"x": data}, "classes": ("a", "b", "c"), "things": ("b", 2)} | kwargs)


def test_objects_are_numbered_anew(tmp_path):
    source = objects([[0, 700, 700], [9, 0, 0]])
    sample = source.read(0)
    assert source.spec.things == (1, 2) and sample["instance"].dtype == np.uint16
    np.testing.assert_array_equal(sample["instance"], [[0, 2, 2], [1, 0, 0]])
    parts = {"x_image": np.zeros((1, 2, 3, 3), np.uint8), "x_label": LABEL[None]}
    np.savez(tmp_path / "x.npz", **parts, x_instance=source.instances[0][None])
    stored = objects(0, data=str(tmp_path / "x.npz"))
    np.testing.assert_array_equal(stored.read(0)["instance"], sample["instance"])
    np.savez(tmp_path / "x.npz", **parts)
    assert set(objects(0, data=str(tmp_path / "x.npz")).read(0)) == {"image", "label"}


@pytest.mark.parametrize(
    ("instance", "kwargs", "message"),
    [
        ([[3, 1, 1], [2, 2, 0]], {}, r"x_0: the instance map holds 3 \(1 pixels\)"),
        ([[0, 1, 1], [2, 2, 4]], {}, r"x_0: the instance map holds 4 \(1 pixels\)"),
        ([[0, -1, 1], [2, 2, 0]], {}, r"x_0: the instance map holds -1 \(1 pixels\) .* or below 0"),
        ([[0.0, 1, 1], [2, 2, 0]], {}, r"x_0: the instance map must be integers \[2, 3\] .* but is float64 \[2, 3\]"),
        ([[0, 1], [2, 2]], {}, r"x_0: the instance map must be integers \[2, 3\] .* but is int64 \[2, 2\]"),
        ([[0, 1, 1], [2, 2, 0]], {"things": ()}, r"x_0: instance maps need source\.things"),
        ([[0, 1, 1], [2, 2, 0]], {"things": ("d",)}, r"source\.things: 'd' is .* a, b, c"),
    ],
)
def test_faults_of_objects_name_the_sample(instance, kwargs, message):
    with pytest.raises(UserError, match=message):
        objects(instance, **kwargs)


def test_as_many_instance_maps_as_labels():
    with pytest.raises(UserError, match="'x' has 2 labels and 1 instance maps"):
        arrays("x", data={"x": {**pair(), "instance": np.zeros((1, 4, 6), int)}}, classes=("a", "b", "c"), things=(1,))
