"""From a configuration to the parts of a run; shared by training, evaluation, prediction and profiling."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from segjax import parallel
from segjax.checks import UserError, check_section, choose
from segjax.data import pipeline
from segjax.data.loader import Loading
from segjax.data.sources import SOURCES
from segjax.models import MODELS
from segjax.models.network import Network
from segjax.objectives import OBJECTIVES, Objective
from segjax.spec import DatasetSpec, Preprocess
from segjax.tasks import TASKS, Task
from segjax.train import compilation, optimizer, state, step
from segjax.train.durations import Durations, durations
from segjax.train.evaluate import Evaluator

Sources = Mapping[str, Any] | None


class Components(NamedTuple):
    """What a configuration describes, apart from the data."""

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
    """Builds mesh, preprocessing, task and model.

    Args:
        config: configuration of the run.
        spec: the data set, as its source or a workdir describes it.
        devices: what to compile for, perhaps only described; None is the devices that are there.
        model, objective: used in place of the configured ones.

    Raises:
        UserError: parts that do not fit each other.
    """
    spec = read_labels(config, spec)
    objective = objective or OBJECTIVES[config.objective.name](spec, **settings(config.objective))
    task = TASKS[config.task.name](spec, objective, **settings(config.task))
    preprocess = Preprocess(**config.preprocess)
    model = model or MODELS[config.model.name](spec.num_logits, **settings(config.model))
    if not isinstance(model, Network):
        raise UserError(f"model must be a segjax.models.network.Network, of which {type(model).__name__} is none.")
    if len(preprocess.mean) != len(spec.image_channels):
        raise UserError(
            f"preprocess.mean={preprocess.mean} has {len(preprocess.mean)} values, but the images have "
            f"{len(spec.image_channels)} channels ({', '.join(spec.image_channels)}): give one mean and one std each."
        )
    if model.margin != preprocess.context:
        raise UserError(
            f"The model trims {model.margin} pixels from each side of its input, so preprocess.context must be "
            f"{model.margin}, not {preprocess.context}."
        )
    given, learned = set(model.outputs) - {"aux"}, set(objective.outputs)
    if given != learned:
        raise UserError(
            f"model.name={config.model.name!r} gives {', '.join(sorted(given))}, and objective.name="
            f"{config.objective.name!r} learns {', '.join(sorted(learned))}: choose two that agree, or hand over those "
            "of your own, model=… and objective=…."
        )
    return Components(parallel.make_mesh(devices, **config.parallel), preprocess, task, model)


def settings(section: ConfigDict) -> dict[str, Any]:
    """Keys of a section beside its name."""
    return {key: value for key, value in section.items() if key != "name"}


def read_labels(config: ConfigDict, spec: DatasetSpec) -> DatasetSpec:
    """The data set as the configured task reads it."""
    return spec.in_mode(config.task.mode) if "mode" in config.task else spec


def open_source(config: ConfigDict, split: str, given: Sources = None) -> Any:
    """Opens a split of the configured source, or of the sources that are given in its place."""
    if given is not None:
        return choose("split", split, given)
    make, keys = SOURCES[config.source.name], settings(config.source)
    check_section("source", make, keys, complete=True)
    return make(split, channels=len(config.preprocess.mean), **keys)


def train_batches(config: ConfigDict, parts: Components, source: Any) -> pipeline.Batches:
    """Random crops of a training split, without end."""
    parallel.check_batch(parts.mesh, config.data.batch_size, "data.batch_size")
    parallel.check_rows(parts.mesh, config.data.crop[0], parts.preprocess.context)
    objective = parts.task.objective
    return pipeline.train_batches(
        source,
        parts.preprocess,
        Loading(**config.loading),
        config.seed,
        parallel.hosts(),
        objective.max_objects if objective.needs_instances else 0,
        **config.data,
    )


def eval_batches(config: ConfigDict, parts: Components, source: Any) -> pipeline.Batches:
    """The whole images of a split, each once."""
    for fact in ("classes", "image_channels", "image_dtype"):
        given, trained = getattr(source.spec, fact), getattr(parts.task.spec, fact)
        if given != trained:
            raise UserError(f"The split has {fact} {given}, but the model is trained on {trained}.")
    parallel.check_batch(parts.mesh, config.eval.batch_size, "eval.batch_size")
    loading, instances = Loading(**config.loading), parts.task.needs_instances
    return pipeline.eval_batches(source, parts.preprocess, loading, parallel.hosts(), instances, **config.eval)


class Training(NamedTuple):
    """How a run trains."""

    durations: Durations
    schedule: Callable  # number of a step -> learning rate
    step: Callable  # compiled; gives the memory of its state to the result
    shapes: state.State
    init_state: Callable[[], state.State]


def make_training(config: ConfigDict, parts: Components, batches: pipeline.Batches) -> Training:
    """Makes optimiser, train step and first state for batches of `train_batches`."""
    mesh, preprocess, task, model = parts
    run = durations(batches.count, batches.batch_size, **config.run)
    tx, schedule = optimizer.make(run.total, run.warmup, model.layer_order, **config.optimizer)

    def make(axis):
        colours, decay = dict(config.augment), config.ema.decay
        return step.make_train_step(
            model, task.objective, tx, preprocess, colours, config.seed, run.total, decay, axis, config.optimizer.frozen
        )

    shape, averaged, fsdp = batches.shapes["image"][0], config.ema.decay > 0, config.parallel.fsdp
    shapes = state.abstract(model, tx, shape, averaged)
    shardings = parallel.state_sharding(mesh, shapes, fsdp)
    compiled = compilation.compile_train(make, mesh, config.parallel.mode, shardings)
    first = functools.partial(state.init, model, tx, shape, averaged, config.seed, mesh, fsdp)
    return Training(run, schedule, compiled, shapes, first)


def make_evaluator(config: ConfigDict, parts: Components, batches: pipeline.Batches) -> Evaluator:
    """Makes what scores variables on batches of `eval_batches`."""

    def make(axis):
        return step.make_eval_step(parts.model, parts.task, parts.preprocess, axis)

    compiled = compilation.compile_eval(make, parts.mesh, config.parallel.mode)
    return Evaluator(compiled, parts.task, batches, parts.mesh, config.parallel.mode)
