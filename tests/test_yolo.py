"""Ultralytics' layout as a data source: polygons are drawn as pycocotools draws them, and faults name file and line."""

import itertools

import numpy as np
import pytest
from PIL import Image

from segjax.checks import UserError
from segjax.config import default_config
from segjax.data.audit import audit
from segjax.data.sources.yolo import yolo
from segjax.train import components

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
    (tmp_path / "labels/train/a.txt").write_bytes(b"\xff\xfa")
    with pytest.raises(UserError, match=r"labels/train/a\.txt cannot be read"):
        yolo("train", root=str(tmp_path), classes=("cat",)).read(0)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_dropped(tmp_path, encoding):
    write(tmp_path, ["a"], {"a": ""})
    (tmp_path / "labels/train/a.txt").write_bytes(f"{line(0, 2, 2, 4, 5)}\r\n".encode(encoding))
    (tmp_path / "data.yaml").write_bytes("train: images/train\r\nnames: [cat]\r\n".encode(encoding))
    for settings in ({"classes": ("cat",)}, {"yaml": "data.yaml"}):
        assert yolo("train", root=str(tmp_path), **settings).read(0)["label"].sum() == 6


@pytest.mark.parametrize("classes", [{0: "cat", 1: "dog"}, {"1": "dog", "0": "cat"}, ["cat", "dog"]])
def test_class_names_as_a_mapping(tmp_path, classes):
    write(tmp_path, ["a"], {"a": line(1, 2, 2, 4, 5)})
    config = default_config(source="yolo")
    config.source.root = str(tmp_path)
    with config.source.ignore_type():
        config.source.classes = classes
    source = components.open_source(config, "train")
    assert source.spec.classes == ("background", "cat", "dog") and source.read(0)["label"].max() == 2


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({0: "cat", 2: "dog"}, "the mapping has no class 1"),
        ({1: "cat", 2: "dog"}, "the mapping has no class 0"),
        ({0: "cat", "0": "dog"}, "the mapping has class 0 twice: 'cat' and 'dog'"),
        ({0: "cat", 1: "cat"}, "class names must be unique, but two are 'cat'"),
        ({"cat": 0}, "'cat' is not the index of a class"),
        ({True: "cat", 0: "dog"}, "True is not the index of a class"),
        ({0: 7}, "the class name 7 must be text"),
        ([True, "no"], "the class name True must be text"),
    ],
)
def test_faults_of_class_names(tmp_path, classes, message):
    write(tmp_path, ["a"], {"a": ""})
    if isinstance(classes, dict):
        with pytest.raises(UserError, match=rf"source\.classes: {message}"):
            yolo("train", root=str(tmp_path), classes=classes)
    (tmp_path / "data.yaml").write_text(f"train: images/train\nnames: {classes}\n")
    message = "the key '0' occurs twice" if "has class 0 twice" in message else message
    with pytest.raises(UserError, match=rf"data\.yaml.*{message}"):
        yolo("train", root=str(tmp_path), yaml="data.yaml")


def ultralytics(root, yaml, images=("images/train/1", "images/train/deep/2", "images/val/3")):
    """A data set as Ultralytics lays it out, each image with one object."""
    for stem in images:
        head, _, tail = f"/{stem}".rpartition("/images/")
        text = root / (f"{head}/labels/{tail}.txt".lstrip("/") if "images/" in stem else f"{stem}.txt")
        for path in (root / f"{stem}.png", text):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(root / f"{stem}.png")
        text.write_text(line(1, 2, 2, 4, 5))
    (root / "data.yaml").write_text(yaml)


def open_yaml(root, split="train"):
    source = yolo(split, root=str(root), yaml="data.yaml")
    assert source.spec.classes == ("background", "cat", "dog")
    assert all(source.read(i)["label"].sum() == 12 for i in range(len(source)))
    return [source.name(i) for i in range(len(source))]


NAMES = "\nnames:\n  0: cat\n  1: dog\n"


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("train: images/train\nval: images/val", ["images/train/1", "images/train/deep/2"]),
        ("train: ./images/train/\nnc: 2", ["images/train/1", "images/train/deep/2"]),
        ("path: .\ntrain: [images/val, images/train/deep]", ["images/val/3", "images/train/deep/2"]),
        ("path: images\ntrain: train", ["images/train/1", "images/train/deep/2"]),
        ("path: ../datasets/coco8\ntrain: images/val", ["images/val/3"]),  # of another machine
        ("path: /usr\ntrain: images/val", ["images/val/3"]),
        ("train: ../images/val", ["images/val/3"]),  # Roboflow
        ("train: lists/a.txt", ["images/val/3", "images/train/1"]),
        ("train: [lists/a.txt, images/train/deep]", ["images/val/3", "images/train/1", "images/train/deep/2"]),
    ],
)
def test_entries_of_data_yaml(tmp_path, yaml, expected):
    ultralytics(tmp_path, yaml + NAMES)
    (tmp_path / "lists").mkdir()
    lines = f"../images/val/3.png\n\n{tmp_path}/images/train/1.png\n".encode("utf-8-sig")
    (tmp_path / "lists/a.txt").write_bytes(lines)
    assert open_yaml(tmp_path) == expected


def test_lists_start_from_their_folder_or_the_path(tmp_path):
    ultralytics(tmp_path, f"path: sub\nval: a.txt{NAMES}", ("sub/images/1", "sub/images/images/2", "sub/own/3"))
    (tmp_path / "sub/a.txt").write_text("./images/1.png\nimages/images/2.png\n.\\own\\3.png\n")
    assert open_yaml(tmp_path, "val") == ["sub/images/1", "sub/images/images/2", "sub/own/3"]


def test_images_without_a_text_file_are_background(tmp_path):
    ultralytics(tmp_path, f"train: images/train{NAMES}")
    (tmp_path / "labels/train/1.txt").unlink()
    source = yolo("train", root=str(tmp_path), yaml="data.yaml")
    assert [int(source.read(i)["label"].max()) for i in range(2)] == [0, 2]
    (tmp_path / "labels/train/deep/2.txt").unlink()
    with pytest.raises(
        UserError, match=r"none of the 2 images of train has a text file, such as .*labels/train/1\.txt"
    ):
        yolo("train", root=str(tmp_path), yaml="data.yaml")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("val: images/val", "has no images for split 'train'; it has val"),
        ("train:\nval: images/val", "has no images for split 'train'; it has val"),
        ("train: images/tain", "names 'images/tain', but there is no .*/images/tain"),
        ("train: ../../elsewhere", r"names '\.\./elsewhere', which is outside of"),
        ("train: /etc", "names '/etc', which is outside of"),
        ("train: escape.txt", r"escape\.txt names '\.\./outside\.png', which is outside of"),
        ("train: missing.txt", r"missing\.txt names 'images/val/4\.png', but there is no"),
        ("train: [images/val, images/val]", r"train: .*images/val/3\.png is listed twice"),
        ("train: [5]", "train must name folders or text files, not 5"),
        ("train: images/train\nnc: 3", "says nc: 3, but has 2 names"),
        ("train: images/train\ntrain: images/val", "the key 'train' occurs twice"),
        ("train: !!python/object/apply:os.system ['true']", "cannot be read as YAML"),
        ("train: " + "[" * 900, "cannot be read as YAML"),
        # Aliases of aliases: 10^9 items as text.
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "\n".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]" for a, b in itertools.pairwise("abcdefghi"))
            + "\ntrain: [*i]",
            "train must name folders or text files, not",
        ),
        ("train: {a: &a [1], b: *c}", "cannot be read as YAML"),
    ],
)
def test_faults_of_data_yaml(tmp_path, yaml, message):
    root = tmp_path / "set"
    root.mkdir()
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "outside.png")
    (root / "escape.txt").write_text("../outside.png\n")
    (root / "missing.txt").write_text("images/val/4.png\n")
    ultralytics(root, yaml + NAMES)
    with pytest.raises(UserError, match=rf"(?s){message}"):
        yolo("train", root=str(root), yaml="data.yaml")


def test_classes_are_given_once(tmp_path):
    ultralytics(tmp_path, "train: images/train")
    for settings in ({}, {"classes": ("cat",), "yaml": "data.yaml"}):
        with pytest.raises(UserError, match=r"either source\.classes or source\.yaml"):
            yolo("train", root=str(tmp_path), **settings)
    with pytest.raises(UserError, match=r"data\.yaml has no names"):
        yolo("train", root=str(tmp_path), yaml="data.yaml")
    with pytest.raises(UserError, match=r"source\.yaml: .*none\.yaml cannot be read"):
        yolo("train", root=str(tmp_path), yaml="none.yaml")


def test_coco128(test_data):
    source = yolo("train2017", root=f"{test_data}/coco128_seg", classes=[f"c{k}" for k in range(80)])
    assert len(source) == 128
    found = audit(source)
    assert not found.errors and found.pixels[0] > 0 and sum(path is None for path in source.labels) == 2
    text = "\n".join(path.read_text() for path in filter(None, source.labels))
    listed = np.bincount([int(line.split()[0]) + 1 for line in text.splitlines() if line], minlength=81)
    # All objects but those that others hide.
    assert (listed >= found.objects).all() and sum(listed) == 929 and sum(found.objects) > 900
