"""Scores decisions that are already made, such as those in files, on the host and without a model."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from segjax.metrics import confusion, instance
from segjax.metrics import panoptic as panoptic_metric
from segjax.spec import DatasetSpec, Segments
from segjax.tasks import objects, panoptic


class Scorer(NamedTuple):
    """A metric of decisions, in the protocol of `segjax.metrics`.

    new: () -> an empty state.
    update: (state, sample that a source reads, decision) -> the state with the image added.
    merge: (state, state) -> the state of the images of both.
    summary: state -> dict of metrics, ready for JSON, with the names of the task's own evaluation.
    """

    new: Callable[[], Any]
    update: Callable[[Any, Any, Any], Any]
    merge: Callable[[Any, Any], Any]
    summary: Callable[[Any], dict[str, Any]]


def score_classes(spec: DatasetSpec) -> Scorer:
    """Scores the label of `Segments` by class: IoU, Dice, precision, recall, accuracy.

    Labelled pixels where nothing is predicted are misses of their class.

    Args:
        spec: the data set, in the mode of its task.

    Example:
        >>> scorer = score_classes(DatasetSpec(("road", "car")))
        >>> found = Segments(np.array([[0, 1, 255]]))
        >>> scorer.summary(scorer.update(scorer.new(), {"label": np.array([[0, 1, 1]])}, found))["iou_per_class"]
        {'road': 1.0, 'car': 0.5}
    """

    def update(state, sample: dict[str, np.ndarray], found: Segments):
        return confusion.update(state, confusion.count_decided(sample["label"], found.label, spec)[None])

    return Scorer(functools.partial(confusion.new, spec), update, confusion.merge, confusion.summary)


def score_panoptic(spec: DatasetSpec) -> Scorer:
    """Scores label and instance of `Segments` by panoptic quality, and the label by IoU.

    Each pair of class and number is a segment, of stuff too. Labelled pixels where nothing is predicted are misses of
    their class in IoU; a model's own evaluation takes the largest logit there.

    Args:
        spec: the data set.
    """
    pixels = score_classes(spec)

    def update(state, sample, found):
        classes, segments = pixels.update(state[0], sample, found), state[1]
        if (sample["label"] != spec.ignore).any():
            image = {"label": sample["label"], "instance": sample["instance"]}
            image |= {"found_label": found.label, "found_instance": found.instance}
            segments = panoptic.score(spec, segments, image)
        return classes, segments

    def merge(a, b):
        return confusion.merge(a[0], b[0]), panoptic_metric.merge(a[1], b[1])

    return Scorer(
        lambda: (confusion.new(spec), panoptic_metric.new(spec)),
        update,
        merge,
        lambda state: panoptic.summary(state[1]) | objects.pixel_metrics(state[0]),
    )


def score_objects(spec: DatasetSpec, max_detections: int | None) -> Scorer:
    """Scores `metrics.instance.Objects` by average precision and recall.

    A sample has "objects", those of its annotations, or "label" and "instance", whose objects are then taken.

    Args:
        spec: the data set.
        max_detections: how many detections per image and class count: 100 in COCO, None for all.
    """

    def update(state, sample, found):
        if "objects" in sample:
            return instance.update(state, sample["objects"], found)
        if not (sample["label"] != spec.ignore).any():
            return state
        return instance.update(state, instance.objects_of_maps(sample["label"], sample["instance"], spec), found)

    summary = functools.partial(instance.summary, max_detections=max_detections)
    return Scorer(functools.partial(instance.new, spec), update, instance.merge, summary)
