"""The report inline in a notebook, from a workdir."""

import base64
import io

import markupsafe
from PIL import Image

from segjax import infer
from segjax.data.reading import CorruptImage
from segjax.report import page
from segjax.report.page import Html
from segjax.spec import Segments
from segjax.train.components import Sources, open_source
from segjax.train.workdir import read_config


def strips(workdir: str, count: int = 8, sources: Sources = None) -> list[tuple[str, Image.Image]]:
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
    for i in page.spread(len(source), count):
        try:
            sample = source.read(i)
        except CorruptImage:  # evaluation has named it
            continue
        prediction = predict(sample["image"])
        maps = {name: prediction[name] for name in ("centre", "offset") if name in prediction}
        segments = Segments(prediction["label"], prediction.get("instance"), maps=maps)
        found.append((source.name(i), page.picture(sample, segments, predict.spec, predict.preprocess.window)))
    return found


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
