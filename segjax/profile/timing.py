"""Times the steps of a run, its input pipeline, and both together, on the attached devices."""

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from segjax import parallel
from segjax.data.pipeline import Batches
from segjax.profile import aot, chips
from segjax.train import components, state

WARM_UP = 2  # calls before timing starts
MIN_CALLS, MAX_CALLS = 5, 10**4  # minimum and maximum number of timed calls


def time_steps(
    config: ConfigDict, what: tuple[str, ...], seconds: float, sources: components.Sources | None = None
) -> dict[str, Any]:
    """Times compiled steps with newly initialised parameters and the first batch of the data.

    Args:
        config: configuration of the run.
        what: which of `segjax.profile.aot.STEPS`.
        seconds: time to spend on each step, about; at least five calls are timed.
        sources: sources by split, in place of the configured one.

    Returns:
        For each step "images", "hash" of the program, "ms" (median), "ms_low", "ms_high" (10th and 90th percentile),
        "calls", "images_per_second", "cold_seconds" and "warm_seconds" (to trace and compile without and with the
        cache), "peak_bytes" and, if the chip is known, "share_of_peak"; "device_peak_bytes" of all, if reported.
    """
    source = components.open_source(config, config.splits.train, sources)
    parts = components.build_components(config, source.spec)
    train = components.train_batches(config, parts, source)
    initial = components.make_training(config, parts, train).init_state()
    facts: dict[str, Any] = {}
    for program in aot.step_programs(config, what, None, sources):
        with empty_cache():
            _, cold = aot.compile_program(program)
            jax.clear_caches()
            executable, warm = aot.compile_program(program)
        call = step_call(program, executable, config, parts, initial, sources)
        times = time_calls(call, seconds)
        facts[program.name] = {
            "images": program.images,
            "hash": cold["hash"],
            **_spread(times),
            "images_per_second": program.images / float(np.median(times)),
            "share_of_peak": _share(executable, float(np.median(times)), program.devices[0]),
            "cold_seconds": cold["trace_seconds"] + cold["compile_seconds"],
            "warm_seconds": warm["trace_seconds"] + warm["compile_seconds"],
            "peak_bytes": aot.memory(executable, program.devices[0])["peak_bytes"],
        }
    used = parts.mesh.local_devices[0].memory_stats() or {}
    return facts | {"device_peak_bytes": used.get("peak_bytes_in_use")}


def time_input(config: ConfigDict, seconds: float, sources: components.Sources | None = None) -> dict[str, Any]:
    """Times the input pipeline of training alone, stage by stage, and then together with the train step.

    Args:
        config: configuration of the run.
        seconds: time to spend on each measurement.
        sources: sources by split, in place of the configured one.

    Returns:
        "read_ms" and "warp_ms" (including random draws and batching), in milliseconds per image on one core;
        "transfer_ms" of a batch to the devices; "images_per_second" of the input alone with "workers" readers; and
        "together", the same with the step.
    """
    source = components.open_source(config, config.splits.train, sources)
    parts = components.build_components(config, source.spec)
    mesh, transform = parts.mesh, config.parallel.transform
    train = components.train_batches(config, parts, source)
    count = iter(range(10**9))
    read = time_calls(lambda: source.read(next(count) % len(source)), seconds)
    alone = _rate(dataclasses.replace(train, loading=train.loading._replace(workers=1)), seconds, lambda batch: None)
    rate = _rate(train, seconds, lambda batch: None)
    batch = next(train.batches(0, 1))
    transfer = time_calls(lambda: jax.block_until_ready(parallel.put_batch(mesh, batch, transform)), seconds / 4)
    training = components.make_training(config, parts, train)
    current = training.init_state()

    def step(batch):
        nonlocal current
        current, scalars = training.step(current, parallel.put_batch(mesh, batch, transform))
        return scalars

    together = _rate(train, seconds, step)
    read_ms = 1e3 * float(np.median(read))
    return {
        "read_ms": read_ms,
        "warp_ms": max(0.0, 1e3 * jax.process_count() / alone - read_ms),
        "transfer_ms": 1e3 * float(np.median(transfer)),
        "workers": config.loading.workers or os.cpu_count() or 1,
        "images_per_second": rate,
        "together": together,
    }


def step_call(
    program: aot.StepProgram,
    executable: Any,
    config: ConfigDict,
    parts: components.Components,
    initial: state.TrainState,
    sources: components.Sources | None = None,
) -> Callable[[], Any]:
    """Binds a compiled step to its arguments: the first training batch or the last evaluation batch.

    Args:
        program: the step, from `segjax.profile.aot.step_programs`.
        executable: the same step, compiled.
        config: configuration of the run.
        parts: components of the run.
        initial: initial state of the run; it is copied if the step donates it.
        sources: sources by split, in place of the configured one.

    Returns:
        A function without arguments that runs the step and may be called repeatedly.
    """
    mesh, transform = parts.mesh, config.parallel.transform
    if program.name == "train":
        batch = parallel.put_batch(
            mesh,
            next(
                components.train_batches(
                    config, parts, components.open_source(config, config.splits.train, sources)
                ).batches(0, 1)
            ),
            transform,
        )
        # The step donates its state, but prediction still needs the parameters.
        held = [jax.tree.map(lambda x: x.copy(), initial)]

        def train():
            held[0], scalars = executable(held[0], batch)
            return scalars

        return train
    variables = initial.variables(config.ema.evaluate)
    test: Batches = components.eval_batches(config, parts, components.open_source(config, config.splits.test, sources))
    last = int(test.count) - 1
    batch = next(test.batches(last, last + 1))
    batch.pop("position")
    if program.name == "eval":
        batch = parallel.put_batch(mesh, batch, transform)
        return lambda: executable(variables, batch)
    place = program.arguments[1].sharding
    variables = jax.device_put(jax.device_get(parallel.replicate(variables)), place)
    image, sizes = batch["image"][:1], {name: batch[name][:1] for name in ("valid_size", "native_size")}
    geometry = program.arguments[2].replace(**sizes)
    image, geometry = jax.device_put((image, geometry), place)
    return lambda: executable(variables, image, geometry)


def time_calls(call: Callable[[], Any], seconds: float) -> list[float]:
    """Times calls one by one, each until its results are ready.

    Args:
        call: function to time, after two warm-up calls.
        seconds: time to spend, about; at least five calls are timed. All hosts time as many calls as the first one.

    Returns:
        Seconds of each call.

    Example:
        >>> len(time_calls(lambda: None, 0.0))
        5
    """
    times: list[float] = []

    def run():
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)

    for _ in range(WARM_UP):
        run()
    for _ in range(_count(seconds, times[-1])):
        run()
    return times[WARM_UP:]


def _count(seconds: float, each: float) -> int:
    """Returns the number of calls to time, the same on all hosts because their steps wait for each other."""
    count = int(min(MAX_CALLS, max(MIN_CALLS, seconds / max(each, 1e-9))))
    if jax.process_count() > 1:
        count = int(multihost_utils.broadcast_one_to_all(np.int32(count)))
    return count


def compare_rates(after: dict[str, Any], before: dict[str, Any]) -> dict[str, float]:
    """Computes the ratio of rates to those of an earlier run; above 1 means faster than before.

    Args:
        after: results by part, each with "images_per_second".
        before: results of the earlier run.

    Returns:
        Ratio for each part that both have.

    Example:
        >>> compare_rates({"train": {"images_per_second": 30.0}}, {"train": {"images_per_second": 20.0}})
        {'train': 1.5}
    """
    names = [name for name, each in after.items() if isinstance(each, dict) and "images_per_second" in each]
    return {
        name: after[name]["images_per_second"] / before[name]["images_per_second"]
        for name in names
        if isinstance(before.get(name), dict) and "images_per_second" in before[name]
    }


def _rate(batches: Batches, seconds: float, use: Callable[[Any], Any]) -> float:
    """Measures the steady-state rate of a loop over batches, in images per second over all hosts."""
    stream = batches.batches(0, 10**6)

    def run(count):
        result, began = None, time.perf_counter()
        for _ in range(count):
            result = use(next(stream))
        jax.block_until_ready(result)
        return time.perf_counter() - began

    run(WARM_UP)
    count = _count(seconds, run(MIN_CALLS) / MIN_CALLS)
    rate = count * batches.batch_size / run(count)
    stream.close()
    return rate


def _spread(times):
    low, median, high = np.percentile(times, (10, 50, 90)) * 1e3
    return {"ms": float(median), "ms_low": float(low), "ms_high": float(high), "calls": len(times)}


def _share(executable, seconds, device):
    """Returns the fraction of the chip's peak, or None if the chip is unknown."""
    chip, flops = chips.chip_spec(device), (executable.cost_analysis() or {}).get("flops")
    return flops / seconds / (chip.peak * 1e12) if chip and flops else None


@contextlib.contextmanager
def empty_cache() -> Iterator[None]:
    """Replaces the user's compilation cache with an empty one."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for name, value in zip(names, (folder, 0.0, True), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        jax.clear_caches()
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
