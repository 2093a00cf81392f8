"""LabelMe's JSON files as a data source: files that labelme 6.3.1 wrote, drawn as its own converter draws them.

`labelme_expected.json` is what its `shapes_to_label` makes of tests/data/labelme.
"""

import base64
import io
import json
import pathlib
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from segjax.checks import UserError
from segjax.data.audit import audit
from segjax.data.sources.labelme import labelme

DATA = pathlib.Path(__file__).parent / "data"
SIZE = (20, 24)
WHOLE = {"train": (0, 1)}


def open_folder(root, **more):
    return labelme("train", **{"root": str(root), "annotations": "", "classes": ("cat", "dog")} | more)


def test_files_of_labelme():
    """The image lies beside one file, and inside of the other, whose imagePath leads nowhere."""
    source = open_folder(DATA, annotations="labelme", fractions=WHOLE)
    assert source.spec.classes == ("background", "cat", "dog") and source.spec.things == (1, 2)
    expected = json.loads((DATA / "labelme_expected.json").read_text())
    picture = np.asarray(Image.open(DATA / "labelme/beside.png"))
    assert [source.name(i) for i in range(2)] == ["beside", "inside"]
    for i, maps in enumerate(expected.values()):
        sample = source.read(i)
        assert source.size(i) == SIZE
        np.testing.assert_array_equal(sample["image"], picture)
        for key, rows in maps.items():
            np.testing.assert_array_equal(sample[key], [list(map(int, row)) for row in rows])
    assert not audit(source).errors


def shape(label="cat", points=((2, 3), (5, 7)), kind="rectangle", **more):
    return {"label": label, "points": [list(point) for point in points], "shape_type": kind, "group_id": None} | more


def write(root, *shapes, stem="1", **more):
    path = root / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (path.parent / "1.png").exists():
        Image.new("RGB", SIZE[::-1]).save(path.parent / "1.png")
    content = {"version": "5.5.0", "shapes": list(shapes), "imagePath": "1.png", "imageData": None}
    path.write_text(json.dumps(content | {"imageHeight": 20, "imageWidth": 24} | more))
    return path


def read(root, *shapes, **more):
    write(root, *shapes, **more)
    return open_folder(root, fractions=WHOLE).read(0)


def test_later_shapes_lie_on_top(tmp_path):
    sample = read(tmp_path, shape(), shape("dog", ((4, 3), (9, 9))))
    assert (sample["label"][3, 3], sample["label"][3, 4]) == (1, 2)
    sample = read(tmp_path, shape("dog", ((4, 3), (9, 9))), shape())
    assert (sample["label"][3, 3], sample["label"][3, 4], sample["label"][3, 6]) == (1, 1, 2)


def test_groups_are_one_object(tmp_path):
    far = ((12, 3), (14, 7))
    same = [shape(group_id=4), shape(points=far, group_id=4)]
    assert read(tmp_path, *same)["instance"].max() == 1
    assert read(tmp_path, same[0], shape(points=far, group_id=5))["instance"].max() == 2
    assert read(tmp_path, same[0], shape("dog", far, group_id=4))["instance"].max() == 2
    assert read(tmp_path, shape(), shape(points=far))["instance"].max() == 2


def test_labels_that_labelme_knows(tmp_path):
    """__ignore__ is unlabelled, _background_ is background; neither is an object."""
    hole = ((3, 4), (4, 5))
    sample = read(tmp_path, shape(), shape("__ignore__", hole), shape("_background_", ((5, 3), (5, 3))))
    assert (sample["label"][4, 3], sample["label"][3, 5], sample["label"][3, 4]) == (255, 0, 1)
    assert sample["instance"].max() == 1 and not sample["instance"][4, 3] and not sample["instance"][3, 5]
    (tmp_path / "labels.txt").write_bytes("__ignore__\r\n_background_\r\ncat\r\ndog\r\n".encode("utf-8-sig"))
    source = open_folder(tmp_path, classes="labels.txt", fractions=WHOLE)
    assert source.spec.classes == ("background", "cat", "dog")


def test_shapes_without_an_area_are_left_out_with_a_word(tmp_path, caplog):
    thin = [
        shape(points=((1, 1),), kind="point"),
        shape(points=((1, 1), (5, 5)), kind="line"),
        shape(points=((1, 1), (5, 5), (5, 1)), kind="linestrip"),
        shape(points=((2, 1),), kind="point"),
    ]
    write(tmp_path, *thin, shape())
    source = open_folder(tmp_path, fractions=WHOLE)
    for _ in range(2):
        assert source.read(0)["instance"].max() == 1
    said = [record.message for record in caplog.records]
    assert len(said) == 3 and "1.json: shapes[0]: a point has no area" in said[0]


def test_splits(tmp_path):
    for stem in ("train/1", "train/10", "train/9", "val/2"):
        write(tmp_path, shape(), stem=stem)
    source = labelme("train", root=str(tmp_path), classes={0: "cat"})
    assert source.stems == ("1", "9", "10")
    (tmp_path / "val.txt").write_text("train/9\nval/2.jpg\n")
    assert open_folder(tmp_path, lists="val.txt").stems == ("train/9", "val/2")
    assert open_folder(tmp_path, fractions={"train": (0, 0.5)}).stems == ("train/1", "train/9")
    for settings in ({}, {"lists": "val.txt", "fractions": WHOLE}):
        with pytest.raises(UserError, match="in exactly one way"):
            open_folder(tmp_path, **settings)
    with pytest.raises(UserError, match=r"source\.annotations: no JSON file at .*/test"):
        labelme("test", root=str(tmp_path), classes=("cat",))


def test_a_mark_and_windows_paths(tmp_path):
    path = write(tmp_path / "json", shape(), imagePath="..\\photos\\a.png", imageHeight=None, imageWidth=None)
    path.write_bytes(path.read_text().encode("utf-8-sig"))
    (tmp_path / "photos").mkdir()
    shutil.copy(tmp_path / "json/1.png", tmp_path / "photos/a.png")
    source = open_folder(tmp_path, annotations="json", fractions=WHOLE)
    assert source.size(0) == SIZE and source.read(0)["label"].sum() == 20


def png(rows, columns):
    buffer = io.BytesIO()
    Image.new("1", (columns, rows), 1).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# The header of a PNG of 9000 x 9000 pixels, and nothing else.
HEADER = b"IHDR" + (9000).to_bytes(4, "big") * 2 + b"\x01\x00\x00\x00\x00"
BOMB = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\r" + HEADER + zlib.crc32(HEADER).to_bytes(4, "big") + b"\0\0\0\0IDAT5\xaf\x06\x1e"
)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (shape("cow"), "has the label 'cow', which is not one of source.classes: cat, dog"),
        (shape(None), "has the label None"),
        (5, "has the label None"),
        (shape(kind=[]) | {"shape_type": [1]}, r"has the shape_type \[1\]"),
        (shape(group_id=[[1]]), r"group_id must be a number, not \[\[1\]\]"),
        (shape([["cat"]]), r"has the label \[\['cat'\]\]"),
        (shape(kind="star"), "has the shape_type 'star'; known are"),
        (shape(points=((0, 0), (1, 1)), kind="polygon"), "a polygon needs 3 or more points"),
        (shape(points=((0, 0),)), "a rectangle needs 2 points"),
        (shape(points=((0, 0, 0), (1, 1, 1))), "points must be pairs"),
        (shape() | {"points": None}, "a rectangle needs 2 points"),
        (shape(points=((0, 0), (1e9, 1))), r"reaches x = 1e\+09, far outside"),
        (shape(points=((0, 0), (1, -(10**400)))), "a coordinate is not a finite number"),
        (shape(points=((0, 0), ("1", 1))), "a coordinate is not a finite number"),
        (shape(points=((0, 0), (1e300, 1)), kind="circle"), "far outside"),
        (shape(points=((0, 0), (1, 1)), kind="mask", mask=png(3, 3)), r"its mask has 3 x 3 pixels .* those of 2 x 2"),
        (shape(points=((0, 19), (1, 20)), kind="mask", mask=png(2, 2)), "reaches out of the image, which is 20 x 24"),
        (shape(points=((0, 0), (1, 1)), kind="mask"), "a mask needs its picture"),
        (shape(points=((0, 0), (1, 1)), kind="mask", mask="é"), "is not base64"),
        (
            shape(points=((0, 0), (1, 1)), kind="mask", mask=base64.b64encode(BOMB).decode()),
            "its mask has 9000 x 9000 pixels",
        ),
    ],
)
def test_faults_name_file_and_shape(tmp_path, bad, message):
    with pytest.raises(UserError, match=rf"1\.json: shapes\[1\].*{message}"):
        read(tmp_path, shape(), bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imageHeight": 21}, r"1\.png has 20 x 24 .* 1\.json has 21 x 24|1\.png has 20 x 24 .*1\.json has 21 x 24"),
        ({"imageHeight": "20"}, r"1\.json: imageHeight and imageWidth must be whole numbers"),
        ({"imageHeight": 10**6, "imageWidth": 10**6}, r"1\.json is 1000000 x 1000000 pixels"),
        ({"imagePath": "gone.png"}, r"1\.json names the image 'gone\.png', which is not there"),
        ({"imagePath": None}, r"1\.json names the image None"),
        ({"imagePath": "../outside.png"}, r"1\.json names '\.\./outside\.png', which is outside of"),
        ({"shapes": None}, r"1\.json is not a file of LabelMe"),
        ({"imagePath": "", "imageData": "AAAA"}, r"1\.json \(imageData\)"),
    ],
)
def test_faults_of_the_file(tmp_path, change, message):
    Image.new("RGB", (2, 2)).save(tmp_path / "outside.png")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "set", shape(), **change)
