"""Public data sets in their usual layouts on disk, read through the configurations that come with the package."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from segjax.checks import UserError
from segjax.cli.config_flags import read_config_file
from segjax.data.sources import create
from segjax.spec import voc_colours
from segjax.train import components

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def write(root, image, mask, raw, grey, palette=None):
    """An image of one grey level and a mask of raw ids."""
    picture = Image.fromarray(raw.astype(np.uint8))
    if palette:
        picture.putpalette(sum(palette, ()))
    for path, content in ((root / image, Image.new("RGB", raw.shape[::-1], (grey,) * 3)), (root / mask, picture)):
        path.parent.mkdir(parents=True, exist_ok=True)
        content.save(path)


def check(source, expected):
    """Expected is the grey level and the label of each name, in order."""
    assert [source.name(i) for i in range(len(source))] == list(expected)
    for i, (grey, label) in enumerate(expected.values()):
        sample = source.read(i)
        assert sample["label"].dtype == np.uint8 and source.size(i) == label.shape
        np.testing.assert_array_equal(sample["label"], label)
        np.testing.assert_array_equal(sample["image"], np.full((*label.shape, 3), grey, np.uint8))


def check_spec(spec, count, things, names, colours=()):
    """Some of the class names and colours, by index."""
    assert len(spec.classes) == count and spec.ignore == 255 and spec.things == tuple(things)
    assert {k: spec.classes[k] for k in names} == names
    assert {k: spec.colours[k] for k in colours} == dict(colours)


# Raw ids 0 .. 33, and the train ids of cityscapesScripts, helpers/labels.py.
CITYSCAPES = np.array(
    [
        [255, 255, 255, 255, 255, 255, 255, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255],
        [5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18],
    ],
    np.uint8,
)
CITIES = {
    "train": ["aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "hamburg/hamburg_000000_000042"],
    "val": ["frankfurt/frankfurt_000000_000294", "munster/munster_000000_000019"],
}


@pytest.fixture(params=["cityscapes_deeplabv3plus", "cityscapes_lraspp"])
def cityscapes(request, tmp_path, monkeypatch):
    """The configuration, the folder of the set, and what each split holds."""
    monkeypatch.setenv("SEGJAX_DATA", str(tmp_path))
    root, expected = tmp_path / "cityscapes", {"train": {}, "val": {}}
    raw = np.arange(34).reshape(2, 17)
    for split, names in CITIES.items():
        for k, name in enumerate(names):
            truth = f"gtFine/{split}/{name}_gtFine"
            write(root, f"leftImg8bit/{split}/{name}_leftImg8bit.png", f"{truth}_labelIds.png", np.roll(raw, k, 1), k)
            for other in ("color", "instanceIds", "labelTrainIds"):
                Image.new("L", (17, 2), 254).save(root / f"{truth}_{other}.png")
            (root / f"{truth}_polygons.json").write_text("{}")
            expected[split][name] = k, np.roll(CITYSCAPES, k, 1)
    return read_config_file(f"{CONFIGS}/{request.param}.py"), root, expected


def test_cityscapes(cityscapes):
    config, _, expected = cityscapes
    assert (config.splits.train, config.splits.test) == ("train", "val")
    for split in ("train", "val"):
        source = components.open_source(config, split)
        check(source, expected[split])
        names = {0: "road", 5: "pole", 6: "traffic light", 10: "sky", 16: "train", 18: "bicycle"}
        colours = {0: (128, 64, 128), 5: (153, 153, 153), 10: (70, 130, 180), 13: (0, 0, 142), 18: (119, 11, 32)}
        check_spec(source.spec, 19, range(11, 19), names, colours)


def test_cityscapes_faults(cityscapes, monkeypatch):
    config, root, _ = cityscapes
    truth = root / f"gtFine/train/{CITIES['train'][1]}_gtFine_labelIds.png"
    Image.new("L", (17, 2), 34).save(truth)
    with pytest.raises(UserError, match=r"aachen_000001_000019_gtFine_labelIds\.png holds ids .*: 34 \(34 pixels\)"):
        components.open_source(config, "train").read(1)
    truth.unlink()
    with pytest.raises(UserError, match=r"1 of 3 images have no mask at .*gtFine.*: aachen/aachen_000001_000019\."):
        components.open_source(config, "train")
    with pytest.raises(UserError, match=r"no image at .*leftImg8bit/minival.* for split 'minival'"):
        components.open_source(config, "minival")
    monkeypatch.delenv("SEGJAX_DATA")
    with pytest.raises(UserError, match=r"SEGJAX_DATA, which is not set"):
        components.open_source(config, "train")


VOC = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]], np.uint8)


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """VOC2012 with palette masks of the official images, and SegmentationClassAug in grey with one more."""
    monkeypatch.setenv("SEGJAX_DATA", str(tmp_path))
    root, expected = tmp_path / "VOCdevkit/VOC2012", {}
    for k, name in enumerate(("2007_000032", "2007_000039", "2007_000033", "2008_000002")):
        image, label = f"JPEGImages/{name}.jpg", np.roll(VOC, k, 1)
        write(root, image, f"SegmentationClassAug/{name}.png", label, 50 * k)
        if name != "2008_000002":
            write(root, image, f"SegmentationClass/{name}.png", label, 50 * k, voc_colours(256))
        expected[name] = 50 * k, label
    Image.new("RGB", (5, 5)).save(root / "JPEGImages/2012_004331.jpg")  # most images have no mask
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000039\n")
    (lists / "trainaug.txt").write_text("2008_000002\n2007_000032\n2007_000039\n")
    (lists / "val.txt").write_text("2007_000033\n")
    return root, expected


@pytest.mark.parametrize(
    ("argument", "train"),
    [("", ["2007_000032", "2007_000039"]), (":trainaug", ["2008_000002", "2007_000032", "2007_000039"])],
)
def test_voc(voc, argument, train):
    _, expected = voc
    config = read_config_file(f"{CONFIGS}/voc_deeplabv3plus.py{argument}")
    for split, stems in ((config.splits.train, train), (config.splits.test, ["2007_000033"])):
        source = components.open_source(config, split)
        check(source, {stem: expected[stem] for stem in stems})
        names = {0: "background", 1: "aeroplane", 15: "person", 20: "tvmonitor"}
        colours = {0: (0, 0, 0), 1: (128, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
        check_spec(source.spec, 21, range(1, 21), names, colours)


def test_voc_faults(voc):
    root, _ = voc
    config = read_config_file(f"{CONFIGS}/voc_deeplabv3plus.py")
    Image.new("L", (11, 2), 21).save(root / "SegmentationClass/2007_000039.png")
    with pytest.raises(UserError, match=r"2007_000039\.png holds ids .*: 21 \(22 pixels\)"):
        components.open_source(config, "train").read(1)
    (root / "SegmentationClass/2007_000039.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images have no mask at .*SegmentationClass/.*: 2007_000039\."):
        components.open_source(config, "train")
    (root / "JPEGImages/2007_000032.jpg").unlink()
    with pytest.raises(UserError, match=r"train\.txt.*'2007_000032' has no image"):
        components.open_source(config, "train")
    (root / "ImageSets/Segmentation/trainaug.txt").unlink()
    with pytest.raises(UserError, match=r"source\.lists: .*trainaug\.txt cannot be read"):
        components.open_source(read_config_file(f"{CONFIGS}/voc_deeplabv3plus.py:trainaug"), "trainaug")


@pytest.fixture
def ade20k(tmp_path, monkeypatch):
    """The configuration and the folder of the set, with images of several sizes."""
    monkeypatch.setenv("SEGJAX_DATA", str(tmp_path))
    root = tmp_path / "ADEChallengeData2016"
    raw = np.arange(151).reshape(1, 151)
    for split, short, count in (("training", "train", 2), ("validation", "val", 1)):
        for k in range(count):
            name = f"{split}/ADE_{short}_{k + 1:08d}"
            write(root, f"images/{name}.jpg", f"annotations/{name}.png", np.repeat(raw, k + 1, 0), 100 * k)
    Image.new("L", (151, 1), 100).save(root / "images/validation/ADE_val_00000001.jpg")  # some are grey
    return read_config_file(f"{CONFIGS}/ade20k_deeplabv3.py"), root


def test_ade20k(ade20k):
    config, _ = ade20k
    label = np.array([[255, *range(150)]], np.uint8)
    source = components.open_source(config, config.splits.train)
    check(source, {"ADE_train_00000001": (0, label), "ADE_train_00000002": (100, np.repeat(label, 2, 0))})
    check(components.open_source(config, config.splits.test), {"ADE_val_00000001": (100, label)})
    # objectInfo150.txt counts from 1.
    names = {0: "wall", 12: "person", 49: "fireplace", 75: "swivel chair", 99: "buffet", 130: "screen", 149: "flag"}
    check_spec(source.spec, 150, (), names)


def test_ade20k_faults(ade20k):
    config, root = ade20k
    mask = root / "annotations/training/ADE_train_00000002.png"
    Image.new("L", (151, 2), 151).save(mask)
    with pytest.raises(UserError, match=r"ADE_train_00000002\.png holds ids .*: 151 \(302 pixels\)"):
        components.open_source(config, "training").read(1)
    mask.unlink()
    with pytest.raises(
        UserError, match=r"1 of 2 images have no mask at .*annotations/training.*: ADE_train_00000002\."
    ):
        components.open_source(config, "training")
    with pytest.raises(UserError, match=r"no image at .*images/train/.* for split 'train'"):
        components.open_source(config, "train")


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def check_objects(source, i, label, instance):
    sample = source.read(i)
    np.testing.assert_array_equal(sample["label"], label)
    np.testing.assert_array_equal(sample["instance"], instance)


def test_cityscapes_objects(cityscapes):
    """Objects of gtFine are class * 1000 + number; a group of cars has its class alone, as stuff has."""
    config, root, _ = cityscapes
    source = dict(config.source)
    raw = np.array([[7, 26, 26, 26, 4, 24], [33, 33, 26, 11, 3, 24]], np.uint8)  # with a vehicle of the camera's own
    ids = np.array([[7, 26001, 26001, 26, 4, 24000], [33002, 33000, 26000, 11, 3, 24000]], np.uint16)
    name = "gtFine/train/aachen/aachen_000000_000019_gtFine"
    save(root / f"{name}_labelIds.png", raw)
    save(root / f"{name}_instanceIds.png", ids)
    save(root / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png", np.zeros((2, 6, 3), np.uint8))
    made = {"instances": "gtFine/{split}/{stem}_gtFine_instanceIds.png", "instance_base": 1000}
    label = [[0, 13, 13, 13, 255, 11], [18, 18, 13, 2, 255, 11]]
    check_objects(
        create(split="train", **source | made | {"allow_crowds": True}),
        0,
        label,
        [[0, 3, 3, 0, 0, 1], [5, 4, 2, 0, 0, 1]],
    )
    with pytest.raises(UserError, match=r"000019_gtFine_instanceIds\.png: 1 pixels of 'car' belong to no object"):
        create(split="train", **source | made).read(0)


def test_ade20k_objects(ade20k):
    """annotations_instance holds its own class in red, the object's number in green; the two maps may differ."""
    config, root = ade20k
    source = dict(config.source)
    raw = np.array([[1, 13, 13, 13, 21, 0]], np.uint8)  # wall, three pixels of people, a car, and no ground truth
    ids = np.zeros((1, 6, 3), np.uint8)
    ids[0, :, 0], ids[0, :, 1] = [0, 1, 1, 1, 2, 2], [0, 2, 1, 1, 3, 3]
    ids[0, 0] = 1, 2, 0  # the person reaches over the wall in one of the maps
    for folder, suffix, pixels in (
        ("images", "jpg", ids),
        ("annotations", "png", raw),
        ("annotations_instance", "png", ids),
    ):
        for old in (root / folder / "training").glob("*"):
            old.unlink()
        save(root / folder / f"training/ADE_train_00000001.{suffix}", pixels)
    made = {"instances": "annotations_instance/{split}/{stem}.png", "things": ("person", "car")}
    check_objects(create(split="training", **source | made), 0, [[0, 12, 12, 12, 20, 255]], [[0, 2, 1, 1, 3, 0]])


@pytest.fixture
def coco(tmp_path):
    """COCO's folders with one image: two cats, one of them in two parts, a crowd of cats, sky, and a void corner."""
    ids = np.array([[5, 5, 900, 5], [70000, 70000, 66, 0]])
    save(tmp_path / "val2017/000000000139.jpg", np.zeros((2, 4, 3), np.uint8))
    save(
        tmp_path / "annotations/panoptic_val2017/000000000139.png",
        np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8),
    )
    images = [{"id": 139, "file_name": "000000000139.jpg", "height": 2, "width": 4}]
    cat, sky = ({"id": 17, "name": "cat", "isthing": 1}, {"id": 187, "name": "sky", "isthing": 0})
    segments = [
        {"id": i, "category_id": k, "iscrowd": crowd, "area": int((ids == i).sum()), "bbox": [0, 0, 1, 1]}
        for i, k, crowd in ((5, 17, 0), (900, 17, 0), (70000, 17, 1), (66, 187, 0))
    ]
    panoptic = [{"image_id": 139, "file_name": "000000000139.png", "segments_info": segments}]
    objects = [
        {"id": 81, "segmentation": [[0, 0, 2, 0, 2, 1, 0, 1], [3, 0, 4, 0, 4, 1, 3, 1]], "iscrowd": 0},
        {"id": 82, "segmentation": {"size": [2, 4], "counts": [4, 1, 3]}, "iscrowd": 0},
        {"id": 900100000083, "segmentation": {"size": [2, 4], "counts": [1, 1, 1, 1, 4]}, "iscrowd": 1},
    ]
    for name, annotations, categories in (
        ("panoptic", panoptic, [cat, sky]),
        ("instances", [entry | {"image_id": 139, "category_id": 17} for entry in objects], [cat]),
    ):
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / f"annotations/{name}_val2017.json").write_text(json.dumps(content))
    return str(tmp_path)


def test_coco(coco):
    """Both ground truth of one image agree, but that the instance format knows neither stuff nor void."""
    source = create("coco_panoptic", "val2017", root=coco)
    assert source.spec.classes == ("cat", "sky") and source.spec.things == (0,) and source.name(0) == "000000000139"
    check_objects(source, 0, [[0, 0, 0, 0], [0, 0, 1, 255]], [[1, 1, 2, 1], [0, 0, 0, 0]])
    source = create("coco_instances", "val2017", root=coco)
    assert source.spec.classes == ("background", "cat") and source.spec.things == (1,)
    check_objects(source, 0, [[1, 1, 1, 1], [1, 1, 0, 0]], [[1, 1, 2, 1], [0, 0, 0, 0]])
