"""Trains and scores a model: the whole of a run, top to bottom."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from segjax import parallel
from segjax.checks import UserError
from segjax.config import call, to_dict
from segjax.data import pipeline
from segjax.spec import DatasetSpec
from segjax.train import cache, checkpoint, optimizer, state
from segjax.train.build import Plan, Sources, eval_step, hosts, open_eval, open_split, open_train, plan, training
from segjax.train.evaluate import evaluate
from segjax.train.log import Log


def scorer(config: ConfigDict, built: Plan, batches: pipeline.Batches) -> Callable[[state.State], dict[str, Any]]:
    """Compiles the evaluation step.

    Args:
        config: configuration of the run.
        built: the plan.
        batches: from `open_eval`.

    Returns:
        State -> the task's figures for these batches.
    """
    compiled, mode = eval_step(config, built), config.parallel.mode
    return lambda now: evaluate(compiled, now.variables(config.ema.evaluate), built.task, batches, built.mesh, mode)


def train_and_evaluate(config: ConfigDict, workdir: str, opened: Sources = None) -> dict[str, Any]:
    """Trains a model on a data set; resumes from the workdir by itself.

    Args:
        config: from `segjax.config.base`.
        workdir: folder for configuration, log and checkpoints.
        opened: sources by split, such as {"train": …, "test": …}, that stand in for the configured one: arrays in
            memory, or a source of your own.

    Returns:
        Figures of the best (or last) checkpoint on the test split, and "step" and "seconds".

    Raises:
        UserError: whatever is wrong with configuration, data or workdir, before the first step where possible.

    Example:
        >>> import tempfile, segjax.config
        >>> config = segjax.config.base(source="shapes")
        >>> config.run.total, config.data.crop, config.model.widths = 1, (32, 32), (4, 8)
        >>> config.source.count, config.source.size = 8, (32, 32)
        >>> train_and_evaluate(config, tempfile.mkdtemp())["step"]
        1
    """
    began = time.monotonic()
    source = open_split(config, config.splits.train, opened)
    built = mesh, preprocess, task, model = plan(config, source.spec)
    train = open_train(config, built, {config.splits.train: source})
    test = open_eval(config, config.splits.test, built, opened)
    run, schedule, train_step, shapes, first = training(config, built, train)
    mode = config.parallel.mode
    checkpoint.check_shared(workdir)
    changed = call(checkpoint.compare, "resume", config.resume, workdir, config, task.spec)
    score = scorer(config, built, test)

    with (
        call(checkpoint.Checkpoints, "checkpoint", config.checkpoint, workdir) as checkpoints,
        call(Log, "log", config.log, workdir, run.total, config=to_dict(config), enabled=hosts()[0] == 0) as log,
    ):
        checkpoints.check_best(task.summary(task.new_metric()))
        start = checkpoints.latest() or 0
        if start:
            now = checkpoints.restore(start, shapes, mesh, config.parallel.fsdp)
            origin = f"resumed at step {start}" + (", so init.weights is not read" if config.init.weights else "")
        else:
            now = first()
            now, origin = call(state.start_from, "init", config.init, now, model, preprocess)
        checkpoint.record(workdir, config, task.spec)
        log.truncate(start)
        log.message(describe(mesh, mode, train, test, now.params, origin, changed))
        previous = (start, time.monotonic())
        for i, batch in enumerate(train.batches(start, run.total), start + 1):
            now, scalars = train_step(now, parallel.put_batch(mesh, batch, mode))
            if i == start + 1:
                jax.block_until_ready(scalars)
                log.message(first_step(began))
            due = {what for what in ("log", "eval", "checkpoint") if run.due(what, i)}
            if due:
                scalars = {k: float(v) for k, v in jax.device_get(scalars).items()}
                check_finite(scalars["loss"], i, workdir)
                rate = (i - previous[0]) * train.batch_size / (time.monotonic() - previous[1])
                rates = {"learning_rate": float(schedule(i - 1)), "images_per_second": rate}
                log.write(i, "train", scalars | rates)
                log.progress(i, scalars["loss"], rate)
            summary = score(now) if "eval" in due else None
            if summary is not None:
                log.write(i, "test", summary)
                best = summary[config.checkpoint.best]
                figure = f"{best:.4f}" if isinstance(best, float) else best
                log.message(f"step {i}  {config.splits.test} {config.checkpoint.best} {figure}")
            if due & {"eval", "checkpoint"}:
                checkpoints.save(i, parallel.as_global(mesh, now), summary)
            if due:
                previous = (i, time.monotonic())
        chosen = checkpoints.chosen()
        # Only a run that was cut short after its last evaluation ends with a checkpoint without figures.
        summary = checkpoints.summary(chosen) or score(now)
        log.table(summary)
    return summary | {"step": chosen, "seconds": round(time.monotonic() - began, 1)}


def first_step(began: float) -> str:
    """How long the start took, and what the cache of programs had to do with it."""
    programs = cache.counts()
    return (
        f"first step after {time.monotonic() - began:.1f} s "
        f"({programs.misses} programs compiled for the cache, {programs.hits} from it)"
    )


def check_finite(loss: float, at: int, workdir: str) -> None:
    """Stops a run whose loss is not a number, before that state is saved.

    Args:
        loss: of the last step.
        at: its number.
        workdir: folder of the run.

    Raises:
        UserError: the loss is infinite or not a number.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"The loss is {loss} at step {at}. Lower optimizer.learning_rate, lengthen run.warmup or set "
            f"optimizer.clip=1.0; the last checkpoint in {workdir} is untouched."
        )


def evaluate_workdir(
    workdir: str, split: str | None = None, overrides: ConfigDict | None = None, opened: Sources = None
) -> dict[str, Any]:
    """Scores a workdir's checkpoint.

    Args:
        workdir: folder of a run.
        split: what the source calls it; None is the configured test split.
        overrides: configuration to use in place of the workdir's; model, task and preprocessing must be the same.
        opened: sources by split that stand in for the configured one.

    Returns:
        The task's figures, and "split", "step" and "seconds".

    Raises:
        UserError: no run or no checkpoint there, or another model or data set.
    """
    began = time.monotonic()
    config, spec = checkpoint.read_config(workdir)
    if overrides is not None:
        checkpoint.compare(workdir, overrides, spec)
        config = overrides
    split = split or config.splits.test
    built, now, chosen = restore(config, spec, workdir)
    test = open_eval(config, split, built, opened)
    if test.spec.classes != spec.classes:
        raise UserError(f"The split has classes {test.spec.classes}, but the model was trained on {spec.classes}.")
    return scorer(config, built, test)(now) | {
        "split": split,
        "step": chosen,
        "seconds": round(time.monotonic() - began, 1),
    }


def restore(config: ConfigDict, spec: DatasetSpec, workdir: str) -> tuple[Plan, state.State, int]:
    """Reads the chosen checkpoint of a workdir.

    Args:
        config: its configuration.
        spec: its data set.
        workdir: the folder.

    Returns:
        The plan, the state on the devices, and its step.

    Raises:
        UserError: no checkpoint, or one that does not fit.
    """
    built = plan(config, spec)
    # Shapes of the parameters do not depend on the size of the images, nor of the run on its length.
    tx, _ = call(optimizer.make, "optimizer", config.optimizer, config.optimizer.accumulate)
    side = 2 * (built.preprocess.context + 64)
    shape = (1, side, side, len(built.preprocess.mean))
    with call(checkpoint.Checkpoints, "checkpoint", config.checkpoint, workdir) as checkpoints:
        chosen = checkpoints.chosen()
        abstract = state.abstract(built.model, tx, shape, config.ema.decay > 0)
        now = checkpoints.restore(chosen, abstract, built.mesh, config.parallel.fsdp)
    return built, now, chosen


def describe(mesh, mode, train, test, params, origin, changed) -> str:
    """What a run is about to do, in a few lines."""
    device = mesh.devices.flat[0]
    count = sum(x.size for x in jax.tree.leaves(params))
    devices = " x ".join(f"{name} {n}" for name, n in mesh.shape.items())
    lines = [
        f"{mode} on {mesh.devices.size} x {device.device_kind} ({devices}, hosts: {jax.process_count()})",
        f"{len(train.source)} training and {len(test.source)} test images, {len(train.spec.classes)} classes, "
        f"{count:,} parameters",
        origin,
    ]
    return "\n".join(lines + [f"changed since the last run here: {line}" for line in changed])
