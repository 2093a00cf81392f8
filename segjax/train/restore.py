"""Reads a finished run back from its workdir, and scores it."""

import time
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from segjax.objectives import Objective
from segjax.spec import DatasetSpec
from segjax.train import components, optimizer, state, workdir
from segjax.train.checkpoint import Checkpoints


def restore(
    config: ConfigDict,
    spec: DatasetSpec,
    path: str,
    model: nn.Module | None = None,
    objective: Objective | None = None,
) -> tuple[components.Components, state.State, int]:
    """Reads the chosen checkpoint of a workdir.

    Args:
        config: its configuration.
        spec: its data set.
        path: the folder.
        model: the run's own, where it had one.
        objective: the run's own, where it had one.

    Returns:
        The components, the state on the devices, and its step.

    Raises:
        UserError: no checkpoint, or one that does not fit.
    """
    parts = components.build_components(config, spec, None, model, objective)
    # Shapes of the parameters do not depend on the size of the images, nor of the run on its length.
    tx, _ = optimizer.make(config.optimizer.accumulate, 0, parts.model.layer_order, **config.optimizer)
    side = 2 * (parts.preprocess.context + 64)
    shape = (1, side, side, len(parts.preprocess.mean))
    with Checkpoints(path, **config.checkpoint) as checkpoints:
        chosen = checkpoints.chosen()
        abstract = state.abstract(parts.model, tx, shape, config.ema.decay > 0)
        restored = checkpoints.restore(chosen, abstract, parts.mesh, config.parallel.fsdp)
    return parts, restored, chosen


def evaluate_workdir(
    path: str,
    split: str | None = None,
    config: ConfigDict | None = None,
    *,
    model: nn.Module | None = None,
    objective: Objective | None = None,
    sources: components.Sources = None,
) -> dict[str, Any]:
    """Scores a workdir's checkpoint.

    Args:
        path: folder of a run.
        split: what the source calls it; None is the configured test split.
        config: configuration to use in place of the workdir's; model, objective, task and preprocessing must be the
            same.
        model: the run's own, where it had one.
        objective: the run's own, where it had one.
        sources: sources by split that stand in for the configured one.

    Returns:
        The task's figures, and "split", "step" and "seconds".

    Raises:
        UserError: no run or no checkpoint there, or another model or data set.
    """
    began = time.monotonic()
    config, spec = workdir.read_config(path, config)
    split = split or config.splits.test
    parts, restored, chosen = restore(config, spec, path, model, objective)
    batches = components.eval_batches(config, parts, components.open_source(config, split, sources))
    summary = components.make_evaluator(config, parts, batches)(restored.variables(config.ema.evaluate))
    return summary | {"split": split, "step": chosen, "seconds": round(time.monotonic() - began, 1)}
