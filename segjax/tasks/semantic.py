"""Semantic segmentation: one of k classes per pixel, one of two, or any number of classes at once."""

import functools
from typing import Annotated

import jax
import jax.numpy as jnp

from segjax import losses
from segjax.checks import Key, UserError
from segjax.metrics import confusion, multilabel
from segjax.objectives import Objective
from segjax.spec import DatasetSpec, Segments
from segjax.tasks.task import Task


def create(
    spec: DatasetSpec,
    objective: Objective,
    *,
    mode: Annotated[
        str, Key("classes per pixel; sets head, loss, decision, metrics", ("multiclass", "binary", "multilabel"))
    ] = "multiclass",
) -> Task:
    """Makes the task.

        mode         logits   decision              probability
        multiclass   k        largest logit         softmax
        binary       1        logit above 0         sigmoid
        multilabel   k        each logit above 0    sigmoid

    Args:
        spec: the data set in this mode, see `DatasetSpec.in_mode`.
        objective: the objective that decodes the network's outputs.

    Returns:
        The task.

    Raises:
        UserError: the data set is in another mode.
    """
    if spec.mode != mode:
        raise UserError(f"task.mode={mode!r}, but the labels are read as {spec.mode}: pass spec.in_mode({mode!r}).")
    classes = len(spec.classes)

    def decide(maps, geometry, probabilities=False):
        logits = objective.decode(maps, geometry).logits
        if mode == "multiclass":
            label = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            label = logits > 0 if mode == "multilabel" else (logits[..., 0] > 0).astype(jnp.int32)
        activate = jax.nn.softmax if mode == "multiclass" else jax.nn.sigmoid
        return Segments(label, probability=activate(logits) if probabilities else None)

    def measure(maps, batch, geometry):
        label, valid = losses.split_ignore(batch["label"], spec.ignore)
        segments = decide(maps, geometry)
        if mode == "multilabel":
            return multilabel.multilabel_confusion(label == 1, segments.label, valid), segments
        return confusion.confusion_matrix(label, segments.label, valid, classes), segments

    return Task(
        spec=spec,
        objective=objective,
        decide=decide,
        measure=measure,
        new_metric=functools.partial(confusion.new, spec),
        update=confusion.update,
        merge=confusion.merge,
        summary=confusion.summary,
    )
