"""Panoptic segmentation: a class for each pixel and a number for each object; evaluated by panoptic quality."""

import functools
from typing import Annotated, Any

import numpy as np

from segjax.checks import Key
from segjax.metrics import panoptic
from segjax.objectives import Objective
from segjax.spec import DatasetSpec
from segjax.tasks import objects
from segjax.tasks.task import Task


def create(
    spec: DatasetSpec,
    objective: Objective,
    *,
    divisor: Annotated[
        int, Key("divisor of the panoptic ids that are written: class * divisor + object", "[2, 65536]")
    ] = 1000,
    stuff_area: Annotated[int, Key("stuff with fewer pixels becomes void", "[0, inf)")] = 2048,
) -> Task:
    """Makes the task.

    Args:
        spec: the data set.
        objective: an objective that finds objects.

    Returns:
        The task; its metrics are PQ, SQ and RQ, over all classes, things and stuff, and per class.

    Raises:
        UserError: the data set has no things, or several classes per pixel.
    """
    return objects.make_object_task(
        spec,
        objective,
        divisor=divisor,
        stuff_area=stuff_area,
        overlap=False,
        new=lambda: panoptic.new(spec),
        score=functools.partial(score, spec),
        merge=panoptic.merge,
        summary=summary,
    )


def score(spec: DatasetSpec, state: panoptic.PanopticState, image: dict[str, Any]) -> panoptic.PanopticState:
    """Adds an image: "label" and "instance" of the ground truth, "found_label" and "found_instance" [y, x]."""
    # The smallest divisor that fits the image: ids of a small range are counted without a sort.
    divisor = 1 + max(int(image["instance"].max()), int(image["found_instance"].max()))
    kind = np.int32 if (max(spec.ignore, len(spec.classes)) + 1) * divisor < 2**31 else np.int64
    ground_truth, found = (
        image[f"{which}label"].astype(kind) * kind(divisor) + image[f"{which}instance"] for which in ("", "found_")
    )
    crowd = [thing * divisor for thing in spec.things]
    return panoptic.update(state, ground_truth, found, divisor=divisor, ignore=spec.ignore, crowd=crowd)


def summary(state: panoptic.PanopticState) -> dict[str, Any]:
    """Returns PQ, SQ and RQ, over all classes, things and stuff, and per class."""
    found = panoptic.summary(state)
    metrics = {kind.upper(): found[kind] for kind in ("pq", "sq", "rq")}
    metrics |= {f"PQ_{group}": found[group]["pq"] for group in ("things", "stuff")}
    for kind in ("pq", "sq", "rq"):
        metrics[f"{kind}_per_class"] = {name: each[kind] for name, each in found["per_class"].items()}
    return metrics
