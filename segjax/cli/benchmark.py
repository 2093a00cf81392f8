"""`segjax benchmark`: times the steps of a run and its input on the local devices, and names the bottleneck."""

import json
import pathlib
from typing import Any

import jax
from absl import flags
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from segjax.checks import UserError, check_choice
from segjax.cli.config_flags import define_cache, define_config
from segjax.cli.console import format_bytes
from segjax.cli.fake_data import define_size, open_sources
from segjax.cli.hosts import define_hosts, join_hosts
from segjax.profile import aot, timing
from segjax.train import compilation

PARTS = (*aot.STEPS, "input")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    define_config(values)
    flags.DEFINE_list("what", list(PARTS), "Steps to time; input is the training input.", flag_values=values)
    flags.DEFINE_float("seconds", 5.0, "Seconds to spend on each measurement.", 0, flag_values=values)
    text = "File with the output of an earlier run, to compare with."
    flags.DEFINE_string("compare", None, text, flag_values=values)
    define_size(values)
    define_cache(values)
    define_hosts(values)


def main(values: flags.FlagValues) -> dict[str, Any] | None:
    """Runs the verb.

    Returns:
        Timings of each part, see `segjax.profile.timing`, the "bottleneck" and, with --compare, "compared"; None on
        all hosts but the first.
    """
    join_hosts(values)
    compilation.enable_compilation_cache(values.cache)
    for name in values.what:
        check_choice("what", name, PARTS)
    if set(values.what) <= ({"input"} if values.size else set()):
        raise UserError(f"--what leaves nothing to time: name one of {', '.join(aot.STEPS)}, or input without --size.")
    before = _read(values.compare) if values.compare else None
    config, console = values.config, Console(stderr=True, highlight=False, quiet=jax.process_index() > 0)
    sources = open_sources(config, values.size, values.classes)
    device = jax.devices()[0]
    facts: dict[str, Any] = {"device": device.device_kind, "devices": jax.device_count(), "jax": jax.__version__}
    chosen = tuple(name for name in values.what if name != "input")
    if chosen:
        facts |= timing.time_steps(config, chosen, values.seconds, sources)
        _steps(console, facts, chosen)
    if "input" in values.what and values.size is None:
        facts["input"] = timing.time_input(config, values.seconds, sources)
        _input(console, facts["input"])
    elif "input" in values.what:
        console.print("The input is not timed: --size replaces the data by noise.")
    if {"train", "input"} <= facts.keys():
        facts["bottleneck"] = _bottleneck(console, facts)
    if before is not None:
        facts["compared"] = timing.compare_rates(facts, before)
        _compare(console, facts, before)
    return facts if jax.process_index() == 0 else None


def _read(path: str) -> dict[str, Any]:
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").strip().splitlines()
        saved = json.loads(lines[-1])
    except (OSError, IndexError, ValueError) as error:
        raise UserError(
            f"--compare={path}: no run was saved there. Save one with `segjax benchmark … > {path}`."
        ) from error
    if not isinstance(saved, dict) or "device" not in saved:
        raise UserError(f"--compare={path}: its last line is not the output of `segjax benchmark`.")
    return saved


def _steps(console, facts, chosen):
    grid = Table("", *chosen, box=SIMPLE, title=f"{facts['devices']} x {facts['device']}", title_justify="left")
    for column in grid.columns[1:]:
        column.justify = "right"
    lines = {
        "images": lambda each: str(each["images"]),
        "ms, median": lambda each: f"{each['ms']:.2f}",
        "10 % .. 90 % of calls": lambda each: f"{each['ms_low']:.2f} .. {each['ms_high']:.2f}",
        "images/s": lambda each: f"{each['images_per_second']:,.1f}",
        "share of peak": lambda each: "-" if each["share_of_peak"] is None else f"{each['share_of_peak']:.1%}",
        "compiled in": lambda each: f"{each['cold_seconds']:.1f} s",
        "from the cache in": lambda each: f"{each['warm_seconds']:.1f} s",
        "memory per device": lambda each: format_bytes(each["peak_bytes"]),
    }
    for name, write in lines.items():
        grid.add_row(name, *(write(facts[step]) for step in chosen))
    console.print(grid)


def _input(console, each):
    lines = [
        ("read and decode", f"{each['read_ms']:.2f} ms per image, one core"),
        ("draw, warp and batch", f"{each['warp_ms']:.2f} ms per image, one core"),
        ("to the devices", f"{each['transfer_ms']:.2f} ms per batch"),
        ("input alone", f"{each['images_per_second']:,.1f} images/s with {each['workers']} readers"),
        ("input and train step", f"{each['together']:,.1f} images/s"),
    ]
    grid = Table(box=None, show_header=False, padding=(0, 2))
    for line in lines:
        grid.add_row(*line)
    console.print(grid)


def _bottleneck(console, facts):
    """Prints and returns the slowest part, which limits the others."""
    each, step = facts["input"], facts["train"]["images_per_second"]
    slower = "read and decode" if each["read_ms"] > each["warp_ms"] else "draw, warp and batch"
    rates = {
        "train step": step,
        f"input ({slower})": each["images_per_second"],
        "transfer to the devices": 1e3 * facts["train"]["images"] / each["transfer_ms"],
    }
    name = min(rates, key=rates.get)
    listed = ", ".join(f"{part} {rate:,.1f}" for part, rate in rates.items())
    console.print(f"\nBottleneck: {name}. Images/s: {listed}; together {each['together']:,.1f}.")
    return name


def _compare(console, facts, before):
    if before["device"] != facts["device"] or before.get("devices") != facts["devices"]:
        console.print(f"The earlier run was on {before.get('devices')} x {before['device']}.")
    for name, ratio in facts["compared"].items():
        other = before[name].get("hash") != facts[name].get("hash")
        note = ", which ran another program" if other else ""
        console.print(f"{name}: {ratio:.2f} times the images/s of the earlier run{note}")
