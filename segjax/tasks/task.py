"""The interface between a kind of segmentation and the trainer."""

from collections.abc import Callable
from typing import Any, NamedTuple

from segjax.objectives import Objective
from segjax.spec import DatasetSpec, Segments


class Task(NamedTuple):
    """Predictions and metrics of a kind of segmentation, as a tuple of pure functions.

    spec: the data set as this task reads it; model and objective are made for this spec.
    objective: the loss and the decoding of the network.
    decide: (maps, geometry, probabilities=False) -> Segments; `maps` come from the objective and may be averaged.
    measure: (maps, batch, geometry) -> measurements to score images from, arrays [b, ...] on the device, and Segments.
    new_metric: () -> an empty metric state, kept on the host in int64.
    update: (state, measurements of a batch, on the host) -> state.
    merge: (state, state) -> the state of the images of both.
    summary: state -> dict of metrics, ready for JSON.
    needs_instances: whether scoring needs instance maps.
    divisor: divisor of written panoptic ids, class * divisor + object; 0 if the task has no objects.
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
