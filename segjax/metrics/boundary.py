"""How well the outlines of masks agree, which IoU hardly sees in large objects."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage
from scipy.spatial import cKDTree

from segjax.checks import UserError
from segjax.spec import DatasetSpec

Mask = Bool[np.ndarray, "_y _x"]


def boundary_iou(truth: Mask, prediction: Mask, dilation_ratio: float = 0.02) -> float | None:
    """Boundary IoU (Cheng et al. 2021, arXiv:2103.16562, section 4): IoU of the masks' inner rims.

    The rim is what `d` erosions with a square of 3 x 3 take off, `d` the rounded share of the image's diagonal and at
    least 1: the pixels that lie within `d` rows and columns of the outside. Outside the image is outside the mask.

    Args:
        truth: True where the object is.
        prediction: True where it was predicted.
        dilation_ratio: width of the rim over the diagonal (0.02: section 5 of the paper).

    Returns:
        A fraction in 0..1: 0 where one mask is empty, None where both are.

    Raises:
        UserError: sizes differ.

    Example:
        >>> truth = np.ones((5, 5), bool)
        >>> prediction = truth.copy()
        >>> prediction[2, 2] = False
        >>> boundary_iou(truth, prediction)  # 16 pixels of rim, and 8 more around the hole
        0.6666666666666666
    """
    _check(truth, prediction)
    width = max(1, round(dilation_ratio * np.hypot(*truth.shape)))
    truth, prediction = _rim(truth, width), _rim(prediction, width)
    union = int((truth | prediction).sum())
    return int((truth & prediction).sum()) / union if union else None


def boundary_f_score(truth: Mask, prediction: Mask, tolerance: int | float = 0.008) -> float | None:
    """F-score of the outline (Perazzi et al. 2016, section 5.1; the definitions of the DAVIS evaluation).

    A pixel is on the outline if its right, lower or lower right neighbour is not like it; the border of the image is
    no outline. Precision is the share of the predicted outline within `r` pixels of the true one, recall the
    share of the true outline within `r` of the predicted one, `r` the share of the image's diagonal rounded up;
    `F = 2 precision recall / (precision + recall)`.

    Args:
        truth: True where the object is.
        prediction: True where it was predicted.
        tolerance: share of the diagonal (0.008: DAVIS), or pixels if at least 1.

    Returns:
        A fraction in 0..1: 0 where one mask has no outline, None where neither has.

    Raises:
        UserError: sizes differ.

    Example:
        >>> truth, prediction = np.zeros((2, 20, 20), bool)
        >>> truth[5:10, 5:10] = prediction[6:11, 5:10] = True
        >>> boundary_f_score(truth, prediction)
        1.0
    """
    _check(truth, prediction)
    radius = tolerance if tolerance >= 1 else np.ceil(tolerance * np.hypot(*truth.shape))
    truth, prediction = _outline(truth), _outline(prediction)
    if not (truth.any() and prediction.any()):
        return 0.0 if truth.any() or prediction.any() else None
    precision, recall = _near(prediction, truth, radius), _near(truth, prediction, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def per_class(
    score: Callable[[Mask, Mask], float | None],
    truth: Integer[np.ndarray, "_y _x"],
    prediction: Integer[np.ndarray, "_y _x"],
    spec: DatasetSpec,
) -> dict[str, float | None]:
    """A score of masks for each class of two label maps.

    Args:
        score: `boundary_iou`, `boundary_f_score`, or another function of two masks.
        truth: class of each pixel; `spec.ignore` where there is no truth.
        prediction: predicted class. Pixels without truth are of no class in either map, so that both have the same
            edge there.
        spec: the classes.

    Returns:
        The score by class name.

    Raises:
        UserError: sizes differ.

    Example:
        >>> spec = DatasetSpec(("road", "car", "tree"))
        >>> per_class(boundary_iou, np.array([[0, 0, 1, 255]]), np.array([[0, 0, 0, 1]]), spec)
        {'road': 0.6666666666666666, 'car': 0.0, 'tree': None}
    """
    _check(truth, prediction)
    valid = truth != spec.ignore
    return {name: score(truth == c, (prediction == c) & valid) for c, name in enumerate(spec.classes)}


def _check(truth, prediction):
    if truth.shape != prediction.shape:
        raise UserError(
            f"The truth is of size {truth.shape} but the prediction of {prediction.shape} (rows, columns): resize one."
        )


def _rim(mask, width):
    outside = np.pad(mask, 1)
    return mask & (ndimage.distance_transform_cdt(outside, "chessboard")[1:-1, 1:-1] <= width)


def _outline(mask):
    beyond = np.pad(mask, (0, 1), mode="edge")
    return (mask != beyond[1:, :-1]) | (mask != beyond[:-1, 1:]) | (mask != beyond[1:, 1:])


def _near(outline, other, radius):
    """Share of an outline's pixels within a radius of another."""
    nearer_than = np.sqrt(np.floor(radius**2) + 0.5)  # squares of distances between pixels are whole numbers
    distances, _ = cKDTree(np.argwhere(other)).query(np.argwhere(outline), distance_upper_bound=nearer_than)
    return float(np.isfinite(distances).mean())
