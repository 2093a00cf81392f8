"""What a run looks like: curves, the table of classes, and pictures, as files or inline in a notebook."""

import base64
import io
import json
import pathlib
from typing import Any

import jinja2
import markupsafe
import numpy as np

from segjax import infer, pictures
from segjax.checks import UserError
from segjax.data.reading import CorruptImage
from segjax.metrics.table import by_class
from segjax.spec import DatasetSpec, Segments
from segjax.train.components import Sources, open_source
from segjax.train.evaluate import Evaluator
from segjax.train.workdir import read_config

_ENVIRONMENT = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)

_CURVES = _ENVIRONMENT.from_string("""\
{% for chart in charts %}
<svg viewBox="-60 -20 460 210" width="440" style="background:white;font:11px sans-serif">
  <rect width="380" height="150" fill="none" stroke="#999"/>
  <text x="0" y="-6">{{ chart.title }}</text>
  <text x="-4" y="10" text-anchor="end">{{ "%.4g" % chart.high }}</text>
  <text x="-4" y="150" text-anchor="end">{{ "%.4g" % chart.low }}</text>
  <text x="0" y="168">{{ chart.first }}</text>
  <text x="380" y="168" text-anchor="end">step {{ chart.last }}</text>
  <polyline points="{{ chart.points }}" fill="none" stroke="#1f5fbf" stroke-width="1.5"/>
</svg>
{% endfor %}
""")

_TABLE = _ENVIRONMENT.from_string("""\
<table border="1" cellpadding="4" style="border-collapse:collapse;font:13px sans-serif">
<tr>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr><td>{{ row[0] }}</td>{% for v in row[1:] %}<td align="right">{{ v }}</td>{% endfor %}</tr>
{% endfor %}
</table>
<p style="font:13px sans-serif">{% for k, v in figures %}{{ k }} {{ v }}{{ " &middot; "|safe if not loop.last }}\
{% endfor %}</p>
""")

_PAGE = _ENVIRONMENT.from_string("""\
<!doctype html><meta charset="utf-8"><title>{{ title }}</title>
<body style="font:14px sans-serif;max-width:1200px;margin:2em auto">
<h1>{{ title }}</h1>
{{ table }}{{ curves }}
<h2>Test images</h2><p><img src="legend.png" alt="colours of the classes"></p>
<p>Errors: red where the class is wrong, orange where it is right but the object matches no true one (IoU 0.5).
Offsets: the hue is the direction, the saturation the length.</p>
{% for name, file in images %}
<p>{{ name }}<br><img src="{{ file }}" alt="image, truth, prediction, error" style="max-width:100%"></p>
{% endfor %}
""")


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
    return Html(_CURVES.render(charts=charts))


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
    return Html(_TABLE.render(headings=headings, rows=rows, figures=plain))


def strips(workdir: str, count: int = 8, sources: Sources = None) -> list[tuple[str, Any]]:
    """Predicts images spread evenly over the test split and sets each beside its truth.

    Args:
        workdir: folder of a run.
        count: how many, at most.
        sources: sources by split that stand in for the configured one.

    Returns:
        (name, picture) of each: image, truth, prediction and error side by side, and of a model that finds objects
        its centres and offsets.

    Raises:
        UserError: no run or no checkpoint there.
    """
    config, _ = read_config(workdir)
    source, predict = open_source(config, config.splits.test, sources), infer.load(workdir)
    found = []
    for i in spread(len(source), count):
        try:
            sample = source.read(i)
        except CorruptImage:  # evaluation has named it
            continue
        prediction = predict(sample["image"])
        maps = {name: prediction[name] for name in ("centre", "offset") if name in prediction}
        segments = Segments(prediction["label"], prediction.get("instance"), maps=maps)
        found.append((source.name(i), picture(sample, segments, predict.spec, predict.preprocess.window)))
    return found


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


def picture(sample: dict[str, Any], found: Segments, spec: DatasetSpec, window: Any = None) -> Any:
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
        "truth": pictures.overlay(image, truth, spec, 1.0, true),
        "prediction": pictures.overlay(image, found.label, spec, 1.0, instance),
        "error": pictures.errors(image, truth, found.label, spec, true, instance),
    }
    if found.masks is not None:
        parts["prediction"] = pictures.overlay_masks(image, found.masks, found.classes, spec, found.score)
    for name, draw in (("centre", pictures.heat), ("offset", pictures.directions)):
        if found.maps and name in found.maps:
            values = np.asarray(found.maps[name])
            parts[f"{name}s"] = draw(image, values) if name == "centre" else draw(values, instance > 0)
    return pictures.panels(list(parts.values()), list(parts))


def show(workdir: str, count: int = 4, sources: Sources = None) -> Html:
    """Shows test images inline in a notebook.

    Args:
        workdir: folder of a run.
        count: how many, at most.
        sources: sources by split that stand in for the configured one.

    Returns:
        The pictures of `strips`, within the HTML itself.
    """
    images = []
    for name, picture in strips(workdir, count, sources):
        data = io.BytesIO()
        picture.save(data, "PNG")
        text = base64.b64encode(data.getvalue()).decode()
        images.append(f'<p>{markupsafe.escape(name)}<br><img src="data:image/png;base64,{text}"></p>')
    return Html("\n".join(images))


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
    page = _PAGE.render(title=title, table=table(summary), curves=curves(workdir), images=files)
    (folder / "index.html").write_text(page, encoding="utf-8")
