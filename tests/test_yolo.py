"""Ultralytics' layout as a data source: polygons are drawn as pycocotools draws them, and faults name file and line."""

import numpy as np
import pytest
from PIL import Image

from segjax.checks import UserError
from segjax.data.audit import audit
from segjax.data.sources.yolo import yolo

SIZE = (8, 12)


def write(root, images, texts):
    for folder in ("images/train/deep", "labels/train/deep"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(images):
        Image.new("RGB", SIZE[::-1], (i,) * 3).save(root / f"images/train/{name}.png")
    for name, text in texts.items():
        (root / f"labels/train/{name}.txt").write_text(text)


def line(k, top, left, bottom, right):
    points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return f"{k} " + " ".join(f"{x / SIZE[1]:.6f} {y / SIZE[0]:.6f}" for x, y in points)


def test_polygons_background_and_overlap(tmp_path):
    lines = [line(1, 2, 2, 4, 5), "", line(0, 0, 0, 8, 12), line(1, 0, 6, 1, 9) + " "]
    write(tmp_path, ["10", "9", "deep/a"], {"10": "\n".join(lines), "9": "\n", "classes": "cat\ndog\n"})
    source = yolo("train", root=str(tmp_path), classes=("cat", "dog"), palette=[(0, 0, 0), (1, 2, 3), (4, 5, 6)])
    assert source.spec.classes == ("background", "cat", "dog") and source.spec.things == (1, 2)
    assert source.spec.colours[2] == (4, 5, 6)
    assert [source.name(i) for i in range(len(source))] == ["9", "10", "deep/a"]
    label, instance = np.ones(SIZE), np.full(SIZE, 2)
    for n, window in ((1, np.s_[2:4, 2:5]), (3, np.s_[0:1, 6:9])):
        label[window], instance[window] = 2, n
    sample = source.read(1)
    assert sample["label"].dtype == np.uint8 and sample["instance"].dtype == np.uint16 and source.size(1) == SIZE
    np.testing.assert_array_equal(sample["label"], label)
    np.testing.assert_array_equal(sample["instance"], instance)
    np.testing.assert_array_equal(sample["image"], np.zeros((*SIZE, 3)))
    for i in (0, 2):
        assert not source.read(i)["label"].any() and not source.read(i)["instance"].any()


def test_points_just_outside_are_moved_to_the_border(tmp_path):
    write(tmp_path, ["a"], {"a": "0 -0.005 -0.005 1.009 0 1.0 1.0 0 1.01"})
    assert yolo("train", root=str(tmp_path), classes=("cat",)).read(0)["label"].all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0 0 1 0 1 1\n2 0 0 1 0 1 1", r"line 2: class 2 is not one of 0 to 1; .* source\.classes"),
        ("-1 0 0 1 0 1 1", "line 1: class -1 is not one of 0 to 1"),
        ("0.5 0 0 1 0 1 1", "line 1: class 0.5 is not one of"),
        ("\n0 0 0 1 0 1 1 0", "line 2: 7 coordinates; they must be pairs"),
        ("0 0.5 0.5 0.2 0.2", "line 1: an outline needs three points, but has 2"),
        ("0", "line 1: an outline needs three points, but has 0"),
        ("0 0 0 1 0 1 1.02", "line 1: the coordinate 1.02"),
        ("0 0 0 -0.02 0 1 1", "line 1: the coordinate -0.02 is not"),
        ("0 0 0 nan 0 1 1", "line 1: the coordinate nan"),
        ("0 0 0 x 0 1 1", "line 1: could not convert .*'x'"),
    ],
)
def test_faults_name_file_and_line(tmp_path, text, message):
    write(tmp_path, ["a"], {"a": text})
    with pytest.raises(UserError, match=rf"labels/train/a\.txt, {message}"):
        yolo("train", root=str(tmp_path), classes=("cat", "dog")).read(0)


def test_texts_without_an_image(tmp_path):
    write(tmp_path, ["a", "2"], {"a": "", "b": "", "deep/10": "", "deep/9": "", "deep/classes": ""})
    with pytest.raises(UserError, match=r"source\.labels: 3 of 5 text files .*/images/train, such as .*/b\.txt\."):
        yolo("train", root=str(tmp_path), classes=("cat",))
    for name in ("b", "deep/9", "deep/10"):
        (tmp_path / f"labels/train/{name}.txt").unlink()
    assert yolo("train", root=str(tmp_path), classes=("cat",)).labels == (None, tmp_path / "labels/train/a.txt")


def test_missing_files(tmp_path):
    write(tmp_path, ["a"], {"b": ""})
    with pytest.raises(UserError, match=r"source\.labels: .* at .*labels/train/\{stem\}\.txt"):
        yolo("train", root=str(tmp_path), classes=("cat",))
    with pytest.raises(UserError, match=r"source\.images: .* at .*images/val for split 'val'"):
        yolo("val", root=str(tmp_path), classes=("cat",))
    with pytest.raises(UserError, match=r"source\.labels='labels/\{name\}\.txt': \{name\}"):
        yolo("train", root=str(tmp_path), classes=("cat",), labels="labels/{name}.txt")
    write(tmp_path, ["a", "b"], {"a": ""})
    (tmp_path / "labels/train/a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"labels/train/a\.txt: cannot be read"):
        yolo("train", root=str(tmp_path), classes=("cat",)).read(0)


def test_coco128(test_data):
    source = yolo("train2017", root=f"{test_data}/coco128_seg", classes=[f"c{k}" for k in range(80)])
    assert len(source) == 128
    found = audit(source)
    assert not found.errors and found.pixels[0] > 0 and sum(path is None for path in source.labels) == 2
    text = "\n".join(path.read_text() for path in filter(None, source.labels))
    listed = np.bincount([int(line.split()[0]) + 1 for line in text.splitlines() if line], minlength=81)
    # All objects but those that others hide.
    assert (listed >= found.objects).all() and sum(listed) == 929 and sum(found.objects) > 900
