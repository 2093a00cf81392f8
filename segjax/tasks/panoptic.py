"""Panoptic segmentation: a class for each pixel and a number for each object, scored by panoptic quality."""

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
    divisor: Annotated[int, Key("of panoptic ids that are written, class * divisor + object", "[2, 65536]")] = 1000,
    stuff_area: Annotated[int, Key("stuff of fewer pixels is void", "[0, inf)")] = 2048,
) -> Task:
    """Makes the task.

    Args:
        spec: the data set.
        objective: what is learned; it must find objects.

    Returns:
        The task; figures are PQ, SQ and RQ, of all classes, things and stuff, and by class.

    Raises:
        UserError: a data set without things or of many classes a pixel.
    """
    largest = max(spec.ignore, len(spec.classes))

    def score(state, image):
        # As small as the image allows, whatever is written: ids of a small range are counted without a sort.
        divisor = 1 + max(int(image["instance"].max()), int(image["found_instance"].max()))
        kind = np.int32 if (largest + 1) * divisor < 2**31 else np.int64
        truth, found = (
            image[f"{which}label"].astype(kind) * kind(divisor) + image[f"{which}instance"] for which in ("", "found_")
        )
        crowd = [thing * divisor for thing in spec.things]
        return panoptic.update(state, truth, found, divisor=divisor, ignore=spec.ignore, crowd=crowd)

    return objects.make(
        spec,
        objective,
        divisor=divisor,
        stuff_area=stuff_area,
        overlap=False,
        new=lambda: panoptic.new_state(len(spec.classes)),
        score=score,
        merge=panoptic.merge,
        summary=lambda state: _figures(panoptic.summary(state, spec)),
    )


def _figures(found: dict[str, Any]) -> dict[str, Any]:
    figures = {kind.upper(): found[kind] for kind in ("pq", "sq", "rq")}
    figures |= {f"PQ_{group}": found[group]["pq"] for group in ("things", "stuff")}
    for kind in ("pq", "sq", "rq"):
        figures[f"{kind}_per_class"] = {name: each[kind] for name, each in found["per_class"].items()}
    return figures
