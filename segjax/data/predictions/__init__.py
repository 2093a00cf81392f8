"""Predictions in files that any tool wrote: masks, COCO's panoptic format and COCO's results, sample by sample."""

from pathlib import Path
from typing import Any

from segjax.checks import UserError, check_choice
from segjax.data import agreement
from segjax.data.json_files import read_json
from segjax.data.predictions.detections import CocoDetections, Detections, open_detections
from segjax.data.predictions.masks import Masks, open_masks
from segjax.data.predictions.panoptic import Panoptic, open_panoptic
from segjax.data.sources.coco import Coco
from segjax.spec import DatasetSpec, Mode

__all__ = ["CocoDetections", "Detections", "Masks", "Panoptic", "open_predictions"]

# What `segjax predict` writes beside the masks, by task.
WRITTEN = {"panoptic": "panoptic.json", "instance": "instances.json"}


def open_predictions(
    path: str | Path,
    source: Any,
    *,
    task: str = "semantic",
    mode: Mode = "multiclass",
    ids: str = "classes",
    trained: DatasetSpec | None = None,
) -> Masks | Panoptic | Detections | CocoDetections:
    """Opens predictions of a split: a folder of masks, or a JSON file in COCO's panoptic or results format.

    Args:
        path: the folder or file. A folder that `segjax predict` wrote with a model of objects stands for the JSON file
            of the task in it.
        source: the split, see `segjax.data.sources`.
        task: "semantic", "panoptic" or "instance".
        mode: of a semantic task.
        ids: values of masks: "classes" for class indices, "source" for those of the data set's own mask files.
        trained: the data set of the run that predicted, whose order of the classes gives class indices; None for that
            of the source.

    Returns:
        The predictions: `source` is the split with the same class indices, `spec` its data set, and `read(i, sample)`
        the prediction of sample i.

    Raises:
        UserError: an image of the split has no prediction, or a file does not match the split.
    """
    path = Path(path)
    check_choice("predictions_ids", ids, ("classes", "source"))
    if not len(source):
        raise UserError("The split has no images.")
    own, named = source, {"opened": "the split to evaluate", "other": "the data of the model"}
    indexed = source if trained is None else agreement.match(source, trained, **named)
    if path.is_dir():
        written = path / WRITTEN.get(task, "")
        if not written.is_file():
            source = own if ids == "source" else indexed
            return open_masks(path, source, source.spec.in_mode(mode), ids)
        path = written
    content = _read_entries(path)
    if ids != "classes":
        raise UserError(f"--predictions_ids={ids} is for masks; the categories of {path} are known by their own rule.")
    source = own if isinstance(own, Coco) else indexed
    if not source.spec.things or source.spec.mode == "multilabel":
        raise UserError(f"{path} holds objects, but the data set has none: its source needs things.")
    annotations = content if isinstance(content, list) else content["annotations"]
    panoptic = any(isinstance(entry, dict) and "segments_info" in entry for entry in annotations)
    return (open_panoptic if panoptic else open_detections)(path, content, source, source.spec)


def _read_entries(path):
    """Reads a list of results, or an object with a list of annotations."""
    if not path.is_file():
        raise UserError(f"There is no folder or file of predictions {path}.")
    content = read_json(path)
    entries = content.get("annotations") if isinstance(content, dict) else content
    lists = [content.get(key) or [] for key in ("images", "categories")] if isinstance(content, dict) else []
    if not all(isinstance(each, list) for each in [entries, *lists]):
        raise UserError(f"{path} must be a list of results, or an object with a list of annotations, as COCO has them.")
    return content
