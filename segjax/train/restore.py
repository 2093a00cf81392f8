"""Restores a run from its workdir and evaluates it."""

import time
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from segjax.objectives import Objective
from segjax.spec import DatasetSpec
from segjax.train import components, optimizer, state
from segjax.train import workdir as workdirs
from segjax.train.checkpoint import Checkpoints


def restore(
    config: ConfigDict,
    spec: DatasetSpec,
    workdir: str,
    model: nn.Module | None = None,
    objective: Objective | None = None,
) -> tuple[components.Components, state.TrainState, int]:
    """Restores the chosen checkpoint of a workdir.

    Args:
        config: configuration of the run.
        spec: data set of the run.
        workdir: folder of the run.
        model: the model passed to the run, if any.
        objective: the objective passed to the run, if any.

    Returns:
        The components, the state on the devices, and its step.

    Raises:
        UserError: there is no checkpoint, or it does not match the configuration.
    """
    parts = components.build_components(config, spec, None, model, objective)
    # The shapes of the state depend neither on the image size nor on the length of the run.
    tx, _ = optimizer.make_optimizer(
        config.optimizer.accumulate, 0, parts.model.layer_order, parts.task.objective.num_parts, **config.optimizer
    )
    side = 2 * (parts.preprocess.context + 64)
    shape = (1, side, side, len(parts.preprocess.mean))
    with Checkpoints(workdir, **config.checkpoint) as checkpoints:
        chosen = checkpoints.chosen()
        abstract = state.abstract_state(parts.model, tx, shape, config.ema.decay > 0)
        restored = checkpoints.restore(chosen, abstract, parts.mesh, config.parallel.fsdp)
    return parts, restored, chosen


def evaluate_workdir(
    workdir: str,
    split: str | None = None,
    config: ConfigDict | None = None,
    *,
    model: nn.Module | None = None,
    objective: Objective | None = None,
    sources: components.Sources | None = None,
) -> dict[str, Any]:
    """Evaluates the chosen checkpoint of a workdir.

    Args:
        workdir: folder of the run.
        split: the source's name of the split; None uses the configured test split.
        config: replaces the workdir's configuration; model, objective, task and preprocessing must be the same.
        model: the model passed to the run, if any.
        objective: the objective passed to the run, if any.
        sources: sources by split, in place of the configured one.

    Returns:
        The task's metrics, plus "split", "step" and "seconds".

    Raises:
        UserError: the workdir has no run or no checkpoint, or belongs to another model or data set.
    """
    began = time.monotonic()
    config, spec = workdirs.read_config(workdir, config)
    split = split or config.splits.test
    parts, restored, chosen = restore(config, spec, workdir, model, objective)
    batches = components.eval_batches(config, parts, components.open_source(config, split, sources))
    summary = components.make_evaluator(config, parts, batches)(restored.variables(config.ema.evaluate))
    return summary | {"split": split, "step": chosen, "seconds": round(time.monotonic() - began, 1)}
