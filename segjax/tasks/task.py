"""The contract between a kind of segmentation and the trainer."""

from collections.abc import Callable
from typing import Any, NamedTuple

from segjax.spec import DatasetSpec


class Task(NamedTuple):
    """A kind of segmentation as a tuple of pure functions.

    spec: the data set as this task reads it; models are made for this one.
    loss: (outputs, batch, axis_name) -> (scalar, {name: scalar}). With an axis name, shares that sum over the
        devices to the value for the global batch.
    predict: (outputs, canvas, size, content) -> dict of maps of `size`. `canvas` is the size of the network's
        input without its context; `content` is the batch's, None where sizes agree.
    measure: (outputs, batch, canvas) -> int32 counts [b, ...] of each image, made on the device.
    new_metric: () -> an empty score, kept on the host in int64.
    update: (score, counts) -> score.
    summary: score -> dict of figures, ready for JSON.
    """

    spec: DatasetSpec
    loss: Callable[..., tuple[Any, dict[str, Any]]]
    predict: Callable[..., dict[str, Any]]
    measure: Callable[..., Any]
    new_metric: Callable[[], Any]
    update: Callable[[Any, Any], Any]
    summary: Callable[[Any], dict[str, Any]]
