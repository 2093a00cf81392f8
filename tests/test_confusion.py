import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parts import spec_of

from segjax.metrics import confusion, multilabel
from segjax.spec import DatasetSpec

pytestmark = pytest.mark.core

NAMES = ("road", "car", "tree")
SPECS = {2: DatasetSpec(("a", "b")), 3: DatasetSpec(NAMES)}
EMPTY = np.zeros((3, 3), np.int32)


def maps(rng, b=3, y=37, x=53, k=5):
    prediction, label = rng.integers(0, k, (2, b, y, x)).astype(np.int32)
    return prediction, label, rng.random((b, y, x)) < 0.7


def brute_force(prediction, label, valid, k):
    matrix = np.zeros((len(label), k, k), np.int64)
    for image, *pixel in zip(*np.nonzero(valid), strict=True):
        at = (image, *pixel)
        matrix[image, label[at], prediction[at]] += 1
    return matrix


def device(*arrays):
    return tuple(jnp.asarray(a) for a in arrays)


def batches(count=6, k=3):
    """Matrices of images of very different size and content; the last image of each batch is padding."""
    rng = np.random.default_rng(0)
    for i in range(count):
        matrices = rng.integers(0, 10 ** (i + 1), (4, k, k)) * (rng.random((4, k, 1)) < 0.7)
        matrices[-1] = 0
        yield matrices.astype(np.int32)


def counted(*matrices):
    return confusion.update(confusion.new(SPECS[len(matrices[0])]), np.asarray(matrices, np.int32))


@pytest.mark.parametrize("shape", [(3, 37, 53, 5), (1, 1, 1, 2), (2, 3, 130, 21)])
def test_matrix_is_brute_force(shape):
    prediction, label, valid = maps(np.random.default_rng(0), *shape)
    matrix = jax.jit(confusion.confusion_matrix, static_argnums=3)(*device(label, prediction, valid), shape[-1])
    np.testing.assert_array_equal(matrix, brute_force(prediction, label, valid, shape[-1]))
    np.testing.assert_array_equal(matrix.sum((1, 2)), valid.sum((1, 2)))


def test_predictions_on_ignored_pixels_never_count():
    prediction, label, valid = maps(np.random.default_rng(1))
    other = np.where(valid, prediction, (prediction + 1) % 5)
    a, b = (confusion.confusion_matrix(*device(label, p, valid), 5) for p in (prediction, other))
    np.testing.assert_array_equal(a, b)
    assert not confusion.confusion_matrix(*device(label, prediction, np.zeros_like(valid)), 5).any()


def test_row_by_row_is_the_same(monkeypatch):
    prediction, label, valid = maps(np.random.default_rng(2))
    monkeypatch.setattr(confusion, "_EXACT_FLOAT32", 53)
    matrix = confusion.confusion_matrix(*device(label, prediction, valid), 5)
    np.testing.assert_array_equal(matrix, brute_force(prediction, label, valid, 5))


@pytest.mark.parametrize("y", [2048, 2049])
def test_exact_up_to_and_beyond_the_integers_of_float32(y):
    ones = jnp.ones((1, y, 2**13), jnp.int32)
    valid = jnp.ones(ones.shape, bool).at[0, 0, 0].set(False)
    matrix = jax.jit(confusion.confusion_matrix, static_argnums=3)(ones, ones, valid, 2)
    np.testing.assert_array_equal(matrix, [[[0, 0], [0, y * 2**13 - 1]]])


def test_multilabel_is_brute_force():
    rng = np.random.default_rng(3)
    prediction, target, valid = rng.random((3, 2, 37, 53, 4)) < np.array([0.3, 0.6, 0.8]).reshape(3, 1, 1, 1, 1)
    counts = jax.jit(multilabel.multilabel_confusion)(*device(target, prediction, valid))
    assert counts.dtype == jnp.int32
    for k in range(4):
        one = (prediction[..., k].astype(int), target[..., k].astype(int), valid[..., k])
        np.testing.assert_array_equal(counts[:, k], brute_force(*one, 2))


def test_hand_worked_figures():
    """Two images of 3 classes; the third class is nowhere, and the second image holds one class only."""
    first = [[6, 2, 0], [1, 3, 0], [0, 0, 0]]
    second = [[4, 0, 0], [0, 0, 0], [0, 0, 0]]
    figures = confusion.summary(counted(first, second, EMPTY))
    assert figures == {
        "mIoU": pytest.approx((10 / 13 + 3 / 6) / 2),
        "mean_dice": pytest.approx((20 / 23 + 6 / 9) / 2),
        "pixel_accuracy": pytest.approx(13 / 16),
        "mean_accuracy": pytest.approx((10 / 12 + 3 / 4) / 2),
        "frequency_weighted_IoU": pytest.approx(12 / 16 * 10 / 13 + 4 / 16 * 3 / 6),
        "mean_image_IoU": pytest.approx(((6 / 9 + 3 / 6) / 2 + 1) / 2),
        "iou_per_class": {"road": pytest.approx(10 / 13), "car": 0.5, "tree": None},
        "dice_per_class": {"road": pytest.approx(20 / 23), "car": pytest.approx(6 / 9), "tree": None},
        "precision_per_class": {"road": pytest.approx(10 / 11), "car": pytest.approx(3 / 5), "tree": None},
        "recall_per_class": {"road": pytest.approx(10 / 12), "car": 0.75, "tree": None},
        "classes_averaged": 2,
        "images": 2,
        "pixels": 16,
    }
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.parametrize("absent, fill", [("zero", 0), ("one", 1)])
def test_absent_classes_as_zero_or_one(absent, fill):
    state = counted([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    skipped, figures = confusion.summary(state), confusion.summary(state, absent=absent)
    for name in ("mIoU", "mean_dice", "mean_accuracy"):
        assert figures[name] == pytest.approx((2 * skipped[name] + fill) / 3)
    assert figures["classes_averaged"] == 3
    same = set(figures) - {"mIoU", "mean_dice", "mean_accuracy", "classes_averaged"}
    assert {k: figures[k] for k in same} == {k: skipped[k] for k in same}


def test_a_class_only_predicted_scores_zero_but_has_no_recall():
    figures = confusion.summary(counted([[3, 1], [0, 0]]))
    assert figures["iou_per_class"] == {"a": 0.75, "b": 0.0}
    assert figures["recall_per_class"] == {"a": 0.75, "b": None}
    assert figures["mIoU"] == 0.375 and figures["mean_accuracy"] == 0.75 and figures["classes_averaged"] == 2


def test_dataset_and_image_iou_differ():
    figures = confusion.summary(counted([[0, 1], [0, 1]], [[98, 0], [0, 98]]))
    assert figures["mIoU"] == pytest.approx((98 / 99 + 99 / 100) / 2)
    assert figures["mean_image_IoU"] == pytest.approx(((0 + 1 / 2) / 2 + 1) / 2)


@pytest.mark.parametrize("absent", ["skip", "zero", "one"])
@pytest.mark.parametrize("multilabel", [False, True])
def test_nothing_labelled_gives_null(absent, multilabel):
    state = confusion.new(DatasetSpec(NAMES, mode="multilabel" if multilabel else "multiclass"))
    padding = np.zeros((2, *state.total.shape), np.int32)
    figures = confusion.summary(confusion.update(state, padding), absent=absent)
    means = [v for k, v in figures.items() if not isinstance(v, dict) and k not in ("images", "pixels")]
    assert means == [None] * 6 + [0]
    assert figures["images"] == figures["pixels"] == 0
    assert "null" in json.dumps(figures, allow_nan=False)


def test_multilabel_figures():
    """Class a: tp 2, fp 1, fn 1, tn 4; class b: nowhere. The second image holds and predicts nothing."""
    first = [[[4, 1], [1, 2]], [[8, 0], [0, 0]]]
    second = [[[5, 0], [0, 0]], [[5, 0], [0, 0]]]
    state = confusion.update(
        confusion.new(DatasetSpec(("a", "b"), mode="multilabel")), np.array([first, second], np.int32)
    )
    figures = confusion.summary(state)
    assert figures["iou_per_class"] == {"a": 0.5, "b": None}
    assert figures["dice_per_class"] == {"a": pytest.approx(4 / 6), "b": None}
    assert figures["precision_per_class"]["a"] == figures["recall_per_class"]["a"] == pytest.approx(2 / 3)
    assert figures["mIoU"] == figures["mean_image_IoU"] == figures["frequency_weighted_IoU"] == 0.5
    assert figures["pixel_accuracy"] == pytest.approx(24 / 26)
    assert (figures["images"], figures["pixels"], figures["classes_averaged"]) == (2, 26, 1)


def test_states_merge_in_any_order_and_padding_is_nothing():
    parts = list(batches())
    new = confusion.new(spec_of(3))
    a, b, c = (confusion.update(confusion.update(new, parts[2 * i]), parts[2 * i + 1]) for i in range(3))
    together = confusion.update(new, np.concatenate([p[:-1] for p in parts]))
    for state in (
        confusion.merge(confusion.merge(a, b), c),
        confusion.merge(a, confusion.merge(b, c)),
        confusion.merge(confusion.merge(c, new), confusion.merge(b, a)),
    ):
        np.testing.assert_array_equal(state.total, together.total)
        assert (state.images, state.scored) == (together.images, together.scored)
        assert state.image_iou == pytest.approx(together.image_iou, rel=1e-12)
    assert new == confusion.merge(new, new)._replace(total=new.total) and not new.total.any()


def test_figures_match_brute_force_over_ragged_batches():
    rng = np.random.default_rng(4)
    state, pairs = confusion.new(spec_of(5)), []
    for b, y, x in ((3, 37, 53), (2, 11, 7), (4, 1, 9)):
        prediction, label, valid = maps(rng, b, y, x)
        label = label % 4  # class 4 is predicted, never true
        valid[-1] = False  # a padded row
        state = confusion.update(state, confusion.confusion_matrix(*device(label, prediction, valid), 5))
        pairs += [(p[v], t[v]) for p, t, v in zip(prediction, label, valid, strict=True) if v.any()]

    def ious(p, t):
        return {k: ((p == k) & (t == k)).sum() / u for k in range(5) if (u := ((p == k) | (t == k)).sum())}

    p, t = (np.concatenate(side) for side in zip(*pairs, strict=True))
    figures = confusion.summary(state)
    assert figures["pixels"] == len(t) and figures["images"] == len(pairs)
    assert figures["pixel_accuracy"] == pytest.approx((p == t).mean())
    assert list(figures["iou_per_class"].values()) == pytest.approx(list(ious(p, t).values()))
    assert figures["mIoU"] == pytest.approx(np.mean(list(ious(p, t).values())))
    assert figures["mean_image_IoU"] == pytest.approx(np.mean([np.mean(list(ious(*pair).values())) for pair in pairs]))


def test_totals_exceed_int32():
    state = confusion.new(spec_of(2))
    for _ in range(3):
        state = confusion.update(state, np.full((1, 2, 2), 2**31 - 1, np.int32))
    assert state.total.tolist() == [[3 * (2**31 - 1)] * 2] * 2
    assert confusion.summary(state)["pixels"] == 12 * (2**31 - 1)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 2, 2\).*\(3, 3\)"):
        confusion.update(confusion.new(spec_of(3)), np.zeros((4, 2, 2), np.int32))
