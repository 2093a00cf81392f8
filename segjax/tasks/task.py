"""The contract between a kind of segmentation and the trainer."""

from collections.abc import Callable
from typing import Any, NamedTuple

from segjax.objectives import Objective
from segjax.spec import DatasetSpec, Segments


class Task(NamedTuple):
    """How what was learned is decided and scored, as a tuple of pure functions.

    spec: the data set as this task reads it; model and objective are made for this one.
    objective: what is learned.
    decide: (maps, geometry, probabilities=False) -> Segments; `maps` come from the objective, perhaps averaged.
    measure: (maps, batch, geometry) -> what images are scored from, arrays [b, ...] made on the device, and Segments.
    new_metric: () -> an empty score, kept on the host in int64.
    update: (score, what was measured of a batch, on the host) -> score.
    merge: (score, score) -> the score of the images of both.
    summary: score -> dict of figures, ready for JSON.
    needs_instances: whether images are scored by instance maps.
    divisor: of panoptic ids that are written, class * divisor + object; 0 where no objects are told apart.
    """

    spec: DatasetSpec
    objective: Objective
    decide: Callable[..., Segments]
    measure: Callable[..., Any]
    new_metric: Callable[[], Any]
    update: Callable[[Any, Any], Any]
    merge: Callable[[Any, Any], Any]
    summary: Callable[[Any], dict[str, Any]]
    needs_instances: bool = False
    divisor: int = 0
