"""Scores a model on a whole split: each image once, each pixel at the label's own size."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from segjax import parallel
from segjax.data.pipeline import Batches
from segjax.tasks import Task


def evaluate(
    eval_step: Callable, variables: dict[str, Any], task: Task, batches: Batches, mesh: Mesh, mode: parallel.Mode
) -> dict[str, Any]:
    """Runs over a split and scores its images.

    Args:
        eval_step: compiled step of `step.make_eval_step`.
        variables: what the model is applied with.
        task: how they are scored.
        batches: from `pipeline.eval_batches`.
        mesh: the devices.
        mode: how the step was compiled.

    Returns:
        The task's summary.
    """
    score, pending = task.new_metric(), None
    for batch in batches.batches(0, int(batches.count)):
        batch.pop("position")
        measured = eval_step(variables, parallel.put_batch(mesh, batch, mode))
        # One batch behind, so that the host scores while the devices compute.
        if pending is not None:
            score = task.update(score, jax.device_get(pending))
        pending = measured
    if pending is not None:
        score = task.update(score, jax.device_get(pending))
    return task.summary(score)
