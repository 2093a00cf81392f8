"""Boundary metrics: how well the outlines of masks agree, to which IoU is insensitive for large objects."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage
from scipy.spatial import cKDTree

from segjax.checks import UserError
from segjax.spec import DatasetSpec

Mask = Bool[np.ndarray, "_y _x"]


def boundary_iou(ground_truth: Mask, prediction: Mask, dilation_ratio: float = 0.02) -> float | None:
    """Computes Boundary IoU (Cheng et al. 2021, arXiv:2103.16562, section 4): the IoU of the masks' inner rims.

    The rim holds the pixels that `d` erosions with a 3 x 3 square remove: those within `d` rows and columns of the
    outside. `d` is a fraction of the image's diagonal, rounded, at least 1. Pixels beyond the image count as outside.

    Args:
        ground_truth: True for pixels of the object.
        prediction: True for pixels of the predicted object.
        dilation_ratio: width of the rim over the diagonal (0.02: section 5 of the paper).

    Returns:
        A fraction in 0..1: 0 if one mask is empty, None if both are.

    Raises:
        UserError: sizes differ.

    Example:
        >>> ground_truth = np.ones((5, 5), bool)
        >>> prediction = ground_truth.copy()
        >>> prediction[2, 2] = False
        >>> boundary_iou(ground_truth, prediction)  # 16 pixels of rim, and 8 more around the hole
        0.6666666666666666
    """
    _check(ground_truth, prediction)
    width = max(1, round(dilation_ratio * np.hypot(*ground_truth.shape)))
    ground_truth, prediction = _rim(ground_truth, width), _rim(prediction, width)
    union = int((ground_truth | prediction).sum())
    return int((ground_truth & prediction).sum()) / union if union else None


def boundary_f_score(ground_truth: Mask, prediction: Mask, tolerance: int | float = 0.008) -> float | None:
    """Computes the F-score of the outline (Perazzi et al. 2016, section 5.1; as in the DAVIS evaluation).

    A pixel is on the outline if its right, lower or lower right neighbour differs from it; the border of the image is
    not an outline. Precision is the fraction of the predicted outline within `r` pixels of the true one, and recall the
    fraction of the true outline within `r` of the predicted one. `r` is a fraction of the image's diagonal, rounded
    up. `F = 2 precision recall / (precision + recall)`.

    Args:
        ground_truth: True for pixels of the object.
        prediction: True for pixels of the predicted object.
        tolerance: `r` as a fraction of the diagonal (0.008: DAVIS), or in pixels if at least 1.

    Returns:
        A fraction in 0..1: 0 if one mask has no outline, None if neither has.

    Raises:
        UserError: sizes differ.

    Example:
        >>> ground_truth, prediction = np.zeros((2, 20, 20), bool)
        >>> ground_truth[5:10, 5:10] = prediction[6:11, 5:10] = True
        >>> boundary_f_score(ground_truth, prediction)
        1.0
    """
    _check(ground_truth, prediction)
    radius = tolerance if tolerance >= 1 else np.ceil(tolerance * np.hypot(*ground_truth.shape))
    ground_truth, prediction = _outline(ground_truth), _outline(prediction)
    if not (ground_truth.any() and prediction.any()):
        return 0.0 if ground_truth.any() or prediction.any() else None
    precision, recall = _near(prediction, ground_truth, radius), _near(ground_truth, prediction, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def per_class(
    score: Callable[[Mask, Mask], float | None],
    ground_truth: Integer[np.ndarray, "_y _x"],
    prediction: Integer[np.ndarray, "_y _x"],
    spec: DatasetSpec,
) -> dict[str, float | None]:
    """Scores the masks of each class of two label maps.

    Args:
        score: `boundary_iou`, `boundary_f_score`, or another function of two masks.
        ground_truth: class of each pixel; `spec.ignore` for unlabelled pixels.
        prediction: predicted class of each pixel. Unlabelled pixels belong to no class in either map, so both maps have
            the same edge there.
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
    _check(ground_truth, prediction)
    valid = ground_truth != spec.ignore
    return {name: score(ground_truth == c, (prediction == c) & valid) for c, name in enumerate(spec.classes)}


def _check(ground_truth, prediction):
    if ground_truth.shape != prediction.shape:
        raise UserError(
            f"The ground truth has {ground_truth.shape} rows and columns, but the prediction has {prediction.shape}: "
            "resize one."
        )


def _rim(mask, width):
    outside = np.pad(mask, 1)
    return mask & (ndimage.distance_transform_cdt(outside, "chessboard")[1:-1, 1:-1] <= width)


def _outline(mask):
    beyond = np.pad(mask, (0, 1), mode="edge")
    return (mask != beyond[1:, :-1]) | (mask != beyond[:-1, 1:]) | (mask != beyond[1:, 1:])


def _near(outline, other, radius):
    """Returns the fraction of an outline's pixels that lie within a radius of another outline."""
    nearer_than = np.sqrt(np.floor(radius**2) + 0.5)  # squared distances between pixels are integers
    distances, _ = cKDTree(np.argwhere(other)).query(np.argwhere(outline), distance_upper_bound=nearer_than)
    return float(np.isfinite(distances).mean())
