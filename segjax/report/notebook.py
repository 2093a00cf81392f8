"""Shows the report of a workdir inline in a notebook."""

import base64
import io
from typing import Any

import markupsafe
from PIL import Image

from segjax.data.reading import CorruptImage
from segjax.infer import Predictor
from segjax.report import page
from segjax.report.page import Html
from segjax.train.components import Sources, open_source
from segjax.train.workdir import read_config


def strips(workdir: str, count: int = 8, sources: Sources | None = None, **own: Any) -> list[tuple[str, Image.Image]]:
    """Predicts images spread evenly over the test split, and draws each next to its ground truth.

    Args:
        workdir: folder of a run.
        count: largest number of images.
        sources: sources by split that replace the configured one.
        **own: the run's own `model` and `objective`, where it had them.

    Returns:
        (name, picture) of each: image, ground truth, prediction and error side by side, with centres and offsets
        if the model predicts them.

    Raises:
        UserError: no run or no checkpoint there.
    """
    config, _ = read_config(workdir)
    source, predict = open_source(config, config.splits.test, sources), Predictor.from_workdir(workdir, **own)
    images = []
    for i in page.evenly_spread(len(source), count):
        try:
            sample = source.read(i)
        except CorruptImage:  # evaluation has reported it
            continue
        segments = predict(sample["image"])
        images.append((source.name(i), page.draw_test_image(sample, segments, predict.spec, predict.preprocess.window)))
    return images


def show(workdir: str, count: int = 4, sources: Sources | None = None, **own: Any) -> Html:
    """Shows test images inline in a notebook.

    Args:
        workdir: folder of a run.
        count: largest number of images.
        sources: sources by split that replace the configured one.
        **own: the run's own `model` and `objective`, where it had them.

    Returns:
        HTML with the pictures of `strips` embedded.
    """
    images = []
    for name, picture in strips(workdir, count, sources, **own):
        data = io.BytesIO()
        picture.save(data, "PNG")
        text = base64.b64encode(data.getvalue()).decode()
        images.append(f'<p>{markupsafe.escape(name)}<br><img src="data:image/png;base64,{text}"></p>')
    return Html("\n".join(images))
