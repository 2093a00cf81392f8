"""Evaluation metrics, in a single call or accumulated image by image.

`confusion`, `panoptic` and `instance` share one interface:

    state = metrics.panoptic.new(spec)
    state = metrics.panoptic.update(state, ground_truth, prediction, divisor=1000)  # once per image or batch
    state = metrics.panoptic.merge(state, other)  # the state of other images, such as those of another host
    metrics.panoptic.summary(state)  # a dict that json.dumps accepts
"""

from segjax.metrics import boundary, confusion, instance, panoptic
from segjax.metrics.confusion import confusion_matrix
from segjax.metrics.instance import average_precision
from segjax.metrics.multilabel import multilabel_confusion
from segjax.metrics.overlap import dice, mean_iou
from segjax.metrics.panoptic import panoptic_quality

__all__ = [
    "average_precision",
    "boundary",
    "confusion",
    "confusion_matrix",
    "dice",
    "instance",
    "mean_iou",
    "multilabel_confusion",
    "panoptic",
    "panoptic_quality",
]
