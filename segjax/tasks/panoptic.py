"""Panoptic segmentation: a class for each pixel and a number for each object, scored by panoptic quality."""

from typing import Annotated, Any

from segjax.keys import Key
from segjax.metrics import panoptic
from segjax.objectives import Objective
from segjax.spec import DatasetSpec, encode
from segjax.tasks import objects
from segjax.tasks.task import Task

IDS = 1 << 16  # ids within the metric, class * IDS + object: more than a uint16 map has objects


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
    crowds = [thing * IDS for thing in spec.things]

    def score(state, image):
        truth = encode(image["label"], image["instance"], IDS)
        found = encode(image["found_label"], image["found_instance"], IDS)
        return panoptic.update(state, truth, found, divisor=IDS, ignore=spec.ignore, crowd=crowds)

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
