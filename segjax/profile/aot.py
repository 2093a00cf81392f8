"""Compiles the steps of a run ahead of time from shapes alone, for attached or only described devices."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from segjax import parallel
from segjax.checks import check_choice
from segjax.data.pipeline import Batches
from segjax.profile import chips, hlo
from segjax.spec import Geometry
from segjax.train import compilation, components, state

STEPS = ("train", "eval", "predict")


class StepProgram(NamedTuple):
    """A step of a run that is not compiled yet.

    name: one of `STEPS`; function: from jit or pmap; arguments: shapes and static arguments; images: number per call,
    over all devices; devices: that it runs on; fsdp: parameters are sharded and all-gathered in the step.
    """

    name: str
    function: Any
    arguments: tuple
    images: int
    devices: list[jax.Device]
    fsdp: bool

    @property
    def variables(self) -> Any:
        """Shapes of the parameters and batch statistics, by module."""
        given = self.arguments[0]
        return given.variables(False) if isinstance(given, state.TrainState) else given


def compile_program(program: StepProgram) -> tuple[Any, dict[str, Any]]:
    """Compiles a step.

    Args:
        program: from `step_programs`.

    Returns:
        The executable, and a dict: "hash", which depends only on the program; "trace_seconds"; "compile_seconds"; and
        "from_cache", whether the cache held it.

    Raises:
        jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED if the compiler finds that the program does not fit in memory.
    """
    began = time.perf_counter()
    lowered = program.function.lower(*program.arguments)
    traced = time.perf_counter()
    facts = {"hash": hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16], "trace_seconds": traced - began}
    before, began = compilation.cache_counts(), time.perf_counter()
    executable = lowered.compile()
    found = compilation.cache_counts().hits > before.hits
    return executable, facts | {"compile_seconds": time.perf_counter() - began, "from_cache": found}


def cost_report(program: StepProgram) -> dict[str, Any]:
    """Compiles a step and reports its cost per device.

    Args:
        program: from `step_programs`.

    Returns:
        "images", "devices", "hash", seconds and "fits". If it fits: bytes ("argument_bytes", "temporary_bytes",
        "output_bytes", "code_bytes", "peak_bytes", "memory_bytes" of the chip), "flops", "bytes_accessed", the
        compiler's "estimated_cycles" and values derived from them ("estimated_ms", "share_of_peak",
        "estimated_images_per_second", "…_per_chip"), "layers", "not_estimated", "unknown_loops", "collectives",
        "buffers" (see `segjax.profile.hlo`); None for values that the compiler does not report. Otherwise, "message".
    """
    facts: dict[str, Any] = {"images": program.images, "devices": len(program.devices)}
    try:
        executable, found = compile_program(program)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return facts | {"fits": False, "message": str(error).split("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")}
    facts |= found | memory(executable, program.devices[0])
    costs = executable.cost_analysis() or {}
    text = hlo.parse(executable.as_text(), _modules(program.variables))
    gathered = (program.variables if program.fsdp else (), executable.out_info)
    expected = [x.shape for x in jax.tree.leaves(gathered)]
    layers, unknown = hlo.layers(text)
    cycles = sum(each.forward + each.backward for each in layers)
    facts |= {"flops": costs.get("flops"), "bytes_accessed": costs.get("bytes accessed")}
    facts |= _estimate(cycles, facts["flops"], program)
    return facts | {
        "layers": hlo.to_json(layers) if cycles else [],
        "not_estimated": hlo.unestimated(text) if cycles else {},
        "unknown_loops": unknown,
        "collectives": hlo.to_json(hlo.collectives(text, expected)),
        "buffers": [
            {"bytes": b.shape.bytes, "padded_bytes": b.shape.padded_bytes} | hlo.to_json(b)
            for b in hlo.buffers(text, 8)
        ],
    }


def memory(executable: Any, device: jax.Device) -> dict[str, Any]:
    """Reports the memory that a compiled step needs on each device.

    Args:
        executable: the step.
        device: one of its devices.

    Returns:
        "argument_bytes", "output_bytes" (not counting outputs that reuse donated arguments), "temporary_bytes",
        "code_bytes", their sum "peak_bytes", "memory_bytes" of the device or None, and "fits" or None if unknown.
    """
    stats, chip = executable.memory_analysis(), chips.chip_spec(device)
    sizes = {
        "argument_bytes": stats.argument_size_in_bytes,
        "output_bytes": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary_bytes": stats.temp_size_in_bytes,
        "code_bytes": stats.generated_code_size_in_bytes,
    }
    limit = int(chip.memory * 2**30) if chip else None
    if device in jax.local_devices():  # the part that JAX may use
        limit = (device.memory_stats() or {}).get("bytes_limit", limit)
    peak = sum(sizes.values())
    return sizes | {"peak_bytes": peak, "memory_bytes": limit, "fits": None if limit is None else peak <= limit}


def _estimate(cycles, flops, program):
    """Converts the compiler's cycles to time, throughput and the fraction of the chip's peak."""
    chip = chips.chip_spec(program.devices[0])
    if not cycles or chip is None or not chip.clock:
        return {"estimated_cycles": cycles or None}
    seconds = cycles / (chip.clock * 1e9)
    rate = program.images / seconds
    count = len({_chip(device) for device in program.devices})
    return {
        "estimated_cycles": cycles,
        "estimated_ms": 1e3 * seconds,
        "share_of_peak": flops / seconds / (chip.peak * 1e12),
        "estimated_images_per_second": rate,
        "estimated_images_per_second_per_chip": rate / count,
    }


def _chip(device):
    """Identifies the chip of a device; equal for all cores of a chip."""
    return (device.process_index, tuple(device.coords)) if hasattr(device, "coords") else device.id


def _modules(variables):
    """Returns the names of all modules, as nested dicts."""
    merged: dict[str, Any] = {}

    def merge(into, tree):
        for key, value in tree.items():
            if isinstance(value, dict):
                merge(into.setdefault(key, {}), value)

    for tree in variables.values():
        merge(merged, tree)
    return merged


def step_programs(
    config: ConfigDict,
    what: Sequence[str] = STEPS,
    devices: Sequence[jax.Device] | None = None,
    sources: components.Sources | None = None,
) -> list[StepProgram]:
    """Lists the steps that a run compiles.

    Args:
        config: configuration of the run.
        what: which of `STEPS`; "eval" uses the largest image size, "predict" a single image of that size.
        devices: devices to compile for; None uses the attached devices.
        sources: sources by split, in place of the configured one.

    Returns:
        The steps.

    Raises:
        UserError: a key or value is invalid.

    Example:
        >>> from segjax.config import default_config
        >>> config = default_config(source="noise")
        >>> config.source.size, config.data.crop, config.model.widths = (32, 32), (32, 32), (4, 8)
        >>> [program.images for program in step_programs(config, ("train", "predict"))]
        [8, 1]
    """
    for name in what:
        check_choice("what", name, STEPS)
    source = components.open_source(config, config.splits.train, sources)
    parts = components.build_components(config, source.spec, devices)
    mesh = parts.mesh
    train = components.train_batches(config, parts, source)
    training = components.make_training(config, parts, train)
    shapes = training.shapes
    if config.parallel.transform == "jit":
        shardings = parallel.state_shardings(mesh, shapes, config.parallel.fsdp)
        shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    variables, everywhere = shapes.variables(config.ema.evaluate), list(mesh.devices.flat)
    found = []
    if "train" in what:
        batch = _batch(train, config.parallel.transform, mesh)
        found.append(
            StepProgram("train", training.step, (shapes, batch), train.batch_size, everywhere, config.parallel.fsdp)
        )
    if {"eval", "predict"} & set(what):
        test = components.eval_batches(config, parts, components.open_source(config, config.splits.test, sources))
    if "eval" in what:
        batch = _batch(test, config.parallel.transform, mesh)
        del batch["position"]
        evaluation = components.make_evaluator(config, parts, test).step
        (images,), _ = test.shapes["index"]
        found.append(StepProgram("eval", evaluation, (variables, batch), images, everywhere, config.parallel.fsdp))
    if "predict" in what:
        found.append(_predict(config, parts, variables, test))
    return found


def _predict(config: ConfigDict, parts: components.Components, variables: Any, test: Batches) -> StepProgram:
    """Makes the prediction step for one image, on the devices of this host that share it, as in `segjax.infer`."""
    mesh, preprocess, task, model = parts
    here = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    shared = parallel.make_mesh(here[: config.parallel.space], space=config.parallel.space)
    shape, dtype = test.shapes["image"]
    sizes = np.zeros((1, 2), np.int32)
    layout = test.arrange().layouts[-1][1]
    place = Geometry(sizes, sizes, layout.padded_size, layout.output_size, preprocess.resize is not None)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.replicated_sharding(shared)),
        (variables, np.broadcast_to(dtype(0), (1, *shape[1:])), place),
    )
    predict = compilation.compile_predict(model, task, preprocess, shared if config.parallel.space > 1 else None)
    return StepProgram("predict", predict, arguments, 1, list(shared.devices.flat), False)


def _batch(batches: Batches, transform: str, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch as a step takes it; under pmap [devices, images per device, ...]."""

    def shaped(key, shape, dtype):
        if transform == "pmap":
            count = mesh.devices.size
            return jax.ShapeDtypeStruct((count, shape[0] // count, *shape[1:]), dtype)
        place = parallel.batch_sharding(mesh, key, shape[1] if len(shape) > 1 else 0)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    return {key: shaped(key, *each) for key, each in batches.shapes.items()}
