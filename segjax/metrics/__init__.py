"""Figures that say how good predictions are."""

from segjax.metrics.confusion import State, confusion_matrix, merge, multilabel_confusion, new_state, summary, update

__all__ = ["State", "confusion_matrix", "merge", "multilabel_confusion", "new_state", "summary", "update"]
