import numpy as np
import pytest
from scipy import ndimage

from segjax.checks import UserError
from segjax.metrics import boundary
from segjax.spec import DatasetSpec


def square(y, x, side=20, size=(60, 80)):
    mask = np.zeros(size, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def blobs(rng, size=(60, 80)):
    return ndimage.gaussian_filter(rng.standard_normal(size), 4) > 0.02


def eroded(mask, times):
    """One erosion after the other, pixels beyond the image being outside."""
    for _ in range(times):
        beyond = np.pad(mask, 1)
        around = [beyond[dy : dy + mask.shape[0], dx : dx + mask.shape[1]] for dy in range(3) for dx in range(3)]
        mask = np.all(around, axis=0)
    return mask


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ratio, width", [(0.02, 2), (0.05, 5), (0.001, 1), (0.5, 50)])
def test_boundary_iou_is_brute_force(seed, ratio, width):
    """The diagonal is 100 pixels."""
    rng = np.random.default_rng(seed)
    truth = blobs(rng)
    prediction = np.roll(truth, 2, 1) ^ blobs(rng) if seed % 2 else np.roll(truth, 1, 0)
    a, b = (mask & ~eroded(mask, width) for mask in (truth, prediction))
    assert boundary.boundary_iou(truth, prediction, ratio) == (a & b).sum() / (a | b).sum()


def test_boundary_iou_by_hand():
    """Rims 2 wide of two squares of 20, one a row lower: 400 - 256 pixels each.

    Shared are the left and right sides, 2 wide and 19 long, and of the rows between them one at the top and one at
    the bottom, 16 long.
    """
    truth, prediction = square(10, 10), square(11, 10)
    shared = 2 * 2 * 19 + 2 * 16
    assert boundary.boundary_iou(truth, prediction) == shared / (2 * 144 - shared)
    assert boundary.boundary_iou(truth, truth) == 1
    whole = np.ones((60, 80), bool)
    inner = whole.copy()
    inner[30, 40] = False
    rim = 60 * 80 - 56 * 76
    assert boundary.boundary_iou(whole, inner) == rim / (rim + 24)


@pytest.mark.parametrize("score", [boundary.boundary_iou, boundary.boundary_f_score])
def test_empty_masks(score):
    empty, one = np.zeros((60, 80), bool), square(10, 10)
    assert score(empty, empty) is None
    assert score(one, empty) == score(empty, one) == 0.0


def brute_force_f(truth, prediction, radius):
    """Every pixel of an outline against every pixel of the other."""

    def outline(mask):
        y, x = mask.shape
        at = [
            (i, j)
            for i in range(y)
            for j in range(x)
            if any(mask[i, j] != mask[min(i + di, y - 1), min(j + dj, x - 1)] for di, dj in ((0, 1), (1, 0), (1, 1)))
        ]
        return np.array(at)

    a, b = outline(truth), outline(prediction)
    near = ((a[:, None] - b[None]) ** 2).sum(-1) <= radius**2
    precision, recall = near.any(axis=0).mean(), near.any(axis=1).mean()
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance, radius", [(0.008, 1), (0.03, 3), (2, 2), (0.0201, 3), (2.5, 2.5)])
def test_boundary_f_score_is_brute_force(seed, tolerance, radius):
    rng = np.random.default_rng(seed)
    truth = blobs(rng)
    prediction = np.roll(truth, 2, 1) ^ square(20, 30, 9)
    found = boundary.boundary_f_score(truth, prediction, tolerance)
    assert found == pytest.approx(brute_force_f(truth, prediction, radius), rel=1e-12) and found > 0.1


def test_boundary_f_score_by_hand():
    """Two squares with outlines of 80 and 40 pixels; the prediction has the first only: precision 1, recall 2/3."""
    truth = square(10, 10) | square(40, 60, 10)
    assert boundary.boundary_f_score(truth, square(11, 10)) == pytest.approx(2 * (2 / 3) / (1 + 2 / 3))
    assert boundary.boundary_f_score(truth, square(20, 60, 2)) == 0
    whole = np.ones((60, 80), bool)
    assert boundary.boundary_f_score(whole, whole) is None, "the border of the image is no outline"


def test_classes_of_label_maps():
    spec = DatasetSpec(("road", "car", "tree"))
    label = np.where(square(10, 10), 1, 0).astype(np.uint8)
    prediction = np.where(square(11, 10), 1, 0)
    for score in (boundary.boundary_iou, boundary.boundary_f_score):
        assert boundary.per_class(score, label, prediction, spec) == {
            "road": score(label == 0, prediction == 0),
            "car": score(label == 1, prediction == 1),
            "tree": None,
        }


@pytest.mark.parametrize("score", [boundary.boundary_iou, boundary.boundary_f_score])
def test_predictions_without_truth_never_count(score):
    spec = DatasetSpec(("road", "car", "tree"))
    label = np.where(square(10, 10), 1, 0).astype(np.uint8)
    label[:, 20:40] = 255
    prediction = np.where(square(11, 10), 1, 0)
    other = np.where(label == 255, 2, prediction)
    found = boundary.per_class(score, label, prediction, spec)
    assert found == boundary.per_class(score, label, other, spec)
    assert 0 < found["car"] <= 1 and found["tree"] is None


def test_sizes_differ():
    one, other = np.zeros((4, 6), bool), np.zeros((4, 5), bool)
    for score in (boundary.boundary_iou, boundary.boundary_f_score):
        with pytest.raises(UserError, match=r"\(4, 6\) .* \(4, 5\)"):
            score(one, other)
    with pytest.raises(UserError, match=r"\(4, 6\) .* \(4, 5\)"):
        boundary.per_class(score, one.astype(int), other.astype(int), DatasetSpec(("a", "b")))
