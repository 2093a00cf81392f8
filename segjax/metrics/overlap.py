"""Mean IoU and Dice of label maps, in a single call."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax.numpy as jnp
import numpy as np

from segjax.checks import UserError
from segjax.metrics import confusion
from segjax.metrics.multilabel import multilabel_confusion
from segjax.spec import DatasetSpec, class_names


def mean_iou(
    label: Any, prediction: Any, classes: DatasetSpec | Sequence[str] | Integral, ignore: int | None = None
) -> float | None:
    """Computes mean IoU: the mean over classes of `tp / (tp + fp + fn)` over the pixels of all images together.

    Args:
        label: ground truth, integers [y, x] or [b, y, x]; for a multi-label spec 0 or 1 [..., k].
        prediction: predicted class of each pixel, or 0 or 1 per class, the same shape.
        classes: their number, their names or a spec.
        ignore: label of unlabelled pixels, which are not counted; None: that of the spec, or 255.

    Returns:
        A fraction in 0..1; classes with neither label nor prediction are left out. None if nothing is labelled.

    Raises:
        UserError: the shapes differ, or a value is not a class.

    Example:
        >>> mean_iou(np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 0]]), classes=2)
        0.5
    """
    return _summary(label, prediction, classes, ignore)["mIoU"]


def dice(
    label: Any, prediction: Any, classes: DatasetSpec | Sequence[str] | Integral, ignore: int | None = None
) -> float | None:
    """Computes mean Dice (F1): the mean over classes of `2 tp / (2 tp + fp + fn)` over the pixels of all images.

    The arguments, errors and averages are those of `mean_iou`.

    Example:
        >>> round(dice(np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 0]]), classes=2), 4)
        0.6667
    """
    return _summary(label, prediction, classes, ignore)["mean_dice"]


def _summary(label, prediction, classes, ignore):
    spec = _as_spec(classes)
    ignore = spec.ignore if ignore is None else ignore
    label, prediction = (_integers(name, x) for name, x in (("label", label), ("prediction", prediction)))
    axes = 2 + len(spec.label_axes)
    if label.shape != prediction.shape or label.ndim < axes or label.shape[label.ndim - axes + 2 :] != spec.label_axes:
        shape = "y, x, k" if spec.label_axes else "y, x"
        raise UserError(
            f"label {label.shape} and prediction {prediction.shape} must be maps [{shape}] or [b, {shape}]."
        )
    valid = label != ignore
    count = 2 if spec.label_axes else len(spec.classes)
    for name, values in (("label", label[valid]), ("prediction", prediction[valid])):
        if wrong := set(np.unique(values).tolist()) - set(range(count)):
            raise UserError(f"The {name} holds {min(wrong)}, but its values are 0 .. {count - 1}.")
    batch = (math.prod(label.shape[:-axes]), *label.shape[label.ndim - axes :])
    arrays = [np.where(valid, x, 0).astype(np.int32) for x in (label, prediction)]
    maps = [jnp.asarray(x.reshape(batch)) for x in (*arrays, valid)]
    if spec.label_axes:
        matrices = multilabel_confusion(maps[0] == 1, maps[1] == 1, maps[2])
    else:
        matrices = confusion.confusion_matrix(*maps, classes=count)
    return confusion.summary(confusion.update(confusion.new(spec), matrices))


def _integers(name, values):
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.integer) and values.dtype != bool:
        raise UserError(f"The {name} holds {values.dtype}, not integers: take the argmax of scores first.")
    return values.astype(np.int64)


def _as_spec(classes):
    """Makes a spec from class names or a number of classes; returns a spec unchanged."""
    if isinstance(classes, DatasetSpec):
        return classes
    return DatasetSpec(class_names(int(classes)) if isinstance(classes, Integral) else tuple(classes))
