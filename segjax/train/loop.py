"""Trains and scores a model: the whole of a run, top to bottom."""

import math
import time
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from segjax import models, parallel, tasks
from segjax.config import call, durations, to_dict
from segjax.data import pipeline, sources
from segjax.data.loader import Loading
from segjax.spec import DatasetSpec, Preprocess, UserError
from segjax.tasks import Task
from segjax.train import checkpoint, optimizer, state, step
from segjax.train.evaluate import evaluate
from segjax.train.log import Log


class Plan(NamedTuple):
    """What a configuration describes, apart from the training data."""

    mesh: Any
    preprocess: Preprocess
    task: Task
    model: nn.Module


def plan(config: ConfigDict, spec: DatasetSpec) -> Plan:
    """Builds mesh, preprocessing, task and model.

    Args:
        config: configuration of the run.
        spec: the data set, as its source or a workdir describes it.

    Returns:
        The plan.

    Raises:
        UserError: a key or value that does not fit.
    """
    task = call(tasks.create, "task", config.task, spec)
    return Plan(
        mesh=call(parallel.make_mesh, "parallel", config.parallel),
        preprocess=call(Preprocess, "preprocess", config.preprocess),
        task=task,
        model=call(models.create, "model", config.model, spec=task.spec),
    )


def open_split(config: ConfigDict, split: str) -> Any:
    """Opens a split of the configured source.

    Args:
        config: configuration of the run.
        split: what the source calls it.

    Returns:
        The source.
    """
    channels = len(config.preprocess.mean)
    return call(sources.create, "source", config.source, split, channels=channels)


def open_eval(config: ConfigDict, split: str, mesh: Any) -> pipeline.Batches:
    """Opens a split for one pass over its whole images.

    Args:
        config: configuration of the run.
        split: what the source calls it.
        mesh: the devices.

    Returns:
        The batches.
    """
    parallel.check_batch(mesh, config.eval.batch_size, "eval.batch_size")
    return call(
        pipeline.eval_batches,
        "eval",
        config.eval,
        open_split(config, split),
        call(Preprocess, "preprocess", config.preprocess),
        call(Loading, "loading", config.loading),
        (jax.process_index(), jax.process_count()),
    )


def train_and_evaluate(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains a model on a data set; resumes from the workdir by itself.

    Args:
        config: from `segjax.config.base`.
        workdir: folder for configuration, log, checkpoints and report.

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
    source = open_split(config, config.splits.train)
    mesh, preprocess, task, model = plan(config, source.spec)
    parallel.check_batch(mesh, config.data.batch_size, "data.batch_size")
    hosts = (jax.process_index(), jax.process_count())
    loading = call(Loading, "loading", config.loading)
    train = call(pipeline.train_batches, "data", config.data, source, preprocess, loading, config.seed, hosts)
    test = open_eval(config, config.splits.test, mesh)
    run = call(durations, "run", config.run, train.count, train.batch_size)
    tx, schedule = call(optimizer.make, "optimizer", config.optimizer, run.total, run.warmup)
    mode, ema = config.parallel.mode, config.ema

    changed = call(checkpoint.claim, "init", config.init, workdir, config, task.spec)
    checkpoints = call(checkpoint.Checkpoints, "checkpoint", config.checkpoint, workdir)
    shape, start = train.shapes["image"][0], checkpoints.latest()
    if start is None:
        start, now = 0, state.init(model, tx, shape, ema.decay > 0, config.seed, mesh)
    else:
        now = checkpoints.restore(start, state.abstract(model, tx, shape, ema.decay > 0), mesh)

    def make_train(axis):
        amplitudes = dict(config.augment)
        return step.make_train_step(model, task, tx, preprocess, amplitudes, config.seed, ema.decay, axis)

    train_step = step.compile_step(make_train, mesh, mode, donate=True)
    eval_step = step.compile_step(
        lambda axis: step.make_eval_step(model, task, preprocess, axis), mesh, mode, donate=False
    )

    with call(Log, "log", config.log, workdir, run.total, config=to_dict(config), enabled=hosts[0] == 0) as log:
        log.truncate(start)
        log.message(describe(mesh, mode, train, test, now.params, start, changed))
        batches, previous = train.batches(start, run.total), (start, time.monotonic())
        for i, batch in enumerate(batches, start + 1):
            now, scalars = train_step(now, parallel.put_batch(mesh, batch, mode))
            if run.due("log", i):
                scalars = {k: float(v) for k, v in jax.device_get(scalars).items()}
                if not math.isfinite(scalars["loss"]):
                    raise UserError(
                        f"The loss is {scalars['loss']} at step {i}. Lower optimizer.learning_rate, lengthen "
                        f"run.warmup or set optimizer.clip=1.0; the last checkpoint in {workdir} is untouched."
                    )
                rate = (i - previous[0]) * train.batch_size / (time.monotonic() - previous[1])
                log.write(i, "train", scalars | {"learning_rate": float(schedule(i - 1)), "images_per_second": rate})
                log.progress(i, scalars["loss"], rate)
                previous = (i, time.monotonic())
            summary = None
            if run.due("eval", i):
                summary = evaluate(eval_step, now.variables(ema.evaluate), task, test, mesh, mode)
                log.write(i, "test", summary)
            if summary is not None or run.due("checkpoint", i):
                checkpoints.save(i, parallel.as_global(mesh, now), summary)
            if summary is not None:
                previous = (i, time.monotonic())
        chosen = checkpoints.chosen()
        summary = checkpoints.summary(chosen) or {}
        checkpoints.close()
        log.table(summary)
    return summary | {"step": chosen, "seconds": round(time.monotonic() - began, 1)}


def evaluate_workdir(workdir: str, split: str | None = None, overrides: ConfigDict | None = None) -> dict[str, Any]:
    """Scores a workdir's checkpoint.

    Args:
        workdir: folder of a run.
        split: what the source calls it; None is the configured test split.
        overrides: configuration to use in place of the workdir's; the model must be the same.

    Returns:
        The task's figures, and "split", "step" and "seconds".

    Raises:
        UserError: no run or no checkpoint there.
    """
    began = time.monotonic()
    config, spec = checkpoint.read_config(workdir)
    config = overrides or config
    split = split or config.splits.test
    built, now, chosen = restore(config, spec, workdir)
    test = open_eval(config, split, built.mesh)
    if test.spec.classes != spec.classes:
        raise UserError(f"The split has classes {test.spec.classes}, but the model was trained on {spec.classes}.")
    eval_step = step.compile_step(
        lambda axis: step.make_eval_step(built.model, built.task, built.preprocess, axis),
        built.mesh,
        config.parallel.mode,
        donate=False,
    )
    variables = now.variables(config.ema.evaluate)
    summary = evaluate(eval_step, variables, built.task, test, built.mesh, config.parallel.mode)
    return summary | {"split": split, "step": chosen, "seconds": round(time.monotonic() - began, 1)}


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
    checkpoints = call(checkpoint.Checkpoints, "checkpoint", config.checkpoint, workdir)
    chosen = checkpoints.chosen()
    now = checkpoints.restore(chosen, state.abstract(built.model, tx, shape, config.ema.decay > 0), built.mesh)
    checkpoints.close()
    return built, now, chosen


def describe(mesh, mode, train, test, params, start, changed) -> str:
    """What a run is about to do, in a few lines."""
    device = mesh.devices.flat[0]
    count = sum(x.size for x in jax.tree.leaves(params))
    lines = [
        f"{mode} on {mesh.devices.size} x {device.device_kind} ({jax.process_count()} hosts)",
        f"{len(train.source)} training and {len(test.source)} test images, {len(train.spec.classes)} classes, "
        f"{count:,} parameters",
        f"resumed at step {start}" if start else "from scratch",
    ]
    return "\n".join(lines + [f"changed since the last run here: {line}" for line in changed])
