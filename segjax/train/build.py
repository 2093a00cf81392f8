"""From a configuration to what it describes: model and task, batches, compiled steps."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from segjax import models, parallel, tasks
from segjax.checks import UserError, choose
from segjax.config import Durations, call, durations
from segjax.data import pipeline, sources
from segjax.data.loader import Loading
from segjax.spec import DatasetSpec, Preprocess
from segjax.tasks import Task
from segjax.train import optimizer, state, step

Sources = Mapping[str, Any] | None


class Plan(NamedTuple):
    """What a configuration describes, apart from the training data."""

    mesh: Any
    preprocess: Preprocess
    task: Task
    model: nn.Module


def plan(config: ConfigDict, spec: DatasetSpec, devices: Sequence[jax.Device] | None = None) -> Plan:
    """Builds mesh, preprocessing, task and model.

    Args:
        config: configuration of the run.
        spec: the data set, as its source or a workdir describes it.
        devices: what to compile for, perhaps only described; None is the devices that are there.

    Returns:
        The plan.

    Raises:
        UserError: a key or value that does not fit.
    """
    task = call(tasks.create, "task", config.task, spec)
    built = Plan(
        mesh=call(parallel.make_mesh, "parallel", config.parallel, devices),
        preprocess=call(Preprocess, "preprocess", config.preprocess),
        task=task,
        model=call(models.create, "model", config.model, spec=task.spec),
    )
    if built.model.margin != built.preprocess.context:
        raise UserError(
            f"The model trims {built.model.margin} pixels from each side of its input, so preprocess.context must be "
            f"{built.model.margin}, not {built.preprocess.context}."
        )
    if built.model.finds_objects != (task.divisor > 0):
        pair = f"task.name={config.task.name!r} does not fit model.name={config.model.name!r}"
        raise UserError(
            f"{pair}, which finds no objects: make the configuration with base(model='panoptic_deeplab')."
            if task.divisor
            else f"{pair}, which finds objects: make the configuration with base(task='panoptic') or 'instance'."
        )
    return built


def open_split(config: ConfigDict, split: str, opened: Sources = None) -> Any:
    """Opens a split of the configured source.

    Args:
        config: configuration of the run.
        split: what the source calls it.
        opened: sources by split that stand in for the configured one.

    Returns:
        The source.
    """
    if opened is not None:
        return choose("split", split, opened)
    channels = len(call(Preprocess, "preprocess", config.preprocess).mean)
    return call(sources.create, "source", config.source, split, channels=channels)


def open_train(config: ConfigDict, built: Plan, opened: Sources = None) -> pipeline.Batches:
    """Opens the training split for random crops, without end.

    Args:
        config: configuration of the run.
        built: the plan.
        opened: sources by split that stand in for the configured one.

    Returns:
        The batches.
    """
    parallel.check_batch(built.mesh, config.data.batch_size, "data.batch_size")
    parallel.check_rows(built.mesh, config.data.crop[0], built.preprocess.context)
    source, loading = open_split(config, config.splits.train, opened), call(Loading, "loading", config.loading)
    return call(
        pipeline.train_batches,
        "data",
        config.data,
        source,
        built.preprocess,
        loading,
        config.seed,
        hosts(),
        built.task.divisor,
    )


def open_eval(config: ConfigDict, split: str, built: Plan, opened: Sources = None) -> pipeline.Batches:
    """Opens a split for one pass over its whole images.

    Args:
        config: configuration of the run.
        split: what the source calls it.
        built: the plan.
        opened: sources by split that stand in for the configured one.

    Returns:
        The batches.
    """
    parallel.check_batch(built.mesh, config.eval.batch_size, "eval.batch_size")
    source, loading = open_split(config, split, opened), call(Loading, "loading", config.loading)
    return call(
        pipeline.eval_batches, "eval", config.eval, source, built.preprocess, loading, hosts(), built.task.divisor
    )


class Training(NamedTuple):
    """How a run trains.

    run: its lengths; schedule: learning rate by step; step: compiled; shapes: of the state; first: makes the first
    state.
    """

    run: Durations
    schedule: Callable
    step: Callable
    shapes: state.State
    first: Callable[[], state.State]


def training(config: ConfigDict, built: Plan, batches: pipeline.Batches) -> Training:
    """Makes optimiser and train step.

    Args:
        config: configuration of the run.
        built: the plan.
        batches: from `open_train`.

    Returns:
        What trains; the step gives the memory of its state to the result.
    """
    mesh, preprocess, task, model = built
    run = call(durations, "run", config.run, batches.count, batches.batch_size)
    tx, schedule = call(optimizer.make, "optimizer", config.optimizer, run.total, run.warmup)

    def make(axis):
        colours, decay = dict(config.augment), config.ema.decay
        return step.make_train_step(model, task, tx, preprocess, colours, config.seed, decay, axis)

    shape, averaged, fsdp = batches.shapes["image"][0], config.ema.decay > 0, config.parallel.fsdp
    shapes = state.abstract(model, tx, shape, averaged)
    placed = parallel.state_sharding(mesh, shapes, fsdp)
    compiled = step.compile_step(make, mesh, config.parallel.mode, donate=True, placed=placed)
    first = functools.partial(state.init, model, tx, shape, averaged, config.seed, mesh, fsdp)
    return Training(run, schedule, compiled, shapes, first)


def eval_step(config: ConfigDict, built: Plan) -> Callable:
    """Makes the evaluation step.

    Args:
        config: configuration of the run.
        built: the plan.

    Returns:
        The compiled step of (variables, batch).
    """
    mesh, preprocess, task, model = built
    return step.compile_step(
        lambda axis: step.make_eval_step(model, task, preprocess, axis), mesh, config.parallel.mode, donate=False
    )


def hosts() -> tuple[int, int]:
    """Index of this host, number of hosts."""
    return jax.process_index(), jax.process_count()
