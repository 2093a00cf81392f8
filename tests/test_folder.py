"""Folders as a data source: pairing, splits, ids, objects, and errors that name the file."""

import json

import ml_collections
import numpy as np
import pytest
import tifffile
from PIL import Image

from segjax.checks import UserError
from segjax.data import files
from segjax.data.audit import audit, problems
from segjax.data.formats.opening import Reading
from segjax.data.sources.folder import folder


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)


def label_of(stem, k=3, shape=(4, 6)):
    return np.random.default_rng(list(stem.encode())).integers(0, k, shape, dtype=np.uint8)


def image_of(label):
    """An image that tells which label it belongs to."""
    return np.repeat(label[..., None] * 50, 3, 2)


def write(root, stems, image="images/{}.png", mask="masks/{}.png", convert=lambda label: label):
    for stem in stems:
        save(root / image.format(stem), image_of(label_of(stem)))
        save(root / mask.format(stem), convert(label_of(stem)))


def make(root, split="all", **kwargs):
    defaults = {"images": "images", "masks": "masks", "classes": ("a", "b", "c"), "fractions": {"all": (0, 1)}}
    return folder(split, root=str(root), **{**defaults, **kwargs})


def check_pairs(source, stems):
    assert [source.name(i) for i in range(len(source))] == stems
    for i, stem in enumerate(stems):
        sample = source.read(i)
        assert sample["image"].dtype == np.uint8 and sample["label"].dtype == source.spec.label_dtype
        np.testing.assert_array_equal(sample["label"], label_of(stem))
        np.testing.assert_array_equal(sample["image"], image_of(label_of(stem)))
        assert source.size(i) == sample["label"].shape[:2]


def test_plain_folders_pair_by_stem_in_natural_order(tmp_path):
    stems = [str(i) for i in range(12)]
    write(tmp_path, stems)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    (tmp_path / "masks" / "._1.png").write_bytes(b"left by macOS")
    check_pairs(make(tmp_path), stems)
    check_pairs(make(tmp_path, images="./images/", masks=str(tmp_path / "masks")), stems)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("train/{}.png", "trainannot/{}.png"),  # CamVid
        ("leftImg8bit/train/{}_leftImg8bit.png", "gtFine/train/{}_gtFine_labelIds.png"),  # Cityscapes
        ("{}/train/images/x.png", "{}/train/masks/y.png"),
        ("train/{}.png", "train/{}_segmentation.png"),  # one folder, one extension
        ("train/{}.png", "masks/train/{}.tif"),
    ],
)
@pytest.mark.parametrize("stems", [["a_1", "a_2", "a_10"], ["aachen/aachen_000", "ulm/ulm.v2_001"]])
def test_templates(tmp_path, image, mask, stems):
    write(tmp_path, stems, image, mask)
    templates = [t.replace("train", "{split}").replace("{}", "{stem}") for t in (image, mask)]
    check_pairs(make(tmp_path, "train", images=templates[0], masks=templates[1], fractions=None), stems)


def test_stem_may_stand_twice_and_star_spans_a_name(tmp_path):
    write(tmp_path, ["p1", "p2"], "{0}/{0}_scan.png", "{0}/{0}_truth_17.png")
    check_pairs(make(tmp_path, images="{stem}/{stem}_scan.png", masks="{stem}/{stem}_truth_*.png"), ["p1", "p2"])


def test_drive_layout_whose_255_must_be_named(tmp_path):
    for number in (21, 22, 100):
        vessel = label_of(str(number), k=2)
        save(tmp_path / f"training/images/{number}_training.tif", image_of(vessel))
        save(tmp_path / f"training/1st_manual/{number}_manual1.gif", vessel * 255)
    kwargs = {
        "images": "{split}/images/{stem}_training.tif",
        "masks": "{split}/1st_manual/{stem}_manual1.gif",
        "classes": ("background", "vessel"),
        "fractions": None,
    }
    source = make(tmp_path, "training", ids={"0": "background", "255": "vessel"}, **kwargs)
    assert source.stems == ("21", "22", "100")
    np.testing.assert_array_equal(source.read(2)["label"], label_of("100", k=2))
    with pytest.raises(UserError, match=r"100_man.*: 255 \(.*source\.ids = {'0': 'background', '255': 'vessel'}"):
        make(tmp_path, "training", **kwargs).read(2)


def test_configuration_survives_json(tmp_path):
    stems = ["x", "y"]
    write(tmp_path, stems, convert=lambda label: np.array([40, 7, 200], np.uint8)[label])
    kwargs = {
        "images": "images",
        "masks": "masks",
        "classes": ("a", "b", "c"),
        "ids": {"40": "a", "7": 1, "200": "c"},
        "fractions": {"all": (0, 1)},
        "palette": ((1, 2, 3), (4, 5, 6), (7, 8, 9)),
        "things": (2,),
    }
    config = ml_collections.ConfigDict(kwargs)
    for kwargs in (dict(config.items()), json.loads(config.to_json())):
        source = folder("all", root=str(tmp_path), **kwargs)
        check_pairs(source, stems)
        assert source.spec.colours == ((1, 2, 3), (4, 5, 6), (7, 8, 9)) and source.spec.things == (2,)


def test_ids_of_files_and_what_they_mean(tmp_path):
    save(tmp_path / "images/a.png", np.zeros((1, 5, 3), np.uint8))
    save(tmp_path / "masks/a.png", np.array([[0, 1, 2, 3, 255]], np.uint8))
    np.testing.assert_array_equal(make(tmp_path, ignore_ids=(3,)).read(0)["label"], [[0, 1, 2, 255, 255]])
    assert make(tmp_path).ids(0) == {0: 1, 1: 1, 2: 1, 3: 1, 255: 1}
    with pytest.raises(UserError, match=r"a\.png .*: 3 \(1 pixels\).*ignore_ids"):
        make(tmp_path).read(0)


def test_palette_masks_hold_indices(tmp_path):
    def paint(label):
        picture = Image.fromarray(label)
        picture.putpalette([0, 0, 0, 2, 2, 2, 1, 1, 1])
        return picture

    write(tmp_path, ["a", "b"], convert=paint)
    check_pairs(make(tmp_path), ["a", "b"])


def test_colour_coded_masks(tmp_path):
    colours = np.array([[0, 0, 0], [128, 64, 128], [60, 40, 222], [9, 9, 9]], np.uint8)
    write(tmp_path, ["a", "b"], convert=lambda label: colours[label])
    table = {"a": (0, 0, 0), "b": [[128, 64, 128], [200, 0, 0]], "c": [60, 40, 222], "ignore": (9, 9, 9)}
    source = make(tmp_path, colours=table)
    check_pairs(source, ["a", "b"])
    assert source.spec.colours == ((0, 0, 0), (128, 64, 128), (60, 40, 222))
    assert sum(source.ids(0).values()) == 24 and set(source.ids(0)) <= {0, 1, 2}
    save(tmp_path / "masks/a.png", np.full((4, 6, 3), 9, np.uint8))
    assert (source.read(0)["label"] == 255).all()
    save(tmp_path / "masks/a.png", np.full((4, 6, 3), 10, np.uint8))
    with pytest.raises(UserError, match=r"a\.png.*\(10, 10, 10\): 24 pixels"):
        source.read(0)
    save(tmp_path / "masks/b.png", colours[[[0, 1, 3]]])
    save(tmp_path / "images/b.png", np.zeros((1, 3, 3), np.uint8))
    two = make(tmp_path, classes=("a", "b"), colours={key: table[key] for key in ("a", "b", "ignore")})
    np.testing.assert_array_equal(two.read(1)["label"], [[0, 1, 255]])


def test_a_mask_file_for_each_class(tmp_path):
    for stem in ("1", "2", "3"):
        save(tmp_path / f"images/{stem}.png", np.zeros((1, 3, 3), np.uint8))
    masks = {"masks": "masks/{class}/{stem}.png"}
    save(tmp_path / "masks/a/1.png", np.array([[0, 1, 255]], np.uint8))
    save(tmp_path / "masks/c/1.png", np.array([[7, 0, 0]], np.uint8))
    save(tmp_path / "masks/b/2.png", Image.fromarray(np.array([[True, False, True]])))
    with pytest.raises(UserError, match=r"1 of 3 images have no mask .*: 3\. 3 masks were found"):
        make(tmp_path, **masks)
    (tmp_path / "images/3.png").unlink()
    source = make(tmp_path, ignore_ids=(7,), **masks)
    assert source.spec.mode == "multilabel"
    np.testing.assert_array_equal(source.read(0)["label"], [[[0, 0, 255], [1, 0, 0], [1, 0, 0]]])
    np.testing.assert_array_equal(source.read(1)["label"], [[[0, 1, 0], [0, 0, 0], [0, 1, 0]]])
    assert source.size(1) == (1, 3) and source.ids(0) == {0: 3, 1: 1, 7: 1, 255: 1}


def test_list_files(tmp_path):
    write(tmp_path, [f"s{i}" for i in range(4)] + ["with space"])
    (tmp_path / "train.txt").write_text("# comment\ns3 1 1\n\n/SegNet/images/s0.png /SegNet/masks/s0.png\nwith space\n")
    lists = {"lists": "{split}.txt", "fractions": None}
    check_pairs(make(tmp_path, "train", **lists), ["s3", "s0", "with space"])
    for text, message in (
        ("s1\ns9\n", "'s9' has no image"),
        ("s1\ns1.png\n", "'s1.png' is listed twice"),
        ("\n", "names no image"),
    ):
        (tmp_path / "val.txt").write_text(text)
        with pytest.raises(UserError, match=rf"val\.txt.*{message}"):
            make(tmp_path, "val", **lists)
    with pytest.raises(UserError, match=r"source\.lists: .*test\.txt cannot be read"):
        make(tmp_path, "test", **lists)


def test_fractions_are_contiguous_and_meet(tmp_path):
    stems = [str(i) for i in range(7)]
    write(tmp_path, stems)
    fractions = {"train": (0, 0.6), "val": (0.6, 0.7), "test": (0.7, 1)}
    blocks = [make(tmp_path, split, fractions=fractions).stems for split in fractions]
    assert blocks == [("0", "1", "2", "3"), ("4",), ("5", "6")]


def test_classes_from_a_file(tmp_path):
    write(tmp_path, ["a"])
    (tmp_path / "names.txt").write_text("sky\n wide road \n\ncar\n")
    assert make(tmp_path, classes="names.txt").spec.classes == ("sky", "wide road", "car")


def test_root_may_be_relative_and_take_variables(tmp_path, monkeypatch):
    write(tmp_path / "set", ["a"])
    monkeypatch.chdir(tmp_path)
    check_pairs(make("set"), ["a"])
    monkeypatch.setenv("SEGJAX_ROOT", str(tmp_path))
    check_pairs(make("$SEGJAX_ROOT/set"), ["a"])
    monkeypatch.delenv("SEGJAX_ROOT")
    with pytest.raises(UserError, match="SEGJAX_ROOT, which is not set"):
        make("${SEGJAX_ROOT}/set")
    monkeypatch.setenv("HOME", str(tmp_path))
    check_pairs(make("~/set"), ["a"])


def test_size_mismatch_names_both_files_and_sizes(tmp_path):
    save(tmp_path / "images/a.png", np.zeros((4, 6, 3), np.uint8))
    save(tmp_path / "masks/a.png", np.zeros((6, 4), np.uint8))
    with pytest.raises(UserError, match=r"images/a\.png has 4 x 6 .*masks/a\.png has 6 x 4"):
        make(tmp_path).read(0)


def test_missing_things_are_named(tmp_path):
    with pytest.raises(UserError, match=r"source\.root: there is no folder .*gone"):
        make(tmp_path / "gone")
    with pytest.raises(UserError, match=r"source\.images: no image at .*images for split 'all'"):
        make(tmp_path)
    write(tmp_path, list("abcdefgh"))
    for stem in "abcdefg":
        (tmp_path / f"masks/{stem}.png").unlink()
    with pytest.raises(UserError, match=r"7 of 8 images have no mask at .*masks: a, b, c, d, e, \.\.\.\. 1 masks"):
        make(tmp_path)
    save(tmp_path / "images/h.tif", np.zeros((4, 6), np.uint8))
    with pytest.raises(UserError, match=r"Both .*h\.(png|tif) and .*h\.(png|tif) "):
        make(tmp_path)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fractions": None}, "source.images, with source.lists .* source.fractions"),
        ({"lists": "x.txt"}, "source.images, with source.lists .* source.fractions"),
        ({"images": "{split}"}, "source.images, with source.lists .* source.fractions"),
        ({"images": "images/{name}.png"}, r"source\.images=.*\{name\}"),
        ({"ignore_ids": (2,)}, "id 2 .*source.ids and source.ignore_ids"),
        ({"colours": {"road": (1, 2, 3)}}, "source.colours: 'road' is"),
        ({"colours": {"a": (1, 2, 300)}}, "not an RGB triple"),
        ({"colours": {"a": (1, 1, 1), "b": (1, 1, 1)}}, "two classes"),
        ({"colours": {"a": (1, 2, 3)}, "ids": {0: "a"}}, r"source\.colours .* remove source\.ids"),
        ({"colours": {"a": (1, 2, 3)}, "ignore_ids": (7,)}, r"source\.colours .* remove source\.ids"),
        ({"masks": "{class}", "ids": {0: "a"}}, r"source\.masks .* remove source\.ids"),
        ({"masks": "{class}", "colours": {"a": (1, 2, 3)}}, r"source\.masks .* remove source\.ids"),
        ({"classes": ("a", "a")}, "unique"),
        ({"classes": "nope.txt"}, r"source\.classes: .*nope\.txt"),
        ({"fractions": {"train": (0, 0.5), "test": (0.5, 1)}}, "names the splits train, test, not 'all'"),
        ({"fractions": {"all": (0.5, 0.5)}}, "holds none of the 1 images"),
        ({"things": ("d",)}, r"source\.things: 'd' is .* a, b, c"),
        ({"things": (3,)}, r"source\.things: 3 is .* a, b, c"),
        ({"masks": None}, r"source\.masks, source\.instances or both"),
        ({"instances": "masks"}, r"source\.instances needs source\.things"),
        ({"instances": "masks", "masks": "{class}", "things": (1,)}, r"source\.instances .* one class per pixel"),
        ({"instances": "masks", "masks": None}, r"without source\.masks .* background and thing"),
        ({"instances": "masks", "masks": None, "classes": ("a", "b"), "things": (0,)}, "background and thing"),
        ({"instances": "masks", "masks": None, "classes": ("a", "b"), "ids": {0: "a"}}, "remove source.ids"),
        ({"instances": "{class}", "things": (1,)}, r"source\.instances=.*\{class\}"),
        (
            {"instances": "gone", "things": (1,)},
            r"source\.instances: 1 of 1 images have no instance file at .*gone: a",
        ),
    ],
)
def test_contradictions_name_the_key(tmp_path, kwargs, message):
    write(tmp_path, ["a"])
    with pytest.raises(UserError, match=message):
        make(tmp_path, **kwargs)


def test_hidden_folders_are_left_out_and_links_followed(tmp_path):
    write(tmp_path / "real", ["a"])
    write(tmp_path / "set", [".cache/b"])
    (tmp_path / "set/images/linked").symlink_to(tmp_path / "real/images")
    assert list(files.find_files(tmp_path / "set", "images")) == ["linked/a"]


LABEL = np.array([[0, 1, 1, 2, 2, 255]], np.uint8)


def objects(root, ids, label=LABEL, **kwargs):
    """A source of one image: class a is stuff, b and c are things, 255 is no ground truth."""
    save(root / "images/x.png", np.zeros((*label.shape, 3), np.uint8))
    save(root / "masks/x.png", label)
    save(root / "objects/x.tif" if ids.dtype == np.int32 else root / "objects/x.png", ids)
    return make(root, **{"instances": "objects", "things": ("c", "b")} | kwargs)


def rgb(ids):
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)


@pytest.mark.parametrize(
    "ids",
    [
        np.array([[9, 80, 7, 200, 200, 3]], np.uint8),
        np.array([[9, 8000, 700, 60000, 60000, 3]], np.uint16),
        np.array([[-1, 8000, 700, 2**30, 2**30, 3]], np.int32),
        rgb(np.array([[9, 80 << 16, 80 << 8, 81 << 16, 81 << 16, 3]])),
        rgb(np.array([[0, 0x020202, 0x010101, 0x030303, 0x030303, 0]])),  # equal channels are colours here
    ],
)
def test_objects_are_numbered_by_ascending_id(tmp_path, ids):
    source = objects(tmp_path, ids)
    sample = source.read(0)
    assert source.spec.things == (1, 2) and sample["instance"].dtype == np.uint16
    np.testing.assert_array_equal(sample["label"], LABEL)
    np.testing.assert_array_equal(sample["instance"], [[0, 2, 1, 3, 3, 0]])


def test_palette_files_of_objects_hold_indices(tmp_path):
    picture = Image.fromarray(np.array([[0, 2, 1, 3, 3, 0]], np.uint8))
    picture.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7, 6, 6, 6])
    objects(tmp_path, np.zeros((1, 6), np.uint8))
    save(tmp_path / "objects/x.png", picture)
    np.testing.assert_array_equal(
        make(tmp_path, instances="objects", things=[1, 2]).read(0)["instance"], [[0, 2, 1, 3, 3, 0]]
    )


def test_things_without_an_object(tmp_path):
    ids = np.array([[0, 26, 26001, 0, 33005, 0]], np.uint16)
    with pytest.raises(
        UserError, match=r"objects/x\.png: 1 pixels of 'b', 1 pixels of 'c' belong .*source\.allow_crowds=True"
    ):
        objects(tmp_path, ids, instance_base=1000).read(0)
    sample = objects(tmp_path, ids, instance_base=1000, allow_crowds=True).read(0)
    np.testing.assert_array_equal(sample["instance"], [[0, 0, 1, 0, 2, 0]])


def test_an_object_has_the_class_of_most_of_its_pixels(tmp_path):
    label = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 255]], np.uint8)
    ids = np.array([[5, 5, 5, 5, 5, 5], [4, 4, 3, 3, 4, 5]], np.uint8)
    sample = objects(tmp_path, ids, label, allow_crowds=True).read(0)
    np.testing.assert_array_equal(sample["instance"], [[3, 3, 3, 0, 0, 0], [2, 2, 1, 1, 0, 0]])
    with pytest.raises(UserError, match=r"objects/x\.png: 3 pixels of 'c' belong to no object"):
        objects(tmp_path, ids, label).read(0)


def test_objects_alone(tmp_path):
    ids = np.array([[0, 7, 900, 999, 0, 30]], np.uint16)
    kwargs = {"masks": None, "classes": ("background", "cell"), "things": ()}
    source = objects(tmp_path, ids, **kwargs)
    assert source.spec.things == (1,) and source.ids(0) == {} and source.size(0) == (1, 6)
    np.testing.assert_array_equal(source.read(0)["label"], [[0, 1, 1, 1, 0, 1]])
    np.testing.assert_array_equal(source.read(0)["instance"], [[0, 1, 3, 4, 0, 2]])
    sample = objects(tmp_path, ids, **kwargs, instance_base=100).read(0)
    np.testing.assert_array_equal(sample["label"], [[0, 0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(sample["instance"], [[0, 0, 1, 2, 0, 0]])


def test_too_many_objects(tmp_path):
    ids = np.arange(256 * 260, dtype=np.int32).reshape(256, 260)
    kwargs = {"masks": None, "classes": ("background", "cell"), "things": ()}
    with pytest.raises(UserError, match=r"objects/x\.tif holds 66559 objects; .* 65535"):
        objects(tmp_path, ids, np.zeros(ids.shape, np.uint8), **kwargs).read(0)


def test_faults_of_files_of_objects(tmp_path):
    source = objects(tmp_path, np.zeros((1, 5), np.uint8))
    for look in (source.size, source.read):
        with pytest.raises(UserError, match=r"images/x\.png has 1 x 6 .*objects/x\.png has 1 x 5"):
            look(0)
    Image.fromarray(np.zeros((1, 6, 3), np.uint8)).save(tmp_path / "objects/x.png", "JPEG")
    with pytest.raises(UserError, match=r"objects/x\.png: lossy JPEG"):
        source.read(0)


CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101), ("test", 233)])
def test_camvid(test_data, split, count):
    source = folder(
        split,
        root="$SEGJAX_TEST_DATA/camvid",
        images="{split}/{stem}.jpg",
        masks="{split}annot/{stem}.png",
        classes=CAMVID,
        ignore_ids=(11,),
    )
    assert len(source) == count
    sample, ids = source.read(0), source.ids(0)
    assert sample["image"].shape == (360, 480, 3) and sample["label"].shape == source.size(0) == (360, 480)
    with Image.open(f"{test_data}/camvid/{split}annot/{source.name(0)}.png") as picture:
        raw = np.array(picture)
    np.testing.assert_array_equal(sample["label"], np.where(raw == 11, 255, raw))
    assert ids == {v: int((raw == v).sum()) for v in np.unique(raw).tolist()}


def test_isbi(test_data):
    kwargs = {
        "channels": 1,
        "root": f"{test_data}/isbi2012_membrane",
        "images": "train/image",
        "masks": "train/label",
        "classes": ("membrane", "interior"),
        "ids": {"0": "membrane", "255": "interior"},
        "fractions": {"train": (0, 0.8), "test": (0.8, 1)},
    }
    train, test = (folder(split, **kwargs) for split in ("train", "test"))
    assert train.stems == tuple(map(str, range(24))) and test.stems == tuple(map(str, range(24, 30)))
    sample = test.read(0)
    assert sample["image"].shape == (512, 512, 1)
    assert set(np.unique(sample["label"])) == {0, 1}


def test_nuclei(test_data):
    """Data Science Bowl 2018: as many objects as its index says."""
    source = folder(
        "test",
        root=f"{test_data}/dsb2018",
        images="{split}/images",
        instances="{split}/labels",
        classes=("background", "nucleus"),
    )
    index = json.loads((source.images[0].parent.parent.parent / "index.json").read_text())
    assert len(source) == 65
    found = audit(source)
    assert not found.errors and found.ids == {}
    assert found.objects == (0, sum(index[stem]["instances"] for stem in source.stems)) == (0, 4152)
    assert found.most_objects == max(index[stem]["instances"] for stem in source.stems)


def test_pedestrians(test_data):
    source = folder(
        "all",
        root=f"{test_data}/pennfudan",
        images="images",
        instances="masks/{stem}_mask.png",
        classes=("background", "pedestrian"),
        fractions={"all": (0, 1)},
    )
    found = audit(source)
    assert (found.samples, found.objects, found.errors) == (170, (0, 423), {})


def exif_of(tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    return exif


@pytest.mark.parametrize("tag", [3, 6, 8])
def test_a_mask_decides_whether_a_picture_is_upright(tmp_path, tag):
    """A mask drawn on the upright picture, or on the stored one where its size says so."""
    upright = label_of("a")
    stored = {3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1)}[tag]
    save(tmp_path / "images/a.png", image_of(stored), exif=exif_of(tag))
    for mask in (upright, stored) if tag != 3 else (upright,):
        save(tmp_path / "masks/a.png", np.ascontiguousarray(mask))
        source = make(tmp_path)
        sample = source.read(0)
        np.testing.assert_array_equal(sample["image"], image_of(sample["label"]))
        assert source.size(0) == mask.shape and audit(source).facts["image orientation"]
    save(tmp_path / "masks/a.png", np.ascontiguousarray(stored))
    sample = make(tmp_path, reading=Reading(orientation="stored")).read(0)
    np.testing.assert_array_equal(sample["image"], image_of(sample["label"]))


def save_pages(path, pages):
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *more = map(Image.fromarray, pages)
    first.save(path, save_all=True, append_images=more)


def test_pages_of_stacks_are_samples(tmp_path):
    labels = [label_of(str(i)) for i in range(11)]
    save_pages(tmp_path / "images/v.tif", [image_of(label) for label in labels])
    save_pages(tmp_path / "masks/v.tif", labels)
    save(tmp_path / "images/w.png", image_of(labels[0]))
    save(tmp_path / "masks/w.png", labels[0])
    source = make(tmp_path)
    assert [source.name(i) for i in (0, 10, 11)] == ["v_page01", "v_page11", "w"] and len(source) == 12
    for i, label in enumerate([*labels, labels[0]]):
        np.testing.assert_array_equal(source.read(i)["label"], label)
        np.testing.assert_array_equal(source.read(i)["image"], image_of(label))
    parts = {"train": (0, 0.75), "test": (0.75, 1)}  # a stack may be divided between splits, in one place
    assert make(tmp_path, "train", fractions=parts).stems == source.stems[:9]
    assert make(tmp_path, "test", fractions=parts).stems == source.stems[9:]
    np.testing.assert_array_equal(make(tmp_path, "test", fractions=parts).read(0)["label"], labels[9])
    save_pages(tmp_path / "masks/v.tif", labels[:3])
    with pytest.raises(UserError, match=r"v\.tif holds 11 pages, but .*masks/v\.tif 3"):
        make(tmp_path)
    save_pages(tmp_path / "images/v.tif", [label * 9 for label in labels[:3]])
    save(tmp_path / "masks/v.tif", labels[0])
    (tmp_path / "images/w.png").unlink()
    joined = make(tmp_path, channels=3, reading=Reading(pages="channels")).read(0)["image"]
    np.testing.assert_array_equal(joined, np.stack(labels[:3], -1) * 9)


def test_files_that_fit_no_image_are_said(tmp_path, caplog):
    write(tmp_path, ["a", "b", "c"], image="images/{}.jpg")
    (tmp_path / "images/b.jpg").rename(tmp_path / "images/b.JPG")
    (tmp_path / "images/c.jpg").rename(tmp_path / "images/c.jpeg")
    source = make(tmp_path, images="images/{stem}.jpg")
    assert source.stems == ("a", "b") and "1 of 3 files fit no image" in caplog.text and "masks/c.png" in caplog.text
    assert any("masks/c.png" in text for text in problems({"all": audit(source)}))
    caplog.clear()
    assert make(tmp_path, masks="masks/{stem}.PNG").stems == ("a", "b", "c") and not caplog.text
    fractions = {"all": (0, 0.4)}  # masks of another split fit an image
    assert make(tmp_path, fractions=fractions).warnings == ()


def test_the_stems_of_images_decide_what_a_star_stands_for(tmp_path):
    for stem, name in (("img1", "img1_seg_v2"), ("img1_1", "img1_1_seg"), ("b/2", "b/2_x_y")):
        save(tmp_path / f"images/{stem}.png", image_of(label_of(stem)))
        save(tmp_path / f"masks/{name}.png", label_of(stem))
    check_pairs(make(tmp_path, masks="masks/{stem}_*.png"), ["b/2", "img1", "img1_1"])
    save(tmp_path / "masks/img1_seg_v3.png", label_of("img1"))
    with pytest.raises(UserError, match=r"img1_seg_v\d\.png and .*img1_seg_v\d\.png"):
        make(tmp_path, masks="masks/{stem}_*.png")


def test_lists_name_images_by_their_whole_names(tmp_path):
    write(tmp_path, ["img", "img 1", "a.b", "#7"], image="images/{}.jpg")
    write(tmp_path, ["caf\u00e9"], image="images/{}.jpg")
    lists = {"lists": "{split}.txt", "fractions": None, "images": "images/{stem}.jpg"}

    def listed(text):
        (tmp_path / "train.txt").write_text(text, encoding="utf-8-sig")
        return list(make(tmp_path, "train", **lists).stems)

    for text, stems in (
        ("img 1\nimg\n", ["img 1", "img"]),
        ("images/img 1.jpg masks/img 1.png\n", ["img 1"]),
        ("/elsewhere/images/img 1.jpg,masks/img 1.png\n", ["img 1"]),
        ("img 1\tcat\nimg\tdog\n", ["img 1", "img"]),
        ("a.b\n#7\n# comment\n", ["a.b", "#7"]),
        ("images\\img.jpg\r\n", ["img"]),
        ("cafe\u0301.jpg\n", ["caf\u00e9"]),
    ):
        assert listed(text) == stems
    for text, name in (("img 2\n", "img 2"), ("val/img.jpg\n", "val/img.jpg"), ("img.b\n", "img.b")):
        with pytest.raises(UserError, match=rf"train\.txt.*{name}.*has no image"):
            listed(text)


def test_where_labels_count(tmp_path):
    """DRIVE's fields of view."""
    write(tmp_path, ["a"])
    view = np.zeros((4, 6), np.uint8)
    view[:, 1:5] = 255
    save(tmp_path / "view/a_view.gif", view)
    source = make(tmp_path, valid="view/{stem}_view.gif")
    want = np.where(view, label_of("a"), 255)
    np.testing.assert_array_equal(source.read(0)["label"], want)
    assert source.size(0) == (4, 6)
    save(tmp_path / "view/a_view.gif", view[:3])
    for look in (source.size, source.read):
        with pytest.raises(UserError, match=r"images/a\.png has 4 x 6 .*view/a_view\.gif has"):
            look(0)
    (tmp_path / "view/a_view.gif").unlink()
    with pytest.raises(UserError, match=r"source\.valid: 1 of 1 images have no mask of valid pixels"):
        make(tmp_path, valid="view/{stem}_view.gif")


def test_no_data_of_masks_is_unlabelled_unless_it_is_a_class(tmp_path):
    save(tmp_path / "images/a.png", image_of(label_of("a")))

    def label(nodata, **keys):
        tags = [(42113, "s", 4, nodata, True)]
        (tmp_path / "masks").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "masks/a.tif", label_of("a") + 5, extratags=tags)
        return make(tmp_path, classes=("a", "b"), **keys).read(0)["label"]

    want = np.array([0, 1, 255])[label_of("a")]
    np.testing.assert_array_equal(label("7", ids={"5": "a", "6": "b"}), want)
    np.testing.assert_array_equal(label("7", ids={"5": "a", "6": "b"}, ignore_ids=(7,)), want)
    np.testing.assert_array_equal(label("6", ids={"5": "a", "6": "b"}, ignore_ids=(7,)), want)
    tifffile.imwrite(tmp_path / "masks/a.tif", label_of("a"), extratags=[(42113, "s", 2, "0", True)])
    with pytest.raises(UserError, match=r"a\.tif declares the value 0 as no data, but 0 is the class 'a'"):
        make(tmp_path).read(0)


def test_images_without_data_are_unlabelled(tmp_path):
    label, pixels = label_of("a"), image_of(label_of("a"))
    pixels[0] = 200
    (tmp_path / "images").mkdir()
    tags = [(42113, "s", 4, "200", True)]
    tifffile.imwrite(tmp_path / "images/a.tif", pixels, photometric="rgb", extratags=tags)
    save(tmp_path / "masks/a.png", label)
    found = make(tmp_path).read(0)["label"]
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[1:], label[1:])


def test_masks_of_several_encodings_are_named(tmp_path):
    write(tmp_path, ["a", "b"])
    save(tmp_path / "images/c.png", image_of(label_of("c")))
    for colours in ([[0] * 3, [9] * 3, [200] * 3], [[200] * 3, [9] * 3, [0] * 3]):
        indexed = Image.fromarray(label_of("c"))
        indexed.putpalette(np.ravel(colours).tolist())
        save(tmp_path / "masks/c.png", indexed)
        (found,) = [text for text in problems({"all": audit(make(tmp_path))}) if "encoded" in text]
        assert "2 as grey uint8" in found and "1 as palette " in found
    table = {"a": (0, 0, 0), "b": (1, 1, 1), "c": [(2, 2, 2), (9, 9, 9), (200, 200, 200)]}
    assert not [text for text in problems({"all": audit(make(tmp_path, colours=table))}) if "encoded" in text]


def test_a_threshold_makes_two_classes(tmp_path):
    half = np.zeros((16, 16), np.uint8)
    half[:, 8:] = 255
    save(tmp_path / "images/a.jpg", half)
    save(tmp_path / "masks/a.jpg", half, quality=70)
    source = make(tmp_path, classes=("no", "yes"), threshold=128)
    np.testing.assert_array_equal(source.read(0)["label"], half // 255)
    for keys in ({"ids": {"0": "no", "255": "yes"}}, {"classes": ("a", "b", "c")}, {"ignore_ids": (3,)}):
        with pytest.raises(UserError, match=r"source\.threshold"):
            make(tmp_path, **{"classes": ("no", "yes"), "threshold": 128} | keys)


def test_links_that_turn_in_circles_end(tmp_path):
    write(tmp_path, ["a"])
    (tmp_path / "images/loop").symlink_to(tmp_path / "images")
    assert make(tmp_path).stems == ("a",)


def test_one_class_is_refused_and_the_background_named(tmp_path):
    write(tmp_path, ["a"])
    for keys in ({}, {"ids": {"0": "cell", "1": "cell", "2": "cell"}}, {"ignore_ids": (0,)}):
        with pytest.raises(UserError, match="'background', 'cell'"):
            make(tmp_path, classes=("cell",), **keys)
