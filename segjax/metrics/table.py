"""The figures of each class as a table."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = {  # heading -> figures of each class, their mean
    "PQ": ("pq_per_class", "PQ"),
    "SQ": ("sq_per_class", "SQ"),
    "RQ": ("rq_per_class", "RQ"),
    "AP": ("ap_per_class", "AP"),
    "IoU": ("iou_per_class", "mIoU"),
    "Dice": ("dice_per_class", "mean_dice"),
    "Precision": ("precision_per_class", "mean_precision"),
    "Recall": ("recall_per_class", "mean_accuracy"),
}


def by_class(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Sets the figures of each class that a summary holds as the cells of a table; "-" where there is no figure.

    Args:
        summary: from `segjax.metrics`.

    Returns:
        Headings, and rows: name and figures of each class, and their means in the last one; no rows without figures.

    Example:
        >>> by_class({"iou_per_class": {"cat": 0.5, "sky": 0.9}, "ap_per_class": {"cat": 0.25}, "mIoU": 0.7})
        (['class', 'AP', 'IoU'], [['cat', '0.2500', '0.5000'], ['sky', '-', '0.9000'], ['mean', '-', '0.7000']])
    """
    columns = {heading: keys for heading, keys in COLUMNS.items() if keys[0] in summary}
    figures = [summary[key] for key, _ in columns.values()]
    names = max(figures, key=len, default={})
    rows = [[name, *(_figure(each.get(name)) for each in figures)] for name in names]
    means = ["mean", *(_figure(summary.get(mean)) for _, mean in columns.values())]
    return ["class", *columns], [*rows, means] if rows else []


def table(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the figures of each class, and their means; "-" where there is no figure.

    Args:
        summary: from `segjax.metrics`; one without figures of classes prints nothing.
        console: where to; None is stderr of process 0.

    Example:
        >>> summary = {"iou_per_class": {"cat": 0.5, "dog": None}, "mIoU": 0.5}
        >>> table(summary, Console(width=40))  # doctest: +NORMALIZE_WHITESPACE
        <BLANKLINE>
          Class      IoU
         ────────────────
          cat     0.5000
          dog          -
         ────────────────
          mean    0.5000
        <BLANKLINE>
    """
    headings, rows = by_class(summary)
    if not rows or (console is None and jax.process_index() > 0):
        return
    grid = Table(box=SIMPLE, show_footer=True)
    grid.add_column("Class", "mean", overflow="fold")
    for heading, mean in zip(headings[1:], rows[-1][1:], strict=True):
        grid.add_column(heading, mean, justify="right", no_wrap=True)
    for name, *figures in rows[:-1]:
        grid.add_row(Text(name), *figures)
    (console or Console(stderr=True)).print(grid)


def _figure(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
