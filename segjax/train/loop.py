"""The training loop: a whole run, from top to bottom."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from segjax import config as configuration
from segjax import parallel
from segjax.checks import UserError
from segjax.data import audit
from segjax.objectives import Objective
from segjax.train import compilation
from segjax.train import workdir as workdirs
from segjax.train.checkpoint import Checkpoints
from segjax.train.components import (
    Sources,
    build_components,
    eval_batches,
    make_evaluator,
    make_training,
    open_source,
    train_batches,
)
from segjax.train.log import Log
from segjax.train.pretrained import start_from


def train_and_evaluate(
    config: ConfigDict,
    workdir: str,
    *,
    model: nn.Module | None = None,
    objective: Objective | None = None,
    sources: Sources | None = None,
    report: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Trains a model on a data set; resumes automatically if the workdir holds a checkpoint.

    Args:
        config: from `segjax.config.default_config`.
        workdir: the workdir, a folder for configuration, log and checkpoints.
        model: your own `segjax.models.network.Network`, in place of the configured one.
        objective: your own objective, in place of the configured one.
        sources: your own sources by split, such as {"train": …, "test": …}, in place of the configured one; arrays in
            memory will do.
        report: called at the end with the evaluator and the variables and metrics of the chosen checkpoint.

    Returns:
        Metrics of the best (or last) checkpoint on the test split, plus "step" and "seconds".

    Raises:
        UserError: the configuration, data or workdir is invalid; raised before the first step where possible.

    Example:
        >>> import segjax, tempfile
        >>> config = segjax.default_config(source="shapes")
        >>> config.run.total, config.data.crop, config.model.widths = 1, (32, 32), (4, 8)
        >>> config.source.count, config.source.size = 8, (32, 32)
        >>> train_and_evaluate(config, tempfile.mkdtemp())["step"]
        1
    """
    began = time.monotonic()
    configuration.check(config)
    source = open_source(config, config.splits.train, sources)
    test_source = open_source(config, config.splits.test, sources)
    parts = build_components(config, source.spec, None, model, objective)
    train = train_batches(config, parts, source)
    training = make_training(config, parts, train)
    evaluator = make_evaluator(config, parts, eval_batches(config, parts, test_source))
    run, mesh, transform = training.durations, parts.mesh, config.parallel.transform
    changed = workdirs.compare(workdir, config, parts.task.spec)
    suspicious = audit.glance({config.splits.test: test_source, config.splits.train: source})
    workdirs.make_workdir(workdir)

    with (
        Checkpoints(workdir, **config.checkpoint) as checkpoints,
        Log(workdir, run.total, config=configuration.to_dict(config), **config.log) as log,
    ):
        checkpoints.check_best(parts.task.summary(parts.task.new_metric()))
        # A checkpoint takes precedence over pretrained weights, and these over random initialisation.
        start = checkpoints.latest() or 0
        if start:
            state = checkpoints.restore(start, training.shapes, mesh, config.parallel.fsdp)
            origin = f"resumed at step {start}" + ("; init.weights is ignored" if config.init.weights else "")
        elif config.init.weights:
            state, origin = start_from(training.init_state(), parts.model, parts.preprocess, **config.init)
        else:
            state, origin = training.init_state(), "from scratch"
        workdirs.write_config(workdir, config, parts.task.spec)
        log.truncate(start)
        log.message(start_message(mesh, transform, train, test_source, state.params, origin, changed))
        for line in suspicious:
            log.message(f"warning: {line} `segjax inspect` looks at all samples.")

        def evaluate(step, state):
            summary = evaluator(state.variables(config.ema.evaluate))
            log.write(step, "test", summary)
            checkpoints.record(step, summary)
            best = summary[config.checkpoint.best]
            shown = f"{best:.4f}" if isinstance(best, float) else best
            log.message(f"step {step}  {config.splits.test} {config.checkpoint.best} {shown}")

        if start and run.due("eval", start) and checkpoints.summary(start) is None:
            evaluate(start, state)  # the run ended between saving and scoring
        previous = (start, time.monotonic())
        for i, batch in enumerate(train.batches(start, run.total), start + 1):
            state, scalars = training.step(state, parallel.put_batch(mesh, batch, transform))
            if i == start + 1:
                jax.block_until_ready(scalars)
                log.message(first_step_message(began))
            due = {what for what in ("log", "eval", "checkpoint") if run.due(what, i)}
            if not due:
                continue
            scalars = {k: float(v) for k, v in jax.device_get(scalars).items()}
            check_finite(scalars["loss"], i, workdir)
            rate = (i - previous[0]) * train.batch_size / (time.monotonic() - previous[1])
            log.write(
                i, "train", scalars | {"learning_rate": float(training.schedule(i - 1)), "images_per_second": rate}
            )
            log.progress(i, scalars["loss"], rate)
            # An evaluation that fails costs no training: the state is saved by then.
            if due & {"eval", "checkpoint"}:
                checkpoints.save(i, parallel.as_global_arrays(mesh, state))
            if "eval" in due:
                evaluate(i, state)
            previous = (i, time.monotonic())
        chosen = checkpoints.chosen()
        if report and chosen != int(state.step):
            state = checkpoints.restore(chosen, training.shapes, mesh, config.parallel.fsdp)
        variables = state.variables(config.ema.evaluate)
        # The chosen checkpoint lacks metrics only if the run was interrupted after its last evaluation.
        summary = checkpoints.summary(chosen) or evaluator(variables)
        if report:
            report(evaluator, variables, summary)
    return summary | {"step": chosen, "seconds": round(time.monotonic() - began, 1)}


def first_step_message(began: float) -> str:
    """Reports the time to the first step, and the hits and misses of the compilation cache."""
    hits, misses = compilation.cache_counts()
    seconds = time.monotonic() - began
    return f"first step after {seconds:.1f} s ({misses} programs compiled, {hits} read from the cache)"


def check_finite(loss: float, at: int, workdir: str) -> None:
    """Stops a run whose loss is infinite or NaN, before its state is saved."""
    if not math.isfinite(loss):
        raise UserError(
            f"The loss is {loss} at step {at}. Lower optimizer.learning_rate, lengthen run.warmup or set "
            f"optimizer.clip=1.0; the last checkpoint in {workdir} is untouched."
        )


def start_message(mesh, transform, train, test_source, params, origin, changed) -> str:
    """Summarises in a few lines what a run is about to do."""
    device = mesh.devices.flat[0]
    count = sum(x.size for x in jax.tree.leaves(params))
    devices = " x ".join(f"{name} {n}" for name, n in mesh.shape.items())
    images = f"{len(train.source)} training and {len(test_source)} test images, {len(train.spec.classes)} classes"
    return "\n".join(
        [
            f"{transform} on {mesh.devices.size} x {device.device_kind} ({devices}, hosts: {jax.process_count()})",
            f"{images}, {count:,} parameters",
            origin,
            *(f"changed since the last run in this workdir: {line}" for line in changed),
        ]
    )
