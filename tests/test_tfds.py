"""TFDS as a data source: pixels come back exactly, and faults name their fix."""

import dataclasses
import importlib.util
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from segjax.checks import UserError
from segjax.data.reading import CorruptImage, SizeMismatch
from segjax.data.sources.tfds import SEGMENT, tfds

CLASSES = ("background", "cat", "dog")
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]
COUNT = 6
THINGS = ("cat", "person")


def truth(i):
    """Pixels of record i; every record has a size of its own."""
    rng = np.random.default_rng(i)
    shape = 5 + i, 9
    return rng.integers(0, 256, (*shape, 3), dtype=np.uint8), rng.integers(0, 3, shape, dtype=np.uint8)


def panoptic(i):
    """Segment ids and the list of segments of record i: two objects, a crowd, a stuff, and an unlabelled last row."""
    shape = 5 + i, 9
    ids = np.full(shape, 3 + i)
    ids[0, :4], ids[1, :5], ids[2], ids[-1] = 70000, 900, 256, 0
    segments = [
        {"id": 256, "label": "person", "is_crowd": True},
        {"id": 3 + i, "label": "sky", "is_crowd": False},
        {"id": 900, "label": "cat", "is_crowd": False},
        {"id": 70000, "label": "person", "is_crowd": False},
    ]
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8), segments[: None if i else 3]


def png(pixels, palette=None):
    picture, file = Image.fromarray(pixels), io.BytesIO()
    if palette:
        picture.putpalette(palette)
    picture.save(file, "PNG")
    file.seek(0)
    return file


class SegjaxToy(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Every way to keep a mask in TFDS, and every fault."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self):
        kinds = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=kinds.FeaturesDict(
                {
                    "image": kinds.Image(shape=(None, None, 3)),
                    "deep": kinds.Image(shape=(None, None, 1), dtype=np.uint16),
                    "float": kinds.Image(shape=(None, None, 1), dtype=np.float32),
                    "palette": kinds.LabeledImage(shape=(None, None, 1), labels=list(CLASSES)),
                    "grey3": kinds.Image(shape=(None, None, 3)),
                    "mask16": kinds.Image(shape=(None, None, 1), dtype=np.uint16),
                    "tensor": kinds.Tensor(shape=(None, 9), dtype=np.int32),
                    "zipped": kinds.Tensor(shape=(None, None, 1), dtype=np.int64, encoding="zlib"),
                    "flag": kinds.Tensor(shape=(None, 9), dtype=np.bool_),
                    "small": kinds.Image(shape=(None, None, 1)),
                    "broken": kinds.Image(shape=(None, None, 1)),
                    "nested": kinds.Sequence({"box": kinds.BBoxFeature()}),
                    "panoptic": kinds.Image(shape=(None, None, 3), encoding_format="png"),
                    "segments": kinds.Sequence(
                        {
                            "id": np.int64,
                            "area": np.int64,
                            "label": kinds.ClassLabel(names=["sky", "cat", "person"]),
                            "is_crowd": np.bool_,
                        }
                    ),
                    "label": kinds.ClassLabel(names=["a", "b"]),
                    "text": kinds.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(COUNT):
            image, label = truth(i)
            pixels, segments = panoptic(i)
            yield (
                i,
                {
                    "image": image,
                    "deep": image[..., :1].astype(np.uint16) * 100,
                    "float": image[..., :1].astype(np.float32),
                    "palette": png(label, PALETTE),
                    "grey3": png(label),
                    "mask16": label[..., None].astype(np.uint16) * 1000,
                    "tensor": label.astype(np.int32) - 1,
                    "zipped": label[..., None].astype(np.int64),
                    "flag": label > 0,
                    "small": label[:-1, :, None],
                    "broken": io.BytesIO(png(label).getvalue()[:50]),
                    "nested": {"box": [tensorflow_datasets.features.BBox(0.0, 0.0, 1.0, 1.0)]},
                    "panoptic": pixels,
                    "segments": [segment | {"area": 1} for segment in segments],
                    "label": i % 2,
                    "text": str(i),
                },
            )


def prepare(folder, file_format):
    made = SegjaxToy(data_dir=folder, file_format=file_format)
    made.download_and_prepare()
    return str(folder)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"), "array_record")


def toy(folder, split="train", **kwargs):
    return tfds(split, **{"builder": "segjax_toy", "mask": "palette", "data_dir": folder} | kwargs)


def numbers(source):
    """Which `truth` each record is: TFDS shuffles, and rows count up from 5."""
    return [source.size(i)[0] - 5 for i in range(len(source))]


@pytest.mark.parametrize(
    ("mask", "kwargs"),
    [
        ("palette", {}),
        ("grey3", {"classes": CLASSES}),
        ("mask16", {"classes": CLASSES, "ids": {"0": "background", "1000": 1, "2000": "dog"}}),
        ("zipped", {"classes": CLASSES}),
    ],
)
def test_labels_are_exact(data_dir, mask, kwargs):
    source = toy(data_dir, mask=mask, **kwargs)
    assert source.spec.classes == CLASSES
    order = numbers(source)
    assert sorted(order) == list(range(COUNT))
    for i, number in enumerate(order):
        image, label = truth(number)
        sample = source.read(i)
        assert set(sample) == {"image", "label"} and sample["label"].dtype == np.uint8
        np.testing.assert_array_equal(sample["image"], image)
        np.testing.assert_array_equal(sample["label"], label)


def test_tensors_and_flags(data_dir):
    source = toy(data_dir, mask="flag", classes=("no", "yes"))
    for i, number in enumerate(numbers(source)):
        np.testing.assert_array_equal(source.read(i)["label"], truth(number)[1] > 0)
    # ids start at -1 there: a number that no table can hold.
    source = toy(data_dir, mask="tensor", classes=CLASSES)
    count = int((truth(numbers(source)[0])[1] == 0).sum())
    assert source.ids(0)[-1] == count
    with pytest.raises(UserError, match=rf"segjax_toy_train_000000 \(tensor\).*: -1 \({count} pixels\)"):
        source.read(0)


def test_ids_and_ignored(data_dir):
    source = toy(
        data_dir, classes=("animal", "rest"), ids={"1": 0, "2": "animal", "0": "rest"}, palette=[[1, 2, 3]] * 2
    )
    plain = toy(data_dir)
    ignored = toy(data_dir, classes=("animal", "rest"), ids={"1": 0, "0": 1}, ignore_ids=(2,), things=[0])
    assert source.spec.colours == ((1, 2, 3), (1, 2, 3)) and ignored.spec.things == (0,)
    for i, number in enumerate(numbers(plain)):
        raw = truth(number)[1]
        assert plain.ids(i) == {v: int((raw == v).sum()) for v in np.unique(raw).tolist()}
        np.testing.assert_array_equal(source.read(i)["label"], raw == 0)
        np.testing.assert_array_equal(ignored.read(i)["label"], np.array([1, 0, 255])[raw])


def test_grey_and_deep_images(data_dir):
    grey = toy(data_dir, channels=1)
    deep = toy(data_dir, image="deep", channels=1)
    assert grey.spec.image_dtype == "uint8" and deep.spec.image_dtype == "uint16"
    for i, number in enumerate(numbers(grey)):
        image = truth(number)[0]
        np.testing.assert_array_equal(grey.read(i)["image"][..., 0], np.array(Image.fromarray(image).convert("L")))
        np.testing.assert_array_equal(deep.read(i)["image"], 100 * image[..., :1].astype(np.uint16))


def test_splits(data_dir):
    whole, first, last = (toy(data_dir, split) for split in ("train", "train[:50%]", "train[50%:]"))
    assert numbers(first) + numbers(last) == numbers(whole)
    assert first.name(2) == "segjax_toy_train-50_000002" and first.name(2) != whole.name(2)
    assert len({source.name(0) for source in (whole, first, last)}) == 3


def test_threads_agree(data_dir):
    source = toy(data_dir)
    once = [source.read(i) for i in range(COUNT)]
    barrier = threading.Barrier(4)

    def read(thread):
        barrier.wait()
        return [source.read((i + thread) % COUNT) for i in range(COUNT)]

    with ThreadPoolExecutor(4) as pool:
        for thread, samples in enumerate(pool.map(read, range(4))):
            for i, sample in enumerate(samples):
                np.testing.assert_array_equal(sample["label"], once[(i + thread) % COUNT]["label"])
                np.testing.assert_array_equal(sample["image"], once[(i + thread) % COUNT]["image"])


@pytest.mark.parametrize(
    ("split", "kwargs", "message"),
    [
        ("train", {"image": "picture"}, "no feature 'picture', only .*palette"),
        ("train", {"image": "label"}, "source.image: feature 'label' of segjax_toy is not an Image"),
        ("train", {"image": "float"}, "source.image: feature 'float'"),
        ("train", {"mask": "text"}, "source.mask: feature 'text'"),
        ("train", {"mask": "label"}, "source.mask: feature 'label'"),
        ("train", {"mask": "float"}, "source.mask: feature 'float'"),
        ("train", {"mask": "grey3"}, "source.classes: feature 'grey3'"),
        ("train", {"ids": {"0": "horse"}}, "source.ids: 'horse' is "),
        ("train", {"ignore_ids": (1,)}, "id 1 .*source.ignore_ids"),
        ("train", {"panoptic": "gone"}, r"source\.panoptic: segjax_toy has no feature 'gone'"),
        ("train", {"panoptic": "label"}, r"source\.panoptic: feature 'label' of segjax_toy is not an Image"),
        ("train", {"panoptic": "panoptic"}, r"source\.objects: segjax_toy has no feature 'panoptic_objects'"),
        (
            "train",
            {"panoptic": "panoptic", "objects": "nested"},
            "objects: 'nested' .* not a Sequence of id, label",
        ),
        (
            "train",
            {"panoptic": "panoptic", "objects": "text"},
            "objects: 'text' .* not a Sequence of id, label",
        ),
        ("train", {"panoptic": "panoptic", "objects": "segments"}, r"source\.panoptic needs source\.things"),
        (
            "train",
            {"panoptic": "panoptic", "objects": "segments", "things": (1,), "ignore_ids": (0,)},
            "remove source.ids and ignore_ids",
        ),
        ("train", {"things": ("horse",)}, "source.things: 'horse' is "),
        ("valid", {}, "no split 'valid' of segjax_toy.*'train'"),
        ("train[:x%]", {}, r"no split 'train\[:x%\]'"),
        ("train", {"builder": "segjax_toi"}, "TFDS cannot build 'segjax_toi'.*not found"),
        ("train", {"builder": "oxford_iiit_pet:1.*.*"}, r"oxford_iiit_pet.*version 1\.\*"),
        ("train", {"data_dir": "$SEGJAX_NO_SUCH_VARIABLE"}, "SEGJAX_NO_SUCH_VARIABLE"),
    ],
)
def test_faults_of_the_configuration(data_dir, split, kwargs, message):
    with pytest.raises(UserError, match=message):
        toy(data_dir, split, **kwargs)


def test_panoptic(data_dir):
    """Segments of colours that are ids, as in coco/2017_panoptic."""
    source = toy(data_dir, panoptic="panoptic", objects="segments", things=THINGS)
    assert source.spec.classes == ("sky", "cat", "person") and source.spec.things == (1, 2)
    for i, number in enumerate(numbers(source)):
        if number == 0:  # its list lacks a segment
            with pytest.raises(UserError, match=r"0000\d+ \(panoptic\): id 70000 \(4 pixels\) .*segments\)"):
                source.read(i)
            continue
        label, instance = np.zeros((2, 5 + number, 9), int)
        label[0, :4], label[1, :5], label[2], label[-1] = 2, 1, 2, 255
        instance[0, :4], instance[1, :5] = 2, 1
        sample = source.read(i)
        np.testing.assert_array_equal(sample["label"], label)
        np.testing.assert_array_equal(sample["instance"], instance)
        np.testing.assert_array_equal(sample["image"], truth(number)[0])
        assert source.ids(i) == {} and source.size(i) == label.shape


def test_segment_listed_twice(data_dir):
    source = toy(data_dir, panoptic="panoptic", objects="segments", things=THINGS)
    record = source.records[0]
    record["segments"] = {key: np.append(values, values[1:2]) for key, values in record["segments"].items()}
    again = record["segments"]["id"][-1]
    with pytest.raises(UserError, match=rf"segjax_toy_train_000000 \(segments\): segment {again} is listed twice"):
        dataclasses.replace(source, records=[record]).read(0)


def test_coco_has_these_features():
    """What TFDS keeps of COCO's panoptic ground truth is what the source looks for."""
    made = tensorflow_datasets.builder("coco/2017_panoptic", data_dir="/nowhere")
    features = made.info.features
    assert isinstance(features["panoptic_image"], tensorflow_datasets.features.Image)
    assert set(SEGMENT) <= set(features["panoptic_objects"].feature)


def test_faults_of_records(data_dir):
    with pytest.raises(SizeMismatch, match=r"000000 \(image\) has .* but its mask segjax_toy_train_000000 \(small\)"):
        toy(data_dir, mask="small", classes=CLASSES).read(0)
    with pytest.raises(CorruptImage, match=r"segjax_toy_train_000000 \(broken\)"):
        toy(data_dir, mask="broken", classes=CLASSES).read(0)
    with pytest.raises(UserError, match=r": 1 \(\d+ pixels\), 2 \(\d+ pixels\).*source.ignore_ids"):
        toy(data_dir, ids={"0": 0}).read(0)


def test_other_file_format(tmp_path):
    with pytest.raises(UserError, match=r"segjax_toy/1\.0\.0 holds segjax_toy as tfrecord files.*source.data_dir"):
        toy(prepare(tmp_path, "tfrecord"))


def test_prepares_what_is_not_there_and_says_so(tmp_path, capsys, caplog):
    caplog.set_level("INFO", "segjax")
    source = toy(str(tmp_path))
    assert [r.message for r in caplog.records if r.name == "segjax"] == [
        f"Preparing segjax_toy/1.0.0 in {tmp_path}/segjax_toy/1.0.0; missing files are downloaded."
    ]
    assert len(source) == COUNT and (tmp_path / "segjax_toy" / "1.0.0" / "dataset_info.json").is_file()
    assert capsys.readouterr().out == ""


def test_cannot_be_prepared(tmp_path, monkeypatch):
    def fail(self):
        raise ConnectionError("no route to host\nsecond line")
        yield

    monkeypatch.setattr(SegjaxToy, "_generate_examples", fail)
    with pytest.raises(
        UserError, match=r"not be prepared: .*no route to host\. Set .*TFDS_DATA_DIR.*tfds build segjax_toy"
    ):
        toy(str(tmp_path))


@pytest.mark.parametrize("module", ["tensorflow", "array_record"])
def test_without_tensorflow(data_dir, monkeypatch, module):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == module else find(name, *a))
    with pytest.raises(UserError, match=rf"needs {module}.*segjax\[tf\]"):
        toy(data_dir)


def test_pets(tmp_path):
    """The pet example's configuration fits the features of that set; TFDS makes up the pixels."""
    with tensorflow_datasets.testing.mock_data(num_examples=3):
        source = tfds(
            "train[:80%]",
            builder="oxford_iiit_pet:4.*.*",
            classes=("pet", "background", "border"),
            ids={"1": "pet", "2": "background", "3": "border"},
            data_dir=str(tmp_path),
        )
        assert len(source) == 3
        assert source.name(0) == "oxford_iiit_pet_train-80_000000"
        rows, columns = source.size(0)
        assert sum(source.ids(0).values()) == rows * columns
        with pytest.raises(UserError, match=r"oxford_iiit_pet_train-80_000000 .*(but its mask|ids without)"):
            source.read(0)
