"""What a run looks like, as a page: curves, the table of classes, and pictures of test images."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from segjax.checks import UserError
from segjax.data.reading import CorruptImage
from segjax.metrics.table import by_class
from segjax.report import instances, pictures
from segjax.spec import DatasetSpec, Segments
from segjax.train.evaluate import Evaluator

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Html(str):
    """HTML text that a notebook shows as such."""

    def _repr_html_(self) -> str:
        return str(self)

    def __html__(self) -> str:
        return str(self)


def read_log(workdir: str) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl.

    Args:
        workdir: folder of a run.

    Returns:
        One dict a line: "step", "split", and figures by name.

    Raises:
        UserError: no log there.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        raise UserError(f"There is no log in {workdir}: metrics.jsonl is missing.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curves(workdir: str) -> Html:
    """Draws the scalars of a run over its steps.

    Args:
        workdir: folder of a run.

    Returns:
        A chart for the training loss and one for each figure of the evaluations that was taken more than once.
    """
    lines = read_log(workdir)
    wanted = [
        ("train", "loss"),
        ("train", "learning_rate"),
        *(("test", figure) for figure in ("PQ", "AP", "mIoU", "mean_dice")),
    ]
    charts = []
    for split, key in wanted:
        points = [(x["step"], x[key]) for x in lines if x["split"] == split and x.get(key) is not None]
        if len(points) > 1:
            charts.append(_chart(f"{split} {key}", np.array(points, np.float64)))
    return Html(_TEMPLATES.get_template("curves.html").render(charts=charts))


def _chart(title, points):
    (first, low), (last, high) = points.min(0), points.max(0)
    x = 380 * (points[:, 0] - first) / max(last - first, 1)
    y = 150 * (high - points[:, 1]) / ((high - low) or 1.0)
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return {"title": title, "low": low, "high": high, "first": int(first), "last": int(last), "points": path}


def table(summary: dict[str, Any]) -> Html:
    """Sets a summary as a table of classes.

    Args:
        summary: figures of an evaluation.

    Returns:
        The figures of each class and their means, and the overall figures below.
    """
    headings, rows = by_class(summary)
    plain = [(k, f"{v:.4f}" if isinstance(v, float) else v) for k, v in summary.items() if not isinstance(v, dict)]
    return Html(_TEMPLATES.get_template("table.html").render(headings=headings, rows=rows, figures=plain))


def spread(length: int, count: int) -> list[int]:
    """Indices spread evenly over a sequence.

    Args:
        length: of the sequence.
        count: how many, at most.

    Returns:
        The indices, ascending.

    Example:
        >>> spread(10, 3)
        [0, 4, 9]
    """
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()


def picture(
    sample: dict[str, Any], found: Segments, spec: DatasetSpec, window: Sequence[float] | None = None
) -> Image.Image:
    """Sets an image beside its ground truth, the prediction and its errors.

    Args:
        sample: "image", "label" and perhaps "instance", as a source reads them.
        found: what was predicted for it.
        spec: the classes.
        window: values of the image that are shown black and white.

    Returns:
        The picture; where objects are told apart with their contours, and with the centres and offsets that led to
        them.
    """
    image, truth = pictures.displayed(sample["image"], window), sample["label"]
    true, instance = (None, None) if found.instance is None else (sample["instance"], found.instance)
    parts = {
        "image": np.broadcast_to(image, (*image.shape[:2], 3)),
        "ground truth": pictures.overlay(image, truth, spec, 1.0, true),
        "prediction": pictures.overlay(image, found.label, spec, 1.0, instance),
        "error": pictures.errors(image, truth, found.label, spec, true, instance),
    }
    if found.masks is not None:
        parts["prediction"] = instances.overlay_masks(image, found.masks, found.classes, spec, found.score)
    for name, draw in (("centre", instances.heat), ("offset", instances.directions)):
        if found.maps and name in found.maps:
            values = np.asarray(found.maps[name])
            parts[f"{name}s"] = draw(image, values) if name == "centre" else draw(values, instance > 0)
    return pictures.panels(list(parts.values()), list(parts))


def write(
    workdir: str, evaluator: Evaluator, variables: dict[str, Any], summary: dict[str, Any], pictures_of: int = 8
) -> None:
    """Writes report/: a picture for each of some test images, the legend, and index.html.

    Source and compiled program are those of the evaluation.

    Args:
        workdir: folder of the run.
        evaluator: what scored the test split.
        variables: those that were scored.
        summary: figures of the evaluation.
        pictures_of: how many test images, at most.
    """
    folder = pathlib.Path(workdir) / "report"
    folder.mkdir(exist_ok=True)
    spec, source = evaluator.task.spec, evaluator.batches.source
    window = evaluator.batches.preprocess.window
    pictures.legend(spec).save(folder / "legend.png")
    images = {}
    for i, found in evaluator.segments(variables, spread(len(source), pictures_of)):
        try:
            images[i] = picture(source.read(i), found, spec, window)
        except CorruptImage:  # evaluation has named it
            continue
    files = []
    for number, i in enumerate(sorted(images)):
        file = f"{number}_{pictures.file_name(source.name(i))}.png"  # the number keeps apart names that become one
        images[i].save(folder / file)
        files.append((source.name(i), file))
    title = f"segjax: {pathlib.Path(workdir).absolute().name}"
    parts = {"title": title, "table": table(summary), "curves": curves(workdir), "images": files}
    page = _TEMPLATES.get_template("page.html").render(parts)
    (folder / "index.html").write_text(page, encoding="utf-8")
