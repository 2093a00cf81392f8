"""The contract between a kind of segmentation and the trainer."""

from collections.abc import Callable
from typing import Any, NamedTuple

from segjax.spec import DatasetSpec


class Task(NamedTuple):
    """A kind of segmentation as a tuple of pure functions.

    spec: the data set as this task reads it; models are made for this one.
    divisor: batches hold instance maps, with fewer objects an image than this, and the model's outputs centres and
        offsets; 0: neither.
    loss: (outputs, batch, axis_name) -> (scalar, {name: scalar}). With an axis name, shares that sum over the
        devices to the value for the global batch.
    predict: (outputs, content, canvas, size, exact) -> dict of maps [b, *size, ...] and tables [b, n]. `content` is
        the batch's; `canvas` is the size of the network's input without its context; `exact` where one input pixel
        is one pixel of the result.
    measure: (outputs, batch, canvas, exact) -> arrays [b, ...] made on the device, from which images are scored.
    new_metric: () -> an empty score, kept on the host in int64.
    update: (score, what was measured of a batch, on the host) -> score.
    summary: score -> dict of figures, ready for JSON.
    targets: (label, instance) -> maps "centre" and "offset" [b, h, w, ...] that the network learns; None where the
        label is all it learns.
    """

    spec: DatasetSpec
    divisor: int
    loss: Callable[..., tuple[Any, dict[str, Any]]]
    predict: Callable[..., dict[str, Any]]
    measure: Callable[..., Any]
    new_metric: Callable[[], Any]
    update: Callable[[Any, Any], Any]
    summary: Callable[[Any], dict[str, Any]]
    targets: Callable[..., Any] | None = None
