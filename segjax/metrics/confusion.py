"""Confusion matrices per image on the device; mergeable totals and every figure drawn from them on the host.

Matrices have the ground truth in rows and predictions in columns. Counts are int32 on the device and int64 on the
host, where a run over any number of pixels stays exact.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Int64, Integer

_EXACT_FLOAT32 = 2**24  # every integer up to here is a float32


def confusion_matrix(
    prediction: Integer[Array, "b *space"],
    label: Integer[Array, "b *space"],
    valid: Bool[Array, "b *space"],
    classes: int,
) -> Int32[Array, "b {classes} {classes}"]:
    """Counts of (truth, prediction) pairs, one matrix an image.

    The matrix is a product of one-hot maps, `M = onehot(label)^T onehot(prediction)`, which suits a matrix unit where
    a scatter does not. It is exact: the factors are 0 and 1, which bfloat16 holds, and float32 counts exactly up to
    2^24. Larger images are multiplied slice by slice of their first axis, and the slices added in int32. Up to three
    space axes.

    Args:
        prediction: predicted class of each pixel, in [0, classes).
        label: true class of each pixel, in [0, classes).
        valid: True where it is labelled; other pixels are not counted, whatever was predicted there.
        classes: number of classes k.

    Returns:
        Pixel counts, rows truth and columns prediction; all 0 for an image without truth.

    Example:
        >>> prediction, label = jnp.array([[[0, 1, 1]]]), jnp.array([[[0, 0, 1]]])
        >>> confusion_matrix(prediction, label, jnp.array([[[True, True, False]]]), 2).tolist()
        [[[1, 1], [0, 0]]]
    """
    whole = math.prod(label.shape[1:]) <= _EXACT_FLOAT32
    truth = jax.nn.one_hot(label, classes, dtype=jnp.bfloat16) * valid[..., None].astype(jnp.bfloat16)
    predicted = jax.nn.one_hot(prediction, classes, dtype=jnp.bfloat16)
    space = "zyx"[-(label.ndim - 1) :]
    product = f"b{space}i,b{space}j->b{'' if whole else space[0]}ij"
    counts = jnp.einsum(product, truth, predicted, preferred_element_type=jnp.float32).astype(jnp.int32)
    return counts if counts.ndim == 3 else counts.sum(axis=1)


class State(NamedTuple):
    """What has been counted so far; two states of disjoint images merge by addition.

    Args:
        total: sum of the matrices of all images, [k, k], or [k, 2, 2] for multi-label.
        images: images with at least one labelled pixel.
        image_iou: sum of the mean IoU of each image.
        scored: images in that sum: those with a class in their truth or prediction. The same as `images`, except
            for multi-label images in which no class is and none was predicted.
    """

    total: Int64[np.ndarray, "..."]
    images: int
    image_iou: float
    scored: int


def new_state(classes: int, multilabel: bool = False) -> State:
    """A state that has counted nothing, for matrices of `confusion_matrix` or `multilabel_confusion`.

    Example:
        >>> new_state(3, multilabel=True).total.shape
        (3, 2, 2)
    """
    return State(np.zeros((classes, 2, 2) if multilabel else (classes, classes), np.int64), 0, 0.0, 0)


def update(state: State, matrices: Int32[Array, "b ..."] | Integer[np.ndarray, "b ..."]) -> State:
    """Adds the matrices of a batch.

    Args:
        state: what has been counted so far.
        matrices: one an image, [b, k, k] or [b, k, 2, 2]; all 0 (padding, nothing labelled) changes nothing.

    Raises:
        ValueError: the matrices are not of the state's shape.

    Example:
        >>> update(new_state(2), np.array([[[3, 1], [0, 4]], [[0, 0], [0, 0]]])).images
        1
    """
    matrices = np.asarray(matrices, np.int64)
    if matrices.shape[1:] != state.total.shape:
        raise ValueError(f"Matrices of shape {matrices.shape} do not add to a state of shape {state.total.shape}.")
    hits, truth, predicted = _counts(matrices, multilabel=state.total.ndim == 3)
    iou = _ratio(hits, truth + predicted - hits)
    image_iou = _ratio(np.nansum(iou, axis=1), (~np.isnan(iou)).sum(axis=1))
    return State(
        total=state.total + matrices.sum(axis=0),
        images=state.images + int(matrices.any(axis=tuple(range(1, matrices.ndim))).sum()),
        image_iou=state.image_iou + float(np.nansum(image_iou)),
        scored=state.scored + int((~np.isnan(image_iou)).sum()),
    )


def merge(a: State, b: State) -> State:
    """The state of the images of two states, which share none.

    Example:
        >>> one = update(new_state(2), np.array([[[3, 1], [0, 4]]]))
        >>> merge(one, one).total.tolist()
        [[6, 2], [0, 8]]
    """
    return State(*(x + y for x, y in zip(a, b, strict=True)))


def summary(state: State, names: Sequence[str], *, absent: Literal["skip", "zero", "one"] = "skip") -> dict[str, Any]:
    """Every figure of a state. All are fractions in 0..1, or None where there is nothing to divide by.

    With hits `tp`, truth `t` and prediction `p` in pixels of a class: IoU `tp / (t + p - tp)`, Dice `2 tp / (t + p)`,
    precision `tp / p`, recall `tp / t`. Dataset figures come from the counts of all images together.

    Args:
        state: what has been counted.
        names: class names, in the order of the matrix.
        absent: what a class with neither truth nor prediction adds to the means over classes: nothing ("skip": mmseg,
            detectron2), 0 ("zero": tf/models) or 1 ("one": PaddleSeg). The rule moves mIoU by whole points where
            classes are rare. A figure that lacks its divisor for another reason is always left out.

    Returns:
        A dict that `json.dumps` takes:

        - `mIoU`, `mean_dice`, `mean_accuracy`: means over classes of IoU (of `classes_averaged`), Dice and recall.
        - `pixel_accuracy`: share of the labelled pixels that are right.
        - `frequency_weighted_IoU`: mean of IoU weighted by the classes' true pixels.
        - `mean_image_IoU`: mean over images of the image's own mean IoU over the classes in its truth or prediction,
          whatever `absent` is. Every image weighs the same; in mIoU every pixel of a class does.
        - `iou_per_class`, `dice_per_class`, `precision_per_class`, `recall_per_class`: by name.
        - `images`: those with a labelled pixel. `pixels`: labelled ones (multi-label: summed over classes).

        Every mean is None and `classes_averaged` 0 where nothing was labelled, whatever `absent` is.

    Example:
        >>> state = update(new_state(3), np.array([[[3, 1, 0], [0, 4, 0], [0, 0, 0]]]))
        >>> figures = summary(state, ("road", "car", "train"))
        >>> figures["iou_per_class"], figures["classes_averaged"], figures["mIoU"]
        ({'road': 0.75, 'car': 0.8, 'train': None}, 2, 0.775)
    """
    hits, truth, predicted = _counts(state.total, multilabel=state.total.ndim == 3)
    union, pixels = truth + predicted - hits, int(state.total.sum())
    iou, recall = _ratio(hits, union), _ratio(hits, truth)
    dice, precision = _ratio(2 * hits, truth + predicted), _ratio(hits, predicted)
    fill = {"skip": np.nan, "zero": 0.0, "one": 1.0}[absent] if pixels else np.nan

    def over_classes(figure):
        kept = np.where(union > 0, figure, fill)
        kept = kept[~np.isnan(kept)]
        return _plain(_ratio(kept.sum(), kept.size)), kept.size

    mean_iou, classes_averaged = over_classes(iou)
    per_class = {"iou": iou, "dice": dice, "precision": precision, "recall": recall}
    return {
        "mIoU": mean_iou,
        "mean_dice": over_classes(dice)[0],
        "pixel_accuracy": _plain(_ratio(np.trace(state.total, axis1=-2, axis2=-1).sum(), pixels)),
        "mean_accuracy": over_classes(recall)[0],
        "frequency_weighted_IoU": _plain(_ratio(np.nansum(truth * iou), truth.sum())),
        "mean_image_IoU": _plain(_ratio(state.image_iou, state.scored)),
        **{f"{key}_per_class": dict(zip(names, map(_plain, x), strict=True)) for key, x in per_class.items()},
        "classes_averaged": classes_averaged,
        "images": state.images,
        "pixels": pixels,
    }


def _counts(matrices, multilabel):
    """Hits, truth and prediction of each class in pixels, [..., k] each."""
    if multilabel:
        return matrices[..., 1, 1], matrices[..., 1, :].sum(axis=-1), matrices[..., :, 1].sum(axis=-1)
    return np.diagonal(matrices, axis1=-2, axis2=-1), matrices.sum(axis=-1), matrices.sum(axis=-2)


def _ratio(numerator, denominator):
    """The quotient in float64, NaN where the denominator is 0."""
    return np.divide(numerator, np.where(denominator, denominator, np.nan))


def _plain(figure):
    """A Python float, None for NaN: what JSON can say."""
    return None if np.isnan(figure) else float(figure)
