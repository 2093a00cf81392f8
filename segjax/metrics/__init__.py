"""Figures that say how good predictions are."""

from segjax.metrics import boundary, instance, panoptic
from segjax.metrics.confusion import State, confusion_matrix, merge, new_state, summary, update
from segjax.metrics.multilabel import multilabel_confusion
from segjax.metrics.panoptic import panoptic_quality

__all__ = [
    "State",
    "boundary",
    "confusion_matrix",
    "instance",
    "merge",
    "multilabel_confusion",
    "new_state",
    "panoptic",
    "panoptic_quality",
    "summary",
    "update",
]
