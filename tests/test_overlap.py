"""The metrics of one call are those of a count in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from segjax import metrics
from segjax.checks import UserError
from segjax.spec import DatasetSpec


def ious(label, prediction, classes):
    valid = label != 255
    for k in range(classes):
        t, p = (label == k) & valid, (prediction == k) & valid
        if (t | p).any():
            yield (t & p).sum() / (t | p).sum(), 2 * (t & p).sum() / (t.sum() + p.sum())


@pytest.mark.parametrize("shape", [(7, 9), (3, 7, 9)])
@pytest.mark.parametrize("classes", [4, np.int64(4), tuple("abcd"), DatasetSpec(tuple("abcd"))])
def test_as_in_numpy(shape, classes):
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 3, (2, *shape)).astype(np.uint8)  # class 3 is nowhere
    label[..., :2, :] = 255
    prediction[..., 0, :] = 200  # what is predicted on unlabelled pixels does not matter
    iou, dice = np.mean(list(ious(label, prediction, 4)), axis=0)
    assert metrics.mean_iou(label, jnp.asarray(prediction), classes) == pytest.approx(iou)
    assert metrics.dice(label, prediction, classes) == pytest.approx(dice)
    assert metrics.mean_iou(np.full_like(label, 255), prediction, classes) is None


def test_masks_and_classes_that_overlap():
    rng = np.random.default_rng(1)
    label, prediction = rng.random((2, 5, 8, 2)) < 0.5
    spec = DatasetSpec(("a", "b"), mode="multilabel")
    wanted = [(label & prediction)[..., k].sum() / (label | prediction)[..., k].sum() for k in (0, 1)]
    assert metrics.mean_iou(label, prediction, spec) == pytest.approx(np.mean(wanted))
    background = (~label & ~prediction)[..., 0].sum() / (~label | ~prediction)[..., 0].sum()
    assert metrics.mean_iou(label[..., 0], prediction[..., 0], 2) == pytest.approx((wanted[0] + background) / 2)


def test_what_is_no_class_is_named():
    label = np.zeros((2, 3), np.uint8)
    for prediction, classes, message in (
        (label + 2, 2, "prediction holds 2"), (label, DatasetSpec(("a", "b"), mode="multilabel"), r"\(2, 3\)"),
        (label[:1], 2, r"\(2, 3\) and prediction \(1, 3\)"), (label / 2, 2, "float64"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            metrics.mean_iou(label, prediction, classes)
    assert metrics.mean_iou(label + 7, label, 2, ignore=7) is None
    with pytest.raises(UserError, match="label holds 7"):
        metrics.mean_iou(label + 7, label, 2)
