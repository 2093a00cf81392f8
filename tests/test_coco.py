"""COCO's formats as data sources and as what is written: official examples, round trips, faults."""

import contextlib
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as tools
from pycocotools.coco import COCO

from segjax.checks import UserError
from segjax.data.audit import audit
from segjax.data.coco import polygons, read, write
from segjax.data.formats.opening import Reading
from segjax.data.reading import SizeMismatch
from segjax.data.sources.coco import coco_instances, coco_panoptic
from segjax.metrics.panoptic import encode_panoptic
from segjax.spec import DatasetSpec

# What pycocotools 2.0.11 warns of when it decodes; segjax has a decoder of its own.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SPEC = DatasetSpec(("sky", "car", "road", "person"), things=(1, 3))
OBJECTS = DatasetSpec(("background", "car", "person"), things=(1, 2))
SIZE = (9, 14)
# A category whose id is not its place, and one of a stuff.
CATEGORIES = [
    {"id": 7, "name": "car", "isthing": 1},
    {"id": 40, "name": "road", "isthing": 0},
    {"id": 2, "name": "person", "isthing": 1},
]


def scene(seed, spec=SPEC, void=True):
    """Stuff in bands, objects in boxes, one crowd of each thing, and a void corner."""
    rng = np.random.default_rng(seed)
    stuff = [k for k in range(len(spec.classes)) if k not in spec.things]
    label = np.repeat(rng.choice(stuff, (SIZE[0], 1)), SIZE[1], 1).astype(np.uint8)
    instance = np.zeros(SIZE, np.uint16)
    for n in range(1, 5):
        box = np.s_[rng.integers(5) : 5 + rng.integers(4), 3 * n - 2 : 3 * n]
        label[box], instance[box] = rng.choice(spec.things), n
    label[8, :2], label[8, 2:4] = spec.things
    instance[8, :4] = 0
    if void:
        label[0, -1], instance[0, -1] = spec.ignore, 0
    present = np.unique(instance)
    return label, np.searchsorted(present, instance).astype(np.uint16)


def assert_same(sample, label, instance):
    """Equal up to the numbering of the objects, which is dense."""
    np.testing.assert_array_equal(sample["label"], label)
    pairs = set(zip(instance.ravel().tolist(), sample["instance"].ravel().tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) and (0, 0) in pairs | {(0, 0)}
    assert {b for _, b in pairs} | {0} == set(range(sample["instance"].max() + 1))
    assert all((a == 0) == (b == 0) for a, b in pairs)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def record(i):
    return {"id": i, "file_name": f"{i:03d}.png", "height": SIZE[0], "width": SIZE[1]}


def write_panoptic(root, scenes, divisor=1000):
    annotations = []
    for i, (label, instance) in scenes.items():
        pixels, annotation = write.panoptic_annotation(
            encode_panoptic(label, instance, divisor), SPEC, divisor, i, f"{i:03d}.png"
        )
        save(root / f"annotations/panoptic_val/{i:03d}.png", pixels)
        save(root / f"val/{i:03d}.png", np.full((*SIZE, 3), i % 256, np.uint8))
        annotations.append(annotation)
    write.write_json(root / "annotations/panoptic_val.json", [record(i) for i in scenes], annotations, SPEC)


@pytest.mark.parametrize("divisor", [5, 1000, 60000])
def test_panoptic_round_trip(tmp_path, divisor):
    scenes = {i: scene(i) for i in (12, 5, 300)}
    write_panoptic(tmp_path, scenes, divisor)
    source = coco_panoptic("val", root=str(tmp_path))
    assert source.spec == SPEC and [source.name(i) for i in range(3)] == ["012", "005", "300"]
    for i, (key, (label, instance)) in enumerate(scenes.items()):
        sample = source.read(i)
        assert source.size(i) == SIZE and sample["label"].dtype == np.uint8 and sample["instance"].dtype == np.uint16
        assert (sample["image"] == key % 256).all()
        assert_same(sample, label, instance)
    found = audit(source)
    assert not found.errors and sum(found.objects) == sum(int(instance.max()) for _, instance in scenes.values())


def test_panoptic_annotation_by_hand():
    label = np.array([[0, 1, 1, 1], [0, 255, 3, 3]], np.uint8)
    instance = np.array([[0, 1, 2, 2], [0, 0, 0, 0]], np.uint16)
    pixels, annotation = write.panoptic_annotation(encode_panoptic(label, instance, 300), SPEC, 300, 9, "9.png")
    np.testing.assert_array_equal(read.rgb_to_id(pixels), [[1, 302, 303, 303], [1, 0, 901, 901]])
    assert annotation == {
        "image_id": 9,
        "file_name": "9.png",
        "segments_info": [
            {"id": 1, "category_id": 0, "area": 2, "bbox": [0, 0, 1, 2], "iscrowd": 0},
            {"id": 302, "category_id": 1, "area": 1, "bbox": [1, 0, 1, 1], "iscrowd": 0},
            {"id": 303, "category_id": 1, "area": 2, "bbox": [2, 0, 2, 1], "iscrowd": 0},
            {"id": 901, "category_id": 3, "area": 2, "bbox": [2, 1, 2, 1], "iscrowd": 1},
        ],
    }
    with pytest.raises(UserError, match=r"9\.png: segment id 18000001 needs more than three bytes; .* divisor"):
        write.panoptic_annotation(np.full((1, 1), 18_000_000), SPEC, 6_000_000, 9, "9.png")


def write_instances(root, scenes):
    annotations = []
    for i, (label, instance) in scenes.items():
        annotations += write.instance_annotations(label, instance, OBJECTS, i)
        save(root / f"val/{i:03d}.png", np.full((*SIZE, 3), i % 256, np.uint8))
    write.write_json(root / "annotations/instances_val.json", [record(i) for i in scenes], annotations, OBJECTS)
    return annotations


def test_instances_round_trip(tmp_path):
    empty = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint16)
    scenes = {4: scene(1, OBJECTS, void=False), 8: empty, 6: scene(2, OBJECTS, void=False)}
    (tmp_path / "annotations").mkdir()
    annotations = write_instances(tmp_path, scenes)
    source = coco_instances("val", root=str(tmp_path))
    assert source.spec == OBJECTS and len(source) == 3 and source.name(1) == "008"
    for i, (label, instance) in enumerate(scenes.values()):
        assert_same(source.read(i), label, instance)
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(tmp_path / "annotations/instances_val.json"))
    assert sorted(read.getAnnIds()) == list(range(1, len(annotations) + 1)) and len(read.getAnnIds(8)) == 0
    for key, (label, instance) in scenes.items():
        for entry in read.loadAnns(read.getAnnIds(key)):
            inside = read.annToMask(entry).astype(bool)
            crowd = (label == entry["category_id"]) & (instance == 0)
            np.testing.assert_array_equal(inside, crowd if entry["iscrowd"] else instance == instance[inside][0])
            assert entry["area"] == inside.sum() and entry["bbox"] == tools.toBbox(read.annToRLE(entry)).tolist()


def test_stuff_and_void_are_background_of_instances(tmp_path):
    label, instance = scene(3)
    save(tmp_path / "val/001.png", np.zeros((*SIZE, 3), np.uint8))
    annotations = write.instance_annotations(label, instance, SPEC, 1)
    (tmp_path / "annotations").mkdir()
    write.write_json(tmp_path / "annotations/instances_val.json", [record(1)], annotations, SPEC)
    source = coco_instances("val", root=str(tmp_path))
    assert source.spec.classes == ("background", "car", "person") and source.spec.things == (1, 2)
    assert source.spec.colours[2] == SPEC.colours[3]
    assert_same(source.read(0), np.array([0, 1, 0, 2] + [0] * 252)[label], instance)


def test_detections_have_scores_and_no_crowds():
    label, instance = scene(4)
    scores = np.linspace(0.25, 1, instance.max())
    found = write.instance_annotations(label, instance, SPEC, 3, scores)
    assert [entry["score"] for entry in found] == scores.tolist() and not any(entry["iscrowd"] for entry in found)
    assert json.loads(json.dumps(found)) == found


def entry(i, segmentation, category=7, crowd=0, image=1):
    return {"id": i, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}


def box(top, left, bottom, right):
    return [left, top, right, top, right, bottom, left, bottom]


def instances(root, annotations, images=None, categories=CATEGORIES):
    """A source of one image with these annotations."""
    content = {"images": images or [record(1)], "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations/instances_val.json").write_text(json.dumps(content))
    save(root / "val/001.png", np.zeros((*SIZE, 3), np.uint8))
    return coco_instances("val", root=str(root))


def test_polygons_and_run_lengths_are_drawn_alike(tmp_path):
    inside = np.zeros(SIZE, np.uint8)
    inside[2:5, 3:9] = 1
    packed = tools.encode(np.asfortranarray(inside))
    flat = inside.ravel(order="F")
    counts = np.diff(np.flatnonzero(np.diff(flat, prepend=1 - flat[0], append=1 - flat[-1]))).tolist()
    forms = [
        [box(2, 3, 5, 6), box(2, 6, 5, 9)],
        {"size": list(SIZE), "counts": counts},
        {"size": list(SIZE), "counts": packed["counts"].decode()},
    ]
    for form in forms:
        sample = instances(tmp_path, [entry(1, form)]).read(0)
        np.testing.assert_array_equal(sample["label"], inside)
        np.testing.assert_array_equal(sample["instance"], inside)


def test_smaller_lies_on_top_and_hidden_objects_are_left_out(tmp_path):
    annotations = [
        entry(11, [box(0, 0, 2, 2)]),  # wholly under 14 and 13, which together cover it
        entry(12, [box(0, 0, 9, 14)], category=2),
        entry(13, [box(0, 1, 2, 2)], category=2),
        entry(14, [box(0, 0, 2, 1)]),
        entry(15, [box(4, 4, 6, 6)], crowd=1),  # small, but a crowd
        entry(16, [box(5, 5, 9, 14)]),
    ]
    sample = instances(tmp_path, annotations).read(0)
    label, instance = np.full(SIZE, 2), np.full(SIZE, 1)
    label[:2, 0], instance[:2, 0], instance[:2, 1] = 1, 3, 2
    label[5:, 5:], instance[5:, 5:] = 1, 4
    np.testing.assert_array_equal(sample["label"], label)
    np.testing.assert_array_equal(sample["instance"], instance)
    crowd = instances(tmp_path, annotations[4:]).read(0)
    assert (crowd["label"][4, 4], crowd["instance"][4, 4]) == (1, 0) and crowd["instance"][5, 5] == 1


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_decoder_agrees_with_pycocotools(share):
    for shape in ((9, 14), (1, 1), (300, 211)):
        inside = np.random.default_rng(3).random(shape) < share
        packed = tools.encode(np.asfortranarray(inside, np.uint8))
        np.testing.assert_array_equal(read.rasterise(packed, shape, "x"), inside)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (entry(31, [box(0, 0, 2, 2)], category=3), "annotation 31 has category_id 3, which is not among"),
        (
            entry(31, [box(0, 0, 2, 2)], category=40),
            r"annotation 31 has category_id 40, which is stuff \(isthing 0\), but the instance format has objects "
            r"only; set isthing to 1 there, or remove the annotation\.$",
        ),
        (entry(31, [[0, 0, 3, 3]]), "annotation 31: .*empty, as in all 1 .* 3 or more pairs x, y"),
        (entry(31, [[0, 0, 3, 3, 1, 0, 2]]), "annotation 31: .* 3 or more pairs x, y"),
        (entry(31, []), "annotation 31: .* needs polygons"),
        (entry(31, "0 0 3 0 3 3"), r"annotation 31: .*: \[\[x, y, \.\.\.\], \.\.\.\]"),
        (entry(31, 5), "annotation 31: .* 3 or more pairs x, y"),
        (entry(31, None), "annotation 31: .* 3 or more pairs x, y"),
        (entry(31, [[0, 0, 3, 0, 3, 10**400]]), "annotation 31: a coordinate is not a finite number"),
        (entry(31, [[0, 0, 3, 0, 3, None]]), "annotation 31: a coordinate is not a finite number"),
        (entry(31, [box(0, 0, 2, 2), [0, 0, 1e9, 0, 3, 3]]), r"annotation 31: .* x = 1e\+09, far .* 9 x 14"),
        (entry(31, [box(0, 0, 2, 2), [0, 0, 3, -1e308, 3, 3]]), r"annotation 31: .* y = -1e\+308, far outside"),
        (entry(31, [box(12, 20, 22, 30)]), r"annotation 31: .* x = 30, far outside of the image, which is 9 x 14"),
        (entry(31, {"size": 5, "counts": [126]}), r"annotation 31: its mask has the size 5, its image \[9, 14\]"),
        (entry(31, [["a"] * 6]), "annotation 31: a coordinate is not a finite number"),
        (entry(31, {"size": [9, 14]}), "annotation 31: its run lengths must be whole numbers or .*, not None"),
        (
            entry(31, {"size": [9, 14], "counts": [1, 2]}),
            "annotation 31: .*its run lengths cover 3 pixels, its image has 126",
        ),
        (entry(31, {"size": [9, 14], "counts": [-1, 127]}), "annotation 31: .*run lengths cover 126"),
        (
            entry(31, {"size": [9, 14], "counts": "m03"}),
            r"annotation 31: .*run lengths cover \d+ pixels, its image has 126",
        ),
        (entry(31, {"size": [9, 14], "counts": ""}), "annotation 31: .*truncated or .* invalid character"),
        (entry(31, {"size": [9, 14], "counts": "m0ü"}), "annotation 31: .*truncated or .* invalid character"),
        (
            entry(31, {"size": [9, 14], "counts": 5}),
            "annotation 31: its run lengths must be whole numbers or .*, not 5",
        ),
        (entry(31, {"size": [9, 14], "counts": [0.5, 125.5]}), "annotation 31: its run lengths must be whole numbers"),
        (entry(31, {"size": [9, 14], "counts": "oooooooo1" * 2}), "annotation 31: .*more than 35 bits"),
        (entry(31, {"size": [14, 9], "counts": [126]}), r"annotation 31: .* the size \[14, 9\], its image \[9, 14\]"),
    ],
)
def test_faults_of_objects(tmp_path, annotation, message):
    with pytest.raises(UserError, match=rf"instances_val\.json: {message}"):
        instances(tmp_path, [annotation]).read(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"id": 3, "image_id": 1}]}, r"annotations\[0\] \(id 3\) lacks 'category_id'"),
        ({"annotations": [entry(3, [], crowd=2)]}, r"annotations\[0\]: iscrowd must be 0 or 1, not 2"),
        ({"annotations": [entry(3, [], crowd="0")]}, r"annotations\[0\]: iscrowd must be 0 or 1, not '0'"),
        ({"annotations": [entry(3, [], image="1")]}, r"annotations\[0\] is of image '1', .* as text, .* 1 as number"),
        (
            {"annotations": [entry(3, [box(0, 0, 2, 2)], category="7")]},
            r"annotation 3 has category_id '7', .* as text, .* 7 as number",
        ),
        (
            {"annotations": [entry(3, [box(0, 0, 2, 2)], category=9)], "categories": [{"id": "9", "name": "cat"}]},
            r"annotation 3 has category_id 9, .* as number, .* '9' as text",
        ),
        ({"annotations": [entry(3, [], image=77)]}, r"annotations\[0\] is of image 77, which is not listed"),
        ({"annotations": [5]}, r"annotations\[0\] is 5, not an object with id"),
        ({"images": [{"id": 1, "height": 9, "width": 14}]}, r"images\[0\] \(id 1\) lacks 'file_name'"),
        ({"images": [record(1) | {"height": 9.5}]}, r"images\[0\]: height must be a whole number, not 9\.5"),
        ({"images": [record(1) | {"height": 1e6, "width": 1e6}]}, r"images\[0\] is 1000000 x 1000000 .* at most 2\^31"),
        (
            {"images": [record(1) | {"file_name": "../../x.png"}]},
            r"val\.json \(image 1\) names '\.\./\.\./x\.png'.* outs",
        ),
        ({"images": [record(1) | {"file_name": "..\\..\\x.png"}]}, r"\(image 1\) names .* outside of"),
        ({"images": [record(1) | {"file_name": "/etc/passwd"}]}, r"\(image 1\) names '/etc/passwd', which is outside"),
        ({"images": [record(1) | {"file_name": "a\0.png"}]}, r"\(image 1\) names 'a\\x00\.png', which is no path"),
        ({"images": [record(1), record(1)]}, "images has id 1 twice"),
        (
            {"images": [record(1), record(2)]},
            r"source\.images: 1 of 2 files .*instances_val\.json.*002\.png \(image 2\)",
        ),
        ({"categories": [{"id": 1}]}, r"categories\[0\] \(id 1\) lacks 'name'"),
        ({"categories": [CATEGORIES[0]] * 2}, "categories has id 7 twice"),
        ({"annotations": [entry(3, []), entry(4, []), entry(3, [])]}, r"val\.json: annotations has id 3 twice"),
        ({"annotations": None}, r"instances_val\.json is not a COCO file: its annotations must be a list"),
        ({"categories": {"id": 1}}, r"instances_val\.json is not a COCO file: its categories must be a list"),
        (
            {"annotations": [entry(3, [], image=[1])]},
            r"json: annotations\[0\]: image_id must be a number .*, not \[1\]",
        ),
        ({"annotations": [entry([3], [])]}, r"json: annotations\[0\]: id .*, not \[3\]"),
        ({"annotations": [entry(3, [], [7])]}, r"json: annotations\[0\]: category_id must be a number .*, not \[7\]"),
        ({"images": [record(1) | {"id": {}}]}, r"json: images\[0\]: id .*, not \{\}"),
        ({"images": [record(1) | {"file_name": 1}]}, r"json: images\[0\]: file_name .*, not 1"),
        ({"images": [record(1) | {"height": "9"}]}, r"json: images\[0\]: height must be a whole number, not '9'"),
        ({"categories": [{"id": 1, "name": None}]}, r"json: categories\[0\]: name .*, not None"),
        (
            {"categories": [{"id": 1, "name": "cat", "isthing": "0"}]},
            r"categories\[0\]: isthing must be 0 or 1, not '0'",
        ),
        ({"categories": []}, r"val\.json: there are no categories of things \(isthing 1\); add them"),
        (
            {"categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "cat"}]},
            r"val\.json: two categories are called 'cat'; rename 5",
        ),
        (
            {"categories": [{"id": 0, "name": "background"}, {"id": 5, "name": "cat"}]},
            r"val\.json: category 0 is called 'background'.* set its isthing to 0",
        ),
    ],
)
def test_faults_of_the_file(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        instances(tmp_path, **{"annotations": []} | change)


def less(entry, *keys):
    return {key: value for key, value in entry.items() if key not in keys}


BOX = entry(1, [box(2, 3, 5, 9)])


@pytest.mark.parametrize(
    ("annotation", "image"),
    [
        (less(BOX, "iscrowd"), {}),
        (BOX | {"iscrowd": None}, {}),
        (BOX | {"iscrowd": False}, {}),
        (BOX, {"height": None, "width": None}),
        (BOX, {"height": -1, "width": -1}),
        (BOX, {"height": 0, "width": 14}),
        (BOX, {"height": 9.0, "width": 14.0}),
        (BOX, {"file_name": "..\\val\\001.png"}),
        (BOX | {"image_id": 1.0, "category_id": 7.0}, {"id": 1.0}),
        (BOX | {"segmentation": box(2, 3, 5, 9)}, {}),
        (BOX | {"segmentation": [[3, 2], [9, 2], [9, 5], [3, 5]]}, {}),
        (BOX | {"segmentation": [[[3, 2], [9, 2], [9, 5], [3, 5]]]}, {}),
        (BOX | {"segmentation": [[1, 1, 2, 2], *BOX["segmentation"], []]}, {}),
    ],
)
def test_what_third_parties_leave_out_or_write_otherwise(tmp_path, annotation, image):
    """Each form means the plain one; objects without an outline beside it are counted and left out."""
    plain = instances(tmp_path, [BOX]).read(0)
    others = [entry(2, []), entry(3, None), less(entry(4, 0), "segmentation"), entry(5, [[1, 1, 2, 2]])]
    source = instances(tmp_path, [annotation, *others], [record(1) | image])
    assert any("left out, 4 of 5: annotation 2, annotation 3, annotation 4" in warning for warning in source.warnings)
    assert source.size(0) == SIZE and source.name(0) == "001"
    for key, expected in plain.items():
        np.testing.assert_array_equal(source.read(0)[key], expected)


def test_faults_of_polygons_are_counted_on_opening(tmp_path):
    """All at once, and without a picture: the file of the image is none."""
    bad = [entry(i, [[0, 0, 3, 0, 3, 3, i]]) for i in range(10, 17)]
    (tmp_path / "val").mkdir()
    path = tmp_path / "annotations/instances_val.json"
    path.parent.mkdir()
    (tmp_path / "val/001.png").write_bytes(b"no picture")
    path.write_text(json.dumps({"images": [record(1)], "annotations": [BOX, *bad], "categories": CATEGORIES}))
    message = r"instances_val\.json: 7 of 8 annotations are invalid\. annotation 10: .* annotation 14: .* And 2 more\.$"
    with pytest.raises(UserError, match=message):
        coco_instances("val", root=str(tmp_path))


def test_polygons_may_reach_a_little_outside(tmp_path):
    sample = instances(tmp_path, [entry(1, [[-1.2, -0.5, 15.1, -0.5, 15.1, 9.5, -1.2, 9.5]])]).read(0)
    assert sample["label"].all()


@pytest.mark.parametrize("image", [{}, {"height": None, "width": None}])
def test_large_numbers_never_reach_pycocotools(tmp_path, image):
    """1e9 was a crash, 1e7 took 2.5 GB; without a stated size the picture's own bounds them."""
    for polygon in ([0, 0, 1e7, 0, 3, 3], [0, 0, 3, 0, 3, -(10**30)], [0, 0, 3, 2**31, 3, 3]):
        with pytest.raises(UserError, match=r"annotation 1: a polygon reaches . = .*, far outside of the image"):
            instances(tmp_path, [entry(1, [polygon])], [record(1) | image]).read(0)
    zigzag = [0, 0, 5000, 0] * 500
    with pytest.raises(UserError, match=r"a\.json: its outline is 5e\+06 pixels long"):
        read.rasterise([zigzag], (2, 5000), "a.json")
    overflow = [2**63 - 1, 2**63 - 1, 128]  # their sum in 64 bits is 126
    for counts in (overflow, [126, 2**62, 2**62, 2**62, 2**62]):
        with pytest.raises(UserError, match=r"a\.json: its run lengths cover \d{19,} pixels, its image has 126"):
            read.rasterise({"size": list(SIZE), "counts": counts}, SIZE, "a.json")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("#69db90", (105, 219, 144)),
        ("69DB90ff", (105, 219, 144)),
        ("#fff", (255, 255, 255)),
        ("rgb(1, 2, 3)", (1, 2, 3)),
        ([105, 219, 144, 255], (105, 219, 144)),
        ([105.0, 219.0, 144.0], (105, 219, 144)),
        ("red", (255, 0, 0)),
        ([0.4, 0.9, 0.6], (102, 230, 153)),
        ([1, 1, 1], (1, 1, 1)),
        (None, None),
        ("reddish", None),
        ([1, 2], None),
        ([1, 2, 300], None),
        ({"r": 1}, None),
        ([1, 2, None], None),
    ],
)
def test_colours_of_every_kind(tmp_path, caplog, value, expected):
    categories = [{"id": 7, "name": "car", "color": value}, {"id": 2, "name": "person", "color": [1, 2, 3]}]
    source = instances(tmp_path, [BOX], categories=categories)
    assert source.spec.colours == ((0, 0, 0), expected or (128, 0, 0), (1, 2, 3))
    said = [record.message for record in caplog.records]
    if expected is None:
        (warning,) = said
        assert "instances_val.json: colours" in warning and "'car'" in warning and "person" not in warning
    else:
        assert not said


def test_root_categories_are_no_classes(tmp_path):
    root = {"id": 0, "name": "vehicles", "supercategory": "none"}
    car, person = {"id": 7, "name": "car", "supercategory": "vehicles"}, {"id": 2, "name": "person"}
    assert instances(tmp_path, [BOX], categories=[root, car, person]).spec.classes == ("background", "car", "person")
    used = instances(tmp_path, [entry(1, [box(0, 0, 2, 2)], category=0)], categories=[root, car])
    assert used.spec.classes == ("background", "vehicles", "car")
    own = [car | {"supercategory": "car"}, person | {"supercategory": "none"}]  # supercategories that group nothing
    assert instances(tmp_path, [BOX], categories=own).spec.classes == ("background", "car", "person")


def test_text_of_a_file(tmp_path):
    """Byte order marks are dropped; what is not JSON is said with its place."""
    instances(tmp_path, [BOX])
    path = tmp_path / "annotations/instances_val.json"
    good = path.read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(good.encode(encoding))
        assert len(coco_instances("val", root=str(tmp_path))) == 1
    depth = 100_000
    for text, message in (
        ("[" * depth + "]" * depth, "is nested too deeply"),
        ('{"a":' * depth + "1" + "}" * depth, "is nested too deeply"),
        (good.replace("3,", "NaN,", 1), r"line 1: NaN is not a number of JSON; .*segmentation.*NaN$"),
        (good.replace("9,", "\n-Infinity,", 1), "line 2: -Infinity is not a number of JSON"),
        ('{"info": "NaN", "x": Infinity}', 'line 1: Infinity .*"x": Infinity$'),
        ("[" + "9" * 5000 + "]", "cannot be read as JSON"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"source\.annotations: .*instances_val\.json,? {message}"):
            coco_instances("val", root=str(tmp_path))
    path.write_bytes(good.encode("latin-1").replace(b"car", b"c\xe4r"))
    with pytest.raises(UserError, match=r"instances_val\.json cannot be read .* Save it as UTF-8"):
        coco_instances("val", root=str(tmp_path))


def test_nested_values_are_named_briefly(tmp_path):
    deep = 1
    for _ in range(800):
        deep = [deep]
    for change in ({"annotations": [deep]}, {"annotations": [BOX | {"id": deep}]}):
        with pytest.raises(UserError, match=r"annotations\[0\]"):
            instances(tmp_path, **{"annotations": []} | change)
    with pytest.raises(UserError, match="annotation 1: a polygon needs"):
        instances(tmp_path, [BOX | {"segmentation": deep}])


def test_files_lie_in_the_data_set(tmp_path):
    """Other folders of the root, absolute paths into it and links in it are fine."""
    root = tmp_path / "set"
    root.mkdir()
    instances(root, [BOX])
    save(tmp_path / "elsewhere/2.png", np.zeros((*SIZE, 3), np.uint8))
    (root / "link").symlink_to(tmp_path / "elsewhere")
    images = [
        record(1) | {"file_name": str(root / "val/001.png")},
        record(2) | {"file_name": "../link/2.png"},
    ]
    source = instances(root, [BOX], images)
    assert [source.name(i) for i in range(2)] == ["001", "link/2"] and not source.read(1)["label"].any()
    (tmp_path / "alias").symlink_to(root)
    assert len(coco_instances("val", root=str(tmp_path / "alias"))) == 2


def test_lvis(tmp_path):
    """As lvis 1.0 writes: no file names, no crowds, lists of categories that an image lacks or has in part."""
    image = {
        "id": 397133, "coco_url": "http://images.cocodataset.org/val2017/000000397133.jpg", "height": 9, "width": 14,
        "neg_category_ids": [2], "not_exhaustive_category_ids": [], "license": 1, "flickr_url": "", "date_captured": "",
    }  # fmt: skip
    categories = [
        {"id": i, "name": name, "synset": f"{name}.n.01", "frequency": "f", "instance_count": 1, "image_count": 1,
         "synonyms": [name], "def": "a thing"}
        for i, name in ((1, "cup"), (2, "bird"))
    ]  # fmt: skip
    annotation = less(entry(9, [box(2, 3, 5, 9)], 1, image=397133), "iscrowd") | {"area": 18.0, "bbox": [3, 2, 6, 3]}
    save(tmp_path / "val2017/000000397133.jpg", np.zeros((*SIZE, 3), np.uint8))
    path = tmp_path / "lvis_v1_val.json"
    content = {"info": {}, "licenses": [], "images": [image], "annotations": [annotation], "categories": categories}
    path.write_text(json.dumps(content))
    for images in (".", "val2017"):
        source = coco_instances("val", root=str(tmp_path), images=images, annotations=path.name)
        assert source.spec.classes == ("background", "cup", "bird") and source.read(0)["label"].sum() == 18


def test_background_without_annotations_is_stuff(tmp_path):
    categories = [{"id": 0, "name": "background", "isthing": 0}, {"id": 5, "name": "cat"}]
    source = instances(tmp_path, [entry(1, [box(0, 0, 9, 14)], category=5)], categories=categories)
    assert source.spec.classes == ("background", "cat") and (source.read(0)["label"] == 1).all()


def test_no_coco_file(tmp_path):
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations/panoptic_val.json"
    for content, message in (
        ("[]", "is not a COCO file.*images, annotations, categories"),
        ("{", "cannot be read as JSON"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=rf"source\.annotations: .*panoptic_val\.json {message}"):
            coco_panoptic("val", root=str(tmp_path))
    with pytest.raises(UserError, match=r"there is no file .*panoptic_test\.json"):
        coco_panoptic("test", root=str(tmp_path))
    with pytest.raises(UserError, match=r"source\.root: there is no folder"):
        coco_panoptic("test", root=str(tmp_path / "gone"))


def test_faults_of_panoptic_ground_truth(tmp_path):
    write_panoptic(tmp_path, {5: scene(5), 6: scene(6)})
    path, png = tmp_path / "annotations/panoptic_val.json", tmp_path / "annotations/panoptic_val/005.png"
    good, pixels = path.read_text(), np.array(Image.open(png))

    def fails(message, change=lambda content: None, i=0):
        content = json.loads(good)
        change(content)
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            coco_panoptic("val", root=str(tmp_path)).read(i)

    def segments(content):
        return content["annotations"][0]["segments_info"]

    name = r"panoptic_val\.json \(image 5\)"
    first = json.loads(good)["annotations"][0]["segments_info"][0]["id"]
    added = {"id": 99, "category_id": 0, "iscrowd": 0}
    fails(rf"{name}: segment 99 has no pixel in .*005\.png", lambda c: segments(c).append(added))
    fails(rf"005\.png: id {first} \(\d+ pixels\) .*{name}", lambda c: segments(c).pop(0))
    fails(rf"{name}: segment {first} is listed twice", lambda c: segments(c).append(segments(c)[0]))
    fails(rf"{name}: segment {first} has category_id 99", lambda c: segments(c)[0].update(category_id=99))
    fails(rf"{name}: segment {first}: iscrowd must be 0 or 1", lambda c: segments(c)[0].update(iscrowd="no"))
    fails(rf"{name}: segment id '{first}' is a text", lambda c: segments(c)[0].update(id=str(first)))
    fails(
        r"\(image 6\) names '\.\./\.\./\.\./x\.png'", lambda c: c["annotations"][1].update(file_name="../../../x.png")
    )
    fails(r"categories\[1\] \(id 1\) lacks 'isthing'", lambda c: c["categories"][1].pop("isthing"))
    fails(rf"{name}: segments_info\[0\]: id must be .* not \[1\]", lambda c: segments(c)[0].update(id=[1]))
    fails(r"annotations\[0\]: segments_info must be a list", lambda c: c["annotations"][0].update(segments_info=None))
    fails(r"images must be a list", lambda c: c.update(images=None))
    fails(r"json: two categories are called 'road'; rename 3", lambda c: c["categories"][3].update(name="road"))
    fails(r"annotations\[0\] \(image_id 5\) lacks 'file_name'", lambda c: c["annotations"][0].pop("file_name"))
    fails(r"json: image 5 has 0 annotations", lambda c: c["annotations"].pop(0))
    fails(r"json: image 6 has 2 annotations", lambda c: c["annotations"].append(c["annotations"][1]))
    fails(r"005\.png has 9 x 14 .*json \(image 5\) has 8 x 14", lambda c: c["images"][0].update(height=8))
    fails(r"source\.masks: 1 of 2 .*: x\.png \(image 6\)", lambda c: c["annotations"][1].update(file_name="x.png"))
    save(png, pixels[:-1])
    path.write_text(good)
    with pytest.raises(SizeMismatch, match=rf"{name} has 9 x 14 .* mask .*panoptic_val/005\.png has 8 x 14"):
        coco_panoptic("val", root=str(tmp_path)).read(0)
    save(png, pixels[..., 0].astype(np.uint16) * 300)
    fails(r"005\.png holds grey uint16 values")
    (tmp_path / "val/006.png").unlink()
    fails(r"source\.images: 1 of 2 files that .*json names are not in .*val: 006\.png \(image 6\)")


def test_without_pycocotools(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"need pycocotools\. Run `pip install \"segjax\[coco\]\"`"):
        instances(tmp_path, [])
    write_panoptic(tmp_path, {5: scene(5)})
    assert coco_panoptic("val", root=str(tmp_path)).read(0)["label"].shape == SIZE


EXAMPLES = {
    "sample_data": {"images": "input_images", "annotations": "panoptic_examples.json", "masks": "panoptic_examples"},
    # Its PNG has a palette, whose colours are the ids.
    "hf_fixture": {"images": ".", "annotations": "panoptic_39769.json", "masks": "coco_panoptic"},
}


@pytest.mark.parametrize("folder", EXAMPLES)
def test_official_examples(test_data, folder):
    """Areas and boxes are those that the file tells of each segment, and objects are as many."""
    root, paths = pathlib.Path(test_data, "coco_panoptic", folder), EXAMPLES[folder]
    source = coco_panoptic("val", root=str(root), **paths)
    content = json.loads((root / paths["annotations"]).read_text())
    assert source.spec.things == tuple(range(80)) and len(source.spec.classes) == 133
    assert source.spec.colours[0] == (220, 20, 60)
    place = {category["id"]: k for k, category in enumerate(content["categories"])}
    for i, annotation in enumerate(content["annotations"]):
        sample = source.read(i)
        label, instance = sample["label"], sample["instance"]
        areas = np.zeros(256, int)
        for segment in annotation["segments_info"]:
            areas[place[segment["category_id"]]] += segment["area"]
        areas[255] = label.size - areas.sum()
        np.testing.assert_array_equal(np.bincount(label.ravel(), minlength=256), areas)
        things = [s for s in annotation["segments_info"] if place[s["category_id"]] < 80 and not s["iscrowd"]]
        assert sorted(np.bincount(instance.ravel())[1:]) == sorted(s["area"] for s in things)
        assert instance.max() == len(things)
        for segment in things:
            x, y, w, h = segment["bbox"]
            (number,) = {
                n for n in np.unique(instance[y : y + h, x : x + w]) if n and (instance == n).sum() == segment["area"]
            }
            rows, columns = np.nonzero(instance == number)
            assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (y, y + h, x, x + w)
        _, written = write.panoptic_annotation(encode_panoptic(label, instance, 1000), source.spec, 1000, 1, "a.png")
        assert sorted(s["area"] for s in written["segments_info"]) == sorted(
            s["area"] for s in annotation["segments_info"]
        )


def test_official_instances(test_data):
    """Where no object lies on another, masks are pycocotools' own; all of them are seen."""
    root = pathlib.Path(test_data, "coco_panoptic/hf_fixture")
    source = coco_instances("val", root=str(root), images=".", annotations="instances_39769.json")
    assert len(source.spec.classes) == 81 and source.spec.things == tuple(range(1, 81))
    sample = source.read(0)
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(root / "instances_39769.json"))
    masks = [read.annToMask(a) for a in read.loadAnns(read.getAnnIds())]
    single = np.sum(masks, 0) == 1
    expected = sum(n * mask.astype(np.uint16) for n, mask in enumerate(masks, 1))
    np.testing.assert_array_equal(sample["instance"][single], expected[single])
    np.testing.assert_array_equal(sample["label"] > 0, np.any(masks, 0))
    assert sample["instance"].max() == len(masks) == 6


def test_official_run_lengths_agree_with_panoptic(test_data):
    """panopticapi's own conversion of its two examples to the instance format holds the same objects."""
    root = f"{test_data}/coco_panoptic/sample_data"
    panoptic = coco_panoptic("v", root=root, **EXAMPLES["sample_data"])
    file = "panoptic_coco_detection_format.json"
    objects = coco_instances("v", root=root, images="input_images", annotations=file)
    for i in range(2):
        one, other = panoptic.read(i), objects.read(i)
        assert panoptic.name(i) == objects.name(i)
        inside = one["instance"] > 0
        # Stuff is among the objects of that file; classes are one further for the background.
        np.testing.assert_array_equal(one["label"][inside] + 1, other["label"][inside])
        pairs = set(zip(one["instance"][inside].tolist(), other["instance"][inside].tolist(), strict=True))
        assert len(pairs) == one["instance"].max()


def test_panoptic_masks_lie_as_their_images_do(tmp_path):
    """A square picture and its PNG with the same orientation tag: both are turned, or neither."""
    exif = Image.Exif()
    exif[0x0112] = 6
    ids = np.zeros((4, 4), np.uint8)
    ids[0, :2] = 1
    for folder, suffix in (("val", "jpg"), ("annotations/panoptic_val", "png")):
        (tmp_path / folder).mkdir(parents=True)
        pixels = np.zeros((4, 4, 3), np.uint8)
        pixels[..., 0] = ids if suffix == "png" else ids * 255
        Image.fromarray(pixels).save(tmp_path / folder / f"1.{suffix}", exif=exif, quality=100)
    segments = [{"id": 1, "category_id": 1, "iscrowd": 0}]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 4, "width": 4}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "a", "isthing": 1}, {"id": 2, "name": "b", "isthing": 0}],
    }
    (tmp_path / "annotations/panoptic_val.json").write_text(json.dumps(content))
    for how in ("upright", "stored"):
        sample = coco_panoptic("val", root=str(tmp_path), reading=Reading(orientation=how)).read(0)
        np.testing.assert_array_equal(sample["instance"] == 1, sample["image"][..., 0] > 128)


def test_polygons_written_as_pairs_are_whole():
    assert polygons.lost([[0, 0], [3, 0], [3, 3]]) == 0 and polygons.lost([[[0, 0], [3, 0], [3, 3]], [1, 1]]) == 1
    assert polygons.fault([[True] * 6], (4, 4)) == "a coordinate is not a finite number"
