"""Evaluates predictions in files that any tool wrote against a split of the configured source."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ml_collections import ConfigDict

from segjax.checks import UserError
from segjax.data import predictions
from segjax.spec import DatasetSpec
from segjax.tasks import decided
from segjax.train import components

READERS = 4  # threads
COCO_DETECTIONS = 100  # per image and class, as pycocotools counts them


def evaluate_predictions(
    path: str | os.PathLike,
    config: ConfigDict,
    split: str | None = None,
    *,
    ids: str = "classes",
    trained: DatasetSpec | None = None,
    sources: components.Sources | None = None,
) -> dict[str, Any]:
    """Evaluates predictions in files, without a model.

    The files say what is scored: masks by IoU and its kin, COCO's panoptic format by panoptic quality, and COCO's
    results by average precision. Results against the source `coco_instances` are scored as pycocotools scores the two
    files: every annotation counts, with its own area and box, and 100 detections per image and class. Against any other
    source all detections count, as in a model's own evaluation.

    Args:
        path: folder of masks, JSON file in COCO's panoptic or results format, or folder that `segjax predict` wrote.
        config: its sections `source`, `splits` and `task` are used.
        split: the source's name of the split; None uses the configured test split.
        ids: values of masks: "classes" for class indices, "source" for those of the data set's own mask files.
        trained: the data set of the run that predicted, whose order of the classes gives class indices; None for that
            of the split.
        sources: sources by split, in place of the configured one.

    Returns:
        The metrics, plus "split", "predictions" and "seconds"; "max_detections" where pycocotools' limit holds.

    Raises:
        UserError: an image of the split has no prediction, or a file does not match the split.
    """
    began, split = time.monotonic(), split or config.splits.test
    source = components.open_source(config, split, sources)
    task, mode = config.task.name, components.task_spec(config, source.spec).mode
    found = predictions.open_predictions(path, source, task=task, mode=mode, ids=ids, trained=trained)
    coco = isinstance(found, predictions.CocoDetections)
    if isinstance(found, predictions.Masks):
        scorer = decided.score_classes(found.spec)
    elif isinstance(found, predictions.Panoptic):
        scorer = decided.score_panoptic(found.spec)
    else:
        scorer = decided.score_objects(found.spec, COCO_DETECTIONS if coco else None)

    def score(i):
        sample = {"objects": found.ground_truth(i)} if coco else found.source.read(i)
        if not coco and not isinstance(found, predictions.Masks) and "instance" not in sample:
            raise UserError("The predictions are objects, but the source has none: it needs instance maps.")
        return scorer.update(scorer.new(), sample, found.read(i, sample))

    state = scorer.new()
    with ThreadPoolExecutor(READERS) as pool:
        for one in pool.map(score, found.order() if coco else range(len(source))):
            state = scorer.merge(state, one)
    facts = {"max_detections": COCO_DETECTIONS} if coco else {}
    facts |= {"split": split, "predictions": os.fspath(path), "seconds": round(time.monotonic() - began, 1)}
    return scorer.summary(state) | facts
