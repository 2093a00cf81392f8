"""Confusion matrices of images, counted on the device, and the metrics computed from their sum on the host.

Matrices have the ground truth in rows and predictions in columns. Counts are int32 on the device and int64 on the
host, where they stay exact for any number of pixels.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Int64, Integer

from segjax.metrics.pairs import count_pairs
from segjax.spec import DatasetSpec

_EXACT_FLOAT32 = 2**24  # float32 holds every integer up to here


def confusion_matrix(
    label: Integer[Array, "b *space"],
    prediction: Integer[Array, "b *space"],
    valid: Bool[Array, "b *space"],
    classes: int,
) -> Int32[Array, "b {classes} {classes}"]:
    """Counts (ground truth, prediction) pairs, in one matrix per image.

    The matrix is a product of one-hot maps, `M = onehot(label)^T onehot(prediction)`, which runs on matrix units,
    unlike a scatter. It is exact: bfloat16 holds the factors 0 and 1, and float32 counts exactly up to 2^24. Larger
    images are multiplied slice by slice along their first axis, and the slices summed in int32. Up to three spatial
    axes.

    Args:
        label: true class of each pixel, in [0, classes).
        prediction: predicted class of each pixel, in [0, classes).
        valid: True for labelled pixels; other pixels are not counted.
        classes: number of classes k.

    Returns:
        Pixel counts, rows ground truth and columns prediction; all 0 for an unlabelled image.

    Example:
        >>> prediction, label = jnp.array([[[0, 1, 1]]]), jnp.array([[[0, 0, 1]]])
        >>> confusion_matrix(label, prediction, jnp.array([[[True, True, False]]]), 2).tolist()
        [[[1, 1], [0, 0]]]
    """
    exact = math.prod(label.shape[1:]) <= _EXACT_FLOAT32
    ground_truth = jax.nn.one_hot(label, classes, dtype=jnp.bfloat16) * valid[..., None].astype(jnp.bfloat16)
    predicted = jax.nn.one_hot(prediction, classes, dtype=jnp.bfloat16)
    space = "zyx"[-(label.ndim - 1) :]
    product = f"b{space}i,b{space}j->b{'' if exact else space[0]}ij"
    counts = jnp.einsum(product, ground_truth, predicted, preferred_element_type=jnp.float32).astype(jnp.int32)
    return counts if counts.ndim == 3 else counts.sum(axis=1)


def count_decided(label: np.ndarray, prediction: np.ndarray, spec: DatasetSpec) -> Int64[np.ndarray, "..."]:
    """Counts (ground truth, prediction) pairs of one image on the host, also where nothing is predicted.

    Args:
        label: class index, `spec.ignore` where unlabelled, integers [y, x]; multi-label: 0 or 1, [y, x, k].
        prediction: class index, `spec.ignore` where nothing is predicted, integers [y, x]; multi-label: bool [y, x, k].
        spec: the classes.

    Returns:
        The matrix [k, k + 1], whose last column counts labelled pixels without a prediction; multi-label: [k, 2, 2].

    Raises:
        UserError: sizes differ, or a map does not hold integers.

    Example:
        >>> count_decided(np.array([[0, 1, 1, 255]]), np.array([[0, 1, 255, 0]]), DatasetSpec(("cat", "dog"))).tolist()
        [[1, 0, 0], [0, 1, 1]]
    """
    k = len(spec.classes)
    if spec.mode == "multilabel":
        columns = [label[..., c] * 2 + prediction[..., c] for c in range(k)]
        valid = [label[..., c] != spec.ignore for c in range(k)]
        return np.stack([np.bincount(x[at], minlength=4).reshape(2, 2) for x, at in zip(columns, valid, strict=True)])
    matrix = np.zeros((k, k + 1), np.int64)
    for true, predicted, pixels in zip(*count_pairs(label, prediction), strict=True):
        if true != spec.ignore:
            matrix[true, k if predicted == spec.ignore else predicted] += pixels
    return matrix


class ConfusionState(NamedTuple):
    """The counts so far; states of disjoint images are merged by addition.

    Args:
        spec: the classes.
        total: sum of the matrices of all images, [k, k], or [k, 2, 2] for multi-label; [k, k + 1] if pixels without a
            prediction are counted, see `count_decided`.
        images: number of images with at least one labelled pixel.
        image_iou: sum of the mean IoU of each image.
        scored: number of images in that sum: those with a class in their ground truth or prediction. Equals `images`,
            except for multi-label images with neither.
    """

    spec: DatasetSpec
    total: Int64[np.ndarray, "..."]
    images: int
    image_iou: float
    scored: int


def new(spec: DatasetSpec) -> ConfusionState:
    """Makes an empty state, for matrices of `confusion_matrix` or, in multi-label mode, `multilabel_confusion`.

    Example:
        >>> new(DatasetSpec(("cat", "dog", "sky"), mode="multilabel")).total.shape
        (3, 2, 2)
    """
    k = len(spec.classes)
    return ConfusionState(spec, np.zeros((k, 2, 2) if spec.mode == "multilabel" else (k, k), np.int64), 0, 0.0, 0)


def update(state: ConfusionState, matrices: Int32[Array, "b ..."] | Integer[np.ndarray, "b ..."]) -> ConfusionState:
    """Adds the matrices of a batch.

    Args:
        state: the counts so far.
        matrices: one per image, [b, k, k], [b, k, k + 1] or [b, k, 2, 2]; matrices of zeros (padding, nothing
            labelled) do not count.

    Raises:
        ValueError: the shape of the matrices differs from the state's.

    Example:
        >>> update(new(DatasetSpec(("cat", "dog"))), np.array([[[3, 1], [0, 4]], [[0, 0], [0, 0]]])).images
        1
    """
    matrices = np.asarray(matrices, np.int64)
    total = state.total
    if total.ndim == 2 and matrices.shape[-1] == len(total) + 1:
        total = _with_missed(total)
    if matrices.shape[1:] != total.shape:
        raise ValueError(f"Matrices of shape {matrices.shape} cannot be added to a state of shape {total.shape}.")
    hits, ground_truth, predicted = _counts(matrices, multilabel=total.ndim == 3)
    iou = _ratio(hits, ground_truth + predicted - hits)
    image_iou = _ratio(np.nansum(iou, axis=1), (~np.isnan(iou)).sum(axis=1))
    return ConfusionState(
        spec=state.spec,
        total=total + matrices.sum(axis=0),
        images=state.images + int(matrices.any(axis=tuple(range(1, matrices.ndim))).sum()),
        image_iou=state.image_iou + float(np.nansum(image_iou)),
        scored=state.scored + int((~np.isnan(image_iou)).sum()),
    )


def merge(a: ConfusionState, b: ConfusionState) -> ConfusionState:
    """Merges two states of disjoint images.

    Example:
        >>> one = update(new(DatasetSpec(("cat", "dog"))), np.array([[[3, 1], [0, 4]]]))
        >>> merge(one, one).total.tolist()
        [[6, 2], [0, 8]]
    """
    if a.total.shape != b.total.shape:
        a, b = (state._replace(total=_with_missed(state.total)) for state in (a, b))
    return ConfusionState(a.spec, *(x + y for x, y in zip(a[1:], b[1:], strict=True)))


def summary(state: ConfusionState, *, absent: Literal["skip", "zero", "one"] = "skip") -> dict[str, Any]:
    """Computes IoU, Dice, precision, recall and accuracy: fractions in 0..1, or None if the divisor is 0.

    With true positives `tp`, ground truth `t` and prediction `p` in pixels of a class: IoU `tp / (t + p - tp)`, Dice
    `2 tp / (t + p)`, precision `tp / p`, recall `tp / t`, from the counts of all images together.

    Args:
        state: the counts.
        absent: how a class with neither ground truth nor prediction enters the means over classes: not at all ("skip":
            mmseg, detectron2), as 0 ("zero": tf/models) or as 1 ("one": PaddleSeg). The rule changes mIoU by several
            points if classes are rare. A metric whose divisor is 0 for another reason is always left out.

    Returns:
        A dict that `json.dumps` accepts:

        - `mIoU`, `mean_dice`, `mean_accuracy`: means over classes of IoU (of `classes_averaged`), Dice and recall.
        - `pixel_accuracy`: fraction of the labelled pixels that are correct.
        - `frequency_weighted_IoU`: mean IoU weighted by the classes' true pixels.
        - `mean_image_IoU`: mean over images of the image's own mean IoU over the classes in its ground truth or
          prediction, for any `absent`. Every image has the same weight; in mIoU every pixel of a class has.
        - `iou_per_class`, `dice_per_class`, `precision_per_class`, `recall_per_class`: by class name.
        - `images`: number with a labelled pixel. `pixels`: number of labelled ones (multi-label: summed over classes).

        If nothing is labelled, every mean is None and `classes_averaged` is 0, for any `absent`.

    Example:
        >>> state = update(new(DatasetSpec(("road", "car", "train"))), np.array([[[3, 1, 0], [0, 4, 0], [0, 0, 0]]]))
        >>> metrics = summary(state)
        >>> metrics["iou_per_class"], metrics["classes_averaged"], metrics["mIoU"]
        ({'road': 0.75, 'car': 0.8, 'train': None}, 2, 0.775)
    """
    hits, ground_truth, predicted = _counts(state.total, multilabel=state.total.ndim == 3)
    union, pixels = ground_truth + predicted - hits, int(state.total.sum())
    iou, recall = _ratio(hits, union), _ratio(hits, ground_truth)
    dice, precision = _ratio(2 * hits, ground_truth + predicted), _ratio(hits, predicted)
    fill = {"skip": np.nan, "zero": 0.0, "one": 1.0}[absent] if pixels else np.nan

    def over_classes(scores):
        kept = np.where(union > 0, scores, fill)
        kept = kept[~np.isnan(kept)]
        return _plain(_ratio(kept.sum(), kept.size)), kept.size

    mean_iou, classes_averaged = over_classes(iou)
    per_class = {"iou": iou, "dice": dice, "precision": precision, "recall": recall}
    return {
        "mIoU": mean_iou,
        "mean_dice": over_classes(dice)[0],
        "pixel_accuracy": _plain(_ratio(np.trace(state.total, axis1=-2, axis2=-1).sum(), pixels)),
        "mean_accuracy": over_classes(recall)[0],
        "frequency_weighted_IoU": _plain(_ratio(np.nansum(ground_truth * iou), ground_truth.sum())),
        "mean_image_IoU": _plain(_ratio(state.image_iou, state.scored)),
        **{
            f"{key}_per_class": dict(zip(state.spec.classes, map(_plain, x), strict=True))
            for key, x in per_class.items()
        },
        "classes_averaged": classes_averaged,
        "images": state.images,
        "pixels": pixels,
    }


def _with_missed(total):
    """Adds the column of pixels without a prediction, if a matrix lacks it."""
    k = len(total)
    return np.pad(total, [(0, 0), (0, k + 1 - total.shape[1])])


def _counts(matrices, multilabel):
    """Returns true positives, ground truth and prediction of each class in pixels, [..., k] each."""
    if multilabel:
        return matrices[..., 1, 1], matrices[..., 1, :].sum(axis=-1), matrices[..., :, 1].sum(axis=-1)
    k = matrices.shape[-2]
    return np.diagonal(matrices, axis1=-2, axis2=-1), matrices.sum(axis=-1), matrices.sum(axis=-2)[..., :k]


def _ratio(numerator, denominator):
    """Divides in float64; NaN where the denominator is 0."""
    return np.divide(numerator, np.where(denominator, denominator, np.nan))


def _plain(value):
    """Converts a number to a Python float, or NaN to None, for JSON."""
    return None if np.isnan(value) else float(value)
