"""Builds the components of a run from its configuration, for training, evaluation, prediction and profiling."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from segjax import parallel
from segjax.checks import UserError, choose
from segjax.data import agreement, pipeline, sources
from segjax.data.formats.opening import Reading
from segjax.data.loader import Loading
from segjax.models import MODELS
from segjax.models.network import Network
from segjax.objectives import OBJECTIVES, Objective
from segjax.spec import DatasetSpec, Preprocess
from segjax.tasks import TASKS, Task
from segjax.train import compilation, optimizer, state, step
from segjax.train.durations import Durations, durations
from segjax.train.evaluate import Evaluator

Sources = Mapping[str, Any]


class Components(NamedTuple):
    """The components that a configuration describes, apart from the data."""

    mesh: Any
    preprocess: Preprocess
    task: Task
    model: nn.Module


def build_components(
    config: ConfigDict,
    spec: DatasetSpec,
    devices: Sequence[jax.Device] | None = None,
    model: nn.Module | None = None,
    objective: Objective | None = None,
) -> Components:
    """Builds the mesh, preprocessing, task and model.

    `spec` is the data set as its source or a workdir describes it, `devices` those to compile for, attached (None) or
    only described. `model` and `objective` replace the configured ones. Raises a UserError if the components do not
    match each other.
    """
    spec = task_spec(config, spec)
    objective = objective or OBJECTIVES[config.objective.name](spec, **without_name(config.objective))
    task = TASKS[config.task.name](spec, objective, **without_name(config.task))
    preprocess = Preprocess(**config.preprocess)
    model = model or MODELS[config.model.name](spec.num_logits, **without_name(config.model))
    if not isinstance(model, Network):
        raise UserError(f"model must be a segjax.models.network.Network, not a {type(model).__name__}.")
    if len(preprocess.mean) != len(spec.image_channels):
        raise UserError(
            f"preprocess.mean={preprocess.mean} has {len(preprocess.mean)} values, but the images have "
            f"{len(spec.image_channels)} channels ({', '.join(spec.image_channels)}): set a mean and std per channel."
        )
    if model.margin != preprocess.context:
        raise UserError(
            f"The model trims {model.margin} pixels from each side of its input, so preprocess.context must be "
            f"{model.margin}, not {preprocess.context}."
        )
    given, learned = set(model.outputs) - {"aux"}, set(objective.outputs)
    if given != learned:
        raise UserError(
            f"model.name={config.model.name!r} outputs {', '.join(sorted(given))}, but objective.name="
            f"{config.objective.name!r} needs {', '.join(sorted(learned))}: choose a matching pair, or pass your own "
            "as model=… and objective=…."
        )
    return Components(parallel.make_mesh(devices, **config.parallel), preprocess, task, model)


def without_name(section: ConfigDict) -> dict[str, Any]:
    """Returns the keys of a section, without its name."""
    return {key: value for key, value in section.items() if key != "name"}


def task_spec(config: ConfigDict, spec: DatasetSpec) -> DatasetSpec:
    """Returns the data set in the mode of the configured task."""
    return spec.in_mode(config.task.mode) if "mode" in config.task else spec


def open_source(config: ConfigDict, split: str, given: Sources | None = None) -> Any:
    """Opens a split of the configured source, or of `given`, which replaces it."""
    if given is not None:
        return choose("split", split, given)
    channels, reading = len(config.preprocess.mean), Reading(**config.reading)
    return sources.create(config.source.name, split, channels=channels, reading=reading, **without_name(config.source))


def train_batches(config: ConfigDict, parts: Components, source: Any) -> pipeline.Batches:
    """Returns endless batches of random crops of a training split."""
    parallel.check_batch(parts.mesh, config.data.batch_size, "data.batch_size")
    parallel.check_rows(parts.mesh, config.data.crop[0], parts.preprocess.context)
    objective = parts.task.objective
    return pipeline.train_batches(
        source,
        parts.preprocess,
        Loading(**config.loading),
        config.seed,
        parallel.process_index_and_count(),
        objective.max_objects if objective.needs_instances else 0,
        **config.data,
    )


def eval_batches(config: ConfigDict, parts: Components, source: Any) -> pipeline.Batches:
    """Returns batches of the full images of a split, each image once."""
    source = agreement.match(source, parts.task.spec, "the split to evaluate", "the data of the model")
    parallel.check_batch(parts.mesh, config.eval.batch_size, "eval.batch_size")
    loading, instances = Loading(**config.loading), parts.task.needs_instances
    process, devices = parallel.process_index_and_count(), parts.mesh.shape[parallel.DATA]
    return pipeline.eval_batches(source, parts.preprocess, loading, process, instances, devices, **config.eval)


class Training(NamedTuple):
    """Everything that a run needs to train."""

    durations: Durations
    schedule: Callable  # step number -> learning rate
    step: Callable  # compiled; donates its input state
    shapes: state.TrainState
    init_state: Callable[[], state.TrainState]


def make_training(config: ConfigDict, parts: Components, batches: pipeline.Batches) -> Training:
    """Makes the optimiser, the train step and the initial state for the batches of `train_batches`."""
    mesh, preprocess, task, model = parts
    run = durations(batches.count, batches.batch_size, **config.run)
    tx, schedule = optimizer.make_optimizer(
        run.total, run.warmup, model.layer_order, task.objective.num_parts, **config.optimizer
    )

    def make(axis):
        colours, decay = dict(config.augment), config.ema.decay
        return step.make_train_step(
            model, task.objective, tx, preprocess, colours, config.seed, run.total, decay, axis, config.optimizer.frozen
        )

    shape, averaged, fsdp = batches.shapes["image"][0], config.ema.decay > 0, config.parallel.fsdp
    shapes = state.abstract_state(model, tx, shape, averaged)
    shardings = parallel.state_shardings(mesh, shapes, fsdp)
    compiled = compilation.compile_train(make, mesh, config.parallel.transform, shardings)
    first = functools.partial(state.init_state, model, tx, shape, averaged, config.seed, mesh, fsdp)
    return Training(run, schedule, compiled, shapes, first)


def make_evaluator(config: ConfigDict, parts: Components, batches: pipeline.Batches) -> Evaluator:
    """Makes the evaluator that scores variables on the batches of `eval_batches`."""

    def make(axis):
        return step.make_eval_step(parts.model, parts.task, parts.preprocess, axis)

    compiled = compilation.compile_eval(make, parts.mesh, config.parallel.transform)
    return Evaluator(compiled, parts.task, batches, parts.mesh, config.parallel.transform)
