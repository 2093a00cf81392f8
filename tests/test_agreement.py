"""Splits that are opened apart agree by the names of their classes; pictures that occur twice are found."""

import numpy as np
import pytest

import segjax
from segjax.checks import UserError
from segjax.data import agreement, audit
from segjax.data.sources.arrays import arrays
from segjax.spec import DatasetSpec
from segjax.train.loop import train_and_evaluate

RNG = np.random.default_rng(0)


def source(classes, label, split="test", **more):
    label = np.asarray(label)
    image = np.random.default_rng(label.sum()).integers(0, 256, (*label.shape[:3], 3), np.uint8)
    return arrays(split, data={split: {"image": image, "label": label}}, classes=classes, **more)


def test_other_order_and_fewer_classes_are_matched_by_name():
    label = [[[0, 1, 255, 1]]]
    spec = DatasetSpec(("car", "sky", "road"))
    for classes in (("road", "car"), ("sky", "road")):
        found = agreement.match(source(classes, label), spec, "test", "train")
        names = [None if k == 255 else spec.classes[k] for k in found.read(0)["label"].ravel()]
        assert names == [classes[0], classes[1], None, classes[1]]
        assert found.spec.classes == spec.classes and len(found) == 1 and found.name(0) == "test_0"
        assert found.size(0) == (1, 4)


def test_the_same_classes_stay_the_source_itself():
    opened = source(("a", "b"), [[[0, 1]]])
    assert agreement.match(opened, opened.spec, "test", "train") is opened
    assert agreement.match(opened, opened.spec.in_mode("binary"), "test", "train") is opened


def test_another_ignore_value():
    classes = tuple(f"class {k}" for k in range(300))
    opened = source(classes[:3], [[[0, 2, 255]]])
    found = agreement.match(opened, DatasetSpec(classes, ignore=65535), "test", "train").read(0)["label"]
    assert found.dtype == np.uint16 and found.tolist() == [[0, 2, 65535]]


def test_multilabel_classes_that_a_split_lacks_are_unlabelled():
    opened = source(("b", "a"), [[[[1, 0], [0, 255]]]])
    spec = DatasetSpec(("a", "b", "c"), mode="multilabel")
    assert agreement.match(opened, spec, "test", "train").read(0)["label"].tolist() == [[[0, 1, 255], [255, 0, 255]]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DatasetSpec(("a", "b")), r"classes that train lacks: c\. test: a, b, c\. train: a, b\."),
        (DatasetSpec(("a", "b", "c"), mode="multilabel"), "test has multiclass labels"),
        (DatasetSpec(("a", "b", "c"), things=(1,)), "countable objects are none in test, but b in train"),
        (DatasetSpec(("a", "b", "c"), image_channels=("grey",)), r"test has image channels .*red.*grey"),
        (DatasetSpec(("a", "b", "c"), image_dtype="uint16"), "test has pixels uint8, but train uint16"),
    ],
)
def test_what_cannot_be_matched_names_both(spec, message):
    with pytest.raises(UserError, match=message):
        agreement.match(source(("a", "b", "c"), [[[0, 1]]]), spec, "test", "train")


@pytest.mark.slow
def test_a_run_scores_a_split_in_another_order(tmp_path):
    """The same run, with the classes of its test split turned around, has the same score of each class."""
    label = RNG.integers(0, 2, (4, 16, 16))
    label[:, :, :8] = 0
    config = segjax.default_config(source="shapes")
    config.run.total, config.data.crop, config.data.batch_size, config.eval.batch_size = 2, (16, 16), 4, 4
    config.model.widths, config.log.tensorboard, config.loading.loader = (4, 8), False, "threads"
    train = source(("a", "b"), label, "train")
    scores = []
    for classes, turned in ((("a", "b"), label), (("b", "a"), 1 - label)):
        image = {"image": np.stack([train.read(i)["image"] for i in range(4)]), "label": turned}
        test = arrays("test", data={"test": image}, classes=classes)
        workdir = str(tmp_path / classes[0])
        scores.append(train_and_evaluate(config, workdir, sources={"train": train, "test": test})["iou_per_class"])
        again = segjax.evaluate_workdir(workdir, sources={"test": test})["iou_per_class"]
        assert again == scores[-1]
    assert scores[0] == scores[1]


def test_pictures_that_occur_twice_and_classes_that_do_not():
    a, b = source(("a", "b", "c"), [[[0, 1]], [[0, 1]]], "train"), source(("a", "b", "c"), [[[0, 2]]])
    twins = arrays("test", data={"test": {"image": a.images[:1], "label": a.labels[:1]}}, classes=("a", "b", "c"))
    object.__setattr__(a, "images", np.repeat(a.images[:1], 2, axis=0))
    found = audit.problems({"train": audit.audit(a), "test": audit.audit(twins)})
    assert [text for text in found if "'train'" in text and "train_0 = train_1" in text]
    assert [text for text in found if "both 'train' and 'test'" in text and "test_0" in text]
    assert [text for text in found if "1 of 3 classes" in text and "'train'" in text and text.endswith("c.")]
    assert audit.problems({"test": audit.audit(b)}) == ["1 of 3 classes occur in no sample of split 'test': b."]
    assert audit.problems({"test": audit.audit(b)}, whole=False) == []


def test_a_glance_before_the_run_finds_invalid_samples_and_a_single_class(tmp_path):
    only = source(("a", "b"), [[[1, 1]], [[255, 1]]])
    assert any("1 of 2 classes" in text and "a." in text for text in audit.glance({"test": only}))

    class Invalid:
        spec = DatasetSpec(("a", "b"))

        def __len__(self):
            return 1

        def name(self, i):
            return "odd"

        def read(self, i):
            return {"image": np.zeros((1, 1, 3), np.uint8), "label": np.array([[7]], np.uint8)}

    with pytest.raises(UserError, match=r"odd.*7"):
        audit.glance({"test": Invalid()})
