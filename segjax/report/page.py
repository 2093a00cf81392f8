"""The report of a run as a page: curves, the class table (also on the console), and pictures of test images."""

import contextlib
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jinja2
import numpy as np
import rich.box
import rich.table
from PIL import Image
from rich.console import Console
from rich.text import Text

from segjax.checks import UserError
from segjax.data.reading import CorruptImage
from segjax.report import instances, pictures
from segjax.spec import DatasetSpec, Segments, file_name
from segjax.train.evaluate import Evaluator

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("segjax.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
MEANS = {"IoU": "mIoU", "Dice": "mean_dice", "Precision": "mean_precision", "Recall": "mean_accuracy"}
HEADINGS = ("PQ", "SQ", "RQ", "AP", *MEANS)  # the means of the first four have the same names


class Html(str):
    """HTML text that notebooks render."""

    def __html__(self) -> str:
        return str(self)

    _repr_html_ = __html__


def read_log(workdir: str) -> list[dict[str, Any]]:
    """Reads a workdir's metrics.jsonl, one dict per line: "step", "split", and metrics by name.

    Raises:
        UserError: no log there.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        raise UserError(f"There is no log in {workdir}: metrics.jsonl is missing.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curves(workdir: str) -> Html:
    """Draws the metrics of a workdir over its steps: a chart for each with more than one value."""
    lines, charts = read_log(workdir), []
    for title in ("train loss", "train learning_rate", "test PQ", "test AP", "test mIoU", "test mean_dice"):
        split, key = title.split()
        points = [(x["step"], x[key]) for x in lines if x["split"] == split and x.get(key) is not None]
        if len(points) > 1:
            charts.append(_chart(title, np.array(points, np.float64)))
    return Html(_TEMPLATES.get_template("curves.html").render(charts=charts))


def _chart(title, points):
    (first, low), (last, high) = points.min(0), points.max(0)
    x = 380 * (points[:, 0] - first) / max(last - first, 1)
    y = 150 * (high - points[:, 1]) / ((high - low) or 1.0)
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return {"title": title, "low": low, "high": high, "first": int(first), "last": int(last), "points": path}


def class_rows(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns headings and rows of names and metrics, the means in the last row; no rows without metrics per class.

    Example:
        >>> class_rows({"iou_per_class": {"cat": 0.5, "sky": 0.9}, "ap_per_class": {"cat": 0.25}, "mIoU": 0.7})
        (['class', 'AP', 'IoU'], [['cat', '0.2500', '0.5000'], ['sky', '-', '0.9000'], ['mean', '-', '0.7000']])
    """

    def cell(value):
        return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"

    headings = [heading for heading in HEADINGS if f"{heading.lower()}_per_class" in summary]
    metrics = [summary[f"{heading.lower()}_per_class"] for heading in headings]
    names = max(metrics, key=len, default={})
    rows = [[name, *(cell(each.get(name)) for each in metrics)] for name in names]
    means = ["mean", *(cell(summary.get(MEANS.get(heading, heading))) for heading in headings)]
    return ["class", *headings], [*rows, means] if rows else []


def html_table(summary: dict[str, Any]) -> Html:
    """Formats the summary of an evaluation as a table of classes and their means, with the overall metrics below."""
    headings, rows = class_rows(summary)
    plain = [(k, f"{v:.4f}" if isinstance(v, float) else v) for k, v in summary.items() if not isinstance(v, dict)]
    return Html(_TEMPLATES.get_template("table.html").render(headings=headings, rows=rows, metrics=plain))


def print_table(summary: dict[str, Any], console: Console | None = None) -> None:
    """Prints the metrics of each class and their means, by default on stderr of process 0."""
    headings, rows = class_rows(summary)
    if not rows or (console is None and jax.process_index() > 0):
        return
    grid = rich.table.Table(box=rich.box.SIMPLE, show_footer=True)
    grid.add_column("Class", "mean", overflow="fold")
    for heading, mean in zip(headings[1:], rows[-1][1:], strict=True):
        grid.add_column(heading, mean, justify="right", no_wrap=True)
    for name, *metrics in rows[:-1]:
        grid.add_row(Text(name), *metrics)
    (console or Console(stderr=True)).print(grid)


def evenly_spread(length: int, count: int) -> list[int]:
    """Returns at most `count` indices spread evenly over a sequence, ascending.

    Example:
        >>> evenly_spread(10, 3)
        [0, 4, 9]
    """
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()


def draw_test_image(
    sample: dict[str, Any], found: Segments, spec: DatasetSpec, window: Sequence[float] | None = None
) -> Image.Image:
    """Draws an image next to its ground truth, prediction, errors and, if predicted, centres and offsets.

    `sample` is what a source reads; `window` gives the values of the image that are drawn black and white.
    """
    image, ground_truth = pictures.to_display(sample["image"], window), sample["label"]
    true, instance = (None, None) if found.instance is None else (sample["instance"], found.instance)
    parts = {
        "image": np.broadcast_to(image, (*image.shape[:2], 3)),
        "ground truth": pictures.overlay(image, ground_truth, spec, 1.0, true),
        "prediction": pictures.overlay(image, found.label, spec, 1.0, instance),
        "error": pictures.error_map(image, ground_truth, found.label, spec, true, instance),
    }
    if found.masks is not None:
        parts["prediction"] = instances.overlay_masks(image, found.masks, found.classes, spec, found.score)
    for name, draw in (("centre", instances.overlay_heatmap), ("offset", instances.colour_offsets)):
        if found.maps and name in found.maps:
            values = np.asarray(found.maps[name])
            parts[f"{name}s"] = draw(image, values) if name == "centre" else draw(values, instance > 0)
    return pictures.panels(list(parts.values()), list(parts))


def write(
    workdir: str, evaluator: Evaluator, variables: dict[str, Any], summary: dict[str, Any], pictures_of: int = 8
) -> None:
    """Writes report/: pictures of some test images, the legend, and index.html.

    Args:
        workdir: folder of the run.
        evaluator: evaluator of the test split; its source and compiled program are used.
        variables: the evaluated variables.
        summary: metrics of the evaluation.
        pictures_of: largest number of test images.
    """
    folder = pathlib.Path(workdir) / "report"
    folder.mkdir(exist_ok=True)
    spec, source = evaluator.task.spec, evaluator.batches.source
    window = evaluator.batches.preprocess.window
    pictures.legend(spec).save(folder / "legend.png")
    images = {}
    for i, found in evaluator.segments(variables, evenly_spread(len(source), pictures_of)):
        with contextlib.suppress(CorruptImage):  # evaluation has reported it
            images[i] = draw_test_image(source.read(i), found, spec, window)
    files = []
    for number, i in enumerate(sorted(images)):
        file = f"{number}_{file_name(source.name(i))}.png"  # the number keeps equal file names apart
        images[i].save(folder / file)
        files.append((source.name(i), file))
    title = f"segjax: {pathlib.Path(workdir).absolute().name}"
    parts = {"title": title, "table": html_table(summary), "curves": curves(workdir), "images": files}
    page = _TEMPLATES.get_template("page.html").render(parts)
    (folder / "index.html").write_text(page, encoding="utf-8")
