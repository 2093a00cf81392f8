"""`segjax compile`: compiles the steps of a run from shapes alone, and reports their cost."""

import importlib.metadata
import importlib.util
import os
from typing import Any

import jax
from absl import flags
from jax.experimental import topologies
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segjax.checks import UserError
from segjax.cli.config_flags import define_cache, define_config
from segjax.cli.console import format_bytes
from segjax.cli.fake_data import define_size, open_sources
from segjax.profile import aot, chips
from segjax.profile.largest_batch import largest_batch
from segjax.train import compilation

LAYERS = 16  # rows of the layer table
NO_ESTIMATE = "This backend estimates no time: add --topology=v5e:2x2 for the estimate of the TPU compiler"
AXES = {"v2": 2, "v3": 2, "v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}  # of slices, by TPU version


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    define_config(values)
    text = "TPU slice to compile for: v5e:4x4, v4:2x2x4, …; default: local devices."
    flags.DEFINE_string("topology", None, text, flag_values=values)
    flags.DEFINE_list("what", list(aot.STEPS), "Steps to compile.", flag_values=values)
    flags.DEFINE_bool("fit", False, "Search for the largest training batch that fits.", flag_values=values)
    flags.DEFINE_float("memory", None, "GiB per device that --fit may use; default: all.", 0, flag_values=values)
    define_size(values)
    define_cache(values)


def main(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the verb.

    Returns:
        Devices, versions, and `segjax.profile.aot.cost_report` of each step; with --fit "fit".
    """
    if not values.what:
        raise UserError(f"--what is empty: name one of {', '.join(aot.STEPS)}.")
    if values.memory and not values.fit:
        raise UserError("--memory limits --fit: add --fit.")
    devices = topology_devices(values.topology) if values.topology else None
    if devices and values.config.parallel.transform == "pmap" and len({each.process_index for each in devices}) > 1:
        raise UserError(
            "For a slice of several hosts, compile with --config.parallel.transform=jit: pmap needs the hosts."
        )
    # Programs for absent devices cannot be loaded from the cache.
    compilation.enable_compilation_cache(values.cache and not devices)
    config, console = values.config, Console(stderr=True, highlight=False)
    sources = open_sources(config, values.size, values.classes)
    programs = aot.step_programs(config, values.what, devices, sources)
    device = programs[0].devices[0]
    facts: dict[str, Any] = {
        "topology": values.topology,
        "device": device.device_kind,
        "jax": jax.__version__,
        "libtpu": importlib.metadata.version("libtpu") if values.topology else None,
    }
    for program in programs:
        facts[program.name] = aot.cost_report(program)
        show(console, program.name, facts[program.name], device)
        if facts[program.name]["fits"] is False:
            print_memory_hints(console, config, program, facts[program.name], devices, sources)
    if values.fit:
        memory = int(values.memory * 2**30) if values.memory else None
        facts["fit"] = fit = largest_batch(config, devices, sources, memory)
        console.print(_fit_summary(fit, config))
    if device.platform != "tpu":
        needs = "." if importlib.util.find_spec("libtpu") else ", which comes with pip install 'segjax[tpu]'."
        console.print(NO_ESTIMATE + needs, markup=False)
    return facts


def topology_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice that need not exist.

    Args:
        topology: version and number of chips along each axis, such as "v5e:4x4" or "v4:2x2x4".

    Returns:
        Its devices, on all of its hosts.

    Raises:
        UserError: the TPU compiler is missing or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--topology needs the TPU compiler, which runs on any Linux machine: pip install 'segjax[tpu]'."
        )
    # Keeps the compiler from querying a metadata server and locking itself, and sets the variables that it expects; the
    # program is traced on the CPU.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v4-8"}
    jax.config.update("jax_platforms", "cpu")
    version, _, shape = topology.partition(":")
    if AXES.get(version) != len(shape.split("x")):
        known = ", ".join(f"{name}:{'x'.join('2' * axes)}" for name, axes in AXES.items())
        raise UserError(f"--topology={topology}: there is no such slice. Versions and numbers of axes: {known}.")
    options: dict[str, Any] = {"chip_config_name": "megacore"} if version == "v4" else {}  # as on real hardware
    if set(shape.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(
            f"--topology={topology}: the compiler says: {reason} A host has 2x2 chips: axes must be multiples of 2, "
            "except the last of three; a single chip is 1x1."
        ) from error


def show(console: Console, name: str, facts: dict[str, Any], device: jax.Device) -> None:
    """Prints the cost of a step.

    Args:
        console: where to.
        name: name of the step.
        facts: from `segjax.profile.aot.cost_report`.
        device: one of its devices.
    """
    chip = chips.chip_spec(device)
    where = f"{facts['devices']} x {device.device_kind}"
    console.print(f"\n[bold]{name}[/bold]: {facts['images']} images on {where}")
    if not facts["fits"] and "peak_bytes" not in facts:
        console.print(f"does not fit: {facts['message']}")
        return
    limit = f" of {format_bytes(facts['memory_bytes'])}" if facts["memory_bytes"] else ""
    lines = [
        (
            "memory per device",
            f"{format_bytes(facts['peak_bytes'])}{limit}{': does not fit' * (facts['fits'] is False)}",
        ),
        *((each, format_bytes(facts[f"{key}_bytes"])) for each, key in MEMORY),
        ("operations per device", f"{(facts['flops'] or 0) / 1e9:,.4g} GFLOP"),
        ("read and written", format_bytes(facts["bytes_accessed"] or 0)),
    ]
    if facts.get("estimated_ms"):
        lines += [
            (
                "estimated time",
                f"{facts['estimated_ms']:.2f} ms ({facts['estimated_cycles']:,} cycles at {chip.clock} GHz)",
            ),
            ("estimated share of peak", f"{facts['share_of_peak']:.1%} of {chip.peak:g} bfloat16 TFLOP/s"),
            (
                "estimated images/s",
                f"{facts['estimated_images_per_second_per_chip']:,.1f} per chip, "
                f"{facts['estimated_images_per_second']:,.1f} in all",
            ),
        ]
    lines += [
        (
            "traced, compiled in",
            f"{facts['trace_seconds']:.1f} s, {facts['compile_seconds']:.1f} s"
            + (", from the cache" if facts["from_cache"] else ""),
        ),
        ("hash before compilation", facts["hash"]),
    ]
    grid = Table(box=None, show_header=False, padding=(0, 2))
    for line in lines:
        grid.add_row(*line)
    console.print(grid)
    _layers(console, facts)
    _collectives(console, facts["collectives"])
    _buffers(console, facts["buffers"])


MEMORY = (("  arguments", "argument"), ("  temporaries", "temporary"), ("  results", "output"), ("  program", "code"))


def _layers(console, facts):
    if not facts["layers"]:
        return
    grid = Table("layer", box=SIMPLE, title="Estimated time by layer", title_justify="left")
    unit = "ms" if facts.get("estimated_ms") else "cycles"
    for heading in (f"forward, {unit}", f"backward, {unit}", "share"):
        grid.add_column(heading, justify="right")
    cycles = facts["estimated_cycles"]

    def ms(part):
        return f"{part / cycles * facts['estimated_ms']:.3f}" if facts.get("estimated_ms") else f"{part:,}"

    def add(name, forward, backward):
        grid.add_row(Text(name), ms(forward), ms(backward), f"{(forward + backward) / cycles:.1%}")

    for each in facts["layers"][:LAYERS]:
        add(each["layer"] or "(outside the layers)", each["forward"], each["backward"])
    rest = facts["layers"][LAYERS:]
    if rest:
        add(f"({len(rest)} more)", *(sum(each[k] for each in rest) for k in ("forward", "backward")))
    console.print(grid)
    if facts["not_estimated"]:
        names = ", ".join(f"{count} {opcode}" for opcode, count in facts["not_estimated"].items())
        console.print(f"Not in the estimate: {names}.")
    if facts["unknown_loops"]:
        console.print(f"{facts['unknown_loops']} loops of unknown length count once.")


def _collectives(console, collectives):
    if not collectives:
        return
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each in collectives:
        kinds.setdefault(each["opcode"], []).append(each)
    grid = Table("between devices", box=SIMPLE)
    for heading in ("number", "bytes", "largest in"):
        grid.add_column(heading, justify="right")
    for opcode, group in kinds.items():
        total = format_bytes(sum(each["bytes"] for each in group))
        grid.add_row(opcode, str(len(group)), total, Text(group[0]["layer"] or "(outside the layers)"))
    console.print(grid)
    for each in collectives:
        if each["activation"]:
            console.print(
                f"[bold]Warning[/bold]: {each['opcode']} of an activation, {' '.join(each['shapes'])}, in "
                f"{each['layer'] or '(outside the layers)'}",
            )


def _buffers(console, found):
    grid = Table("largest buffers", box=SIMPLE)
    for heading in ("bytes", "in memory", "padding", "made in"):
        grid.add_column(heading, justify="right")
    for each in found:
        waste = 1 - each["bytes"] / max(1, each["padded_bytes"])
        name = each["layer"] or "(outside the layers)"
        where = Text(name + (", backward" if each["backward"] else ""))
        grid.add_row(
            Text(each["shape"]),
            format_bytes(each["bytes"]),
            format_bytes(each["padded_bytes"]),
            f"{waste:.0%}" if waste else "-",
            where,
        )
    console.print(grid)


def print_memory_hints(console, config, program, facts, devices, sources) -> None:
    """Prints the largest buffers of a step that does not fit, and settings that reduce its memory.

    Args:
        console: where to.
        config: configuration of the run.
        program: the step.
        facts: from `segjax.profile.aot.cost_report`.
        devices: devices that it is compiled for; None for the local ones.
        sources: sources by split.
    """
    images = facts["devices"] // config.parallel.space
    if "buffers" not in facts and program.name != "predict":
        trial = config.copy_and_resolve_references()
        trial.data.batch_size = trial.eval.batch_size = images
        (small,) = aot.step_programs(trial, (program.name,), devices, sources)
        found = aot.cost_report(small)
        also = "" if found["fits"] else " does not fit either"
        console.print(f"The same step with {images} images{also}; its maps grow with their number:")
        _buffers(console, found.get("buffers", []))
    section = "data" if program.name == "train" else "eval"
    hints = [] if program.name == "predict" else [f"a smaller {section}.batch_size"]
    if program.name == "train":
        hints[0] += " (--fit finds the largest)"
        hints += [] if config.model.remat else ["model.remat=True"]
    if config.model.dtype != "bfloat16":
        hints.append("model.dtype=bfloat16")
    hints += [
        "parallel.space=N, to divide the rows of an image over N devices",
        "preprocess.resize" if section == "eval" else "data.crop",
    ]
    console.print("To reduce memory, use " + "; ".join(hints) + ".")


def _fit_summary(found, config):
    batch, used = found["batch_size"], found["peak_bytes"]
    remat = ", model.remat=True" if config.model.remat else ""
    text = f"The largest batch that fits is {batch}{remat}" + (f" ({format_bytes(used)} per device)." if batch else ".")
    if "remat_batch_size" in found:
        text += f" With model.remat=True it is {found['remat_batch_size']}" + (
            f", and the configured {config.data.batch_size} fits." if found["needs_remat"] else "."
        )
    return text
