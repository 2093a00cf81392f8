"""`segjax doctor`: reports versions, devices and problems, with the command that fixes each.

Packages that may be broken are imported inside the functions, so that the report can say so.
"""

import glob
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

from absl import flags

REQUIRED = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "ml-collections", "absl-py"),
    *("jaxtyping", "lazy-loader", "numpy", "scipy", "pillow", "tifffile", "pyyaml", "rich", "jinja2", "markupsafe"),
)
EXTRAS = {  # extra -> (modules, what they are for)
    "tf": (("tensorflow", "array_record"), "TFDS sources and the tf.data loader"),
    "brain": (("nilearn", "nibabel"), "the brain source"),
    "weights": (("safetensors", "huggingface_hub"), "published weights"),
    "coco": (("pycocotools",), "COCO's masks, polygons and metrics"),
    "huggingface": (("datasets",), "the huggingface source"),
    "formats": (("imagecodecs",), "16-bit colour, and compressed TIFF files"),
    "tensorboard": (("tensorboardX",), "TensorBoard"),
    "wandb": (("wandb",), "Weights & Biases"),
}
PYTHON = (3, 11)
OLDEST_JAX = (0, 7, 2)
WRONG_JAX = (0, 10, 1)  # users report wrong results; setup.py excludes it too
FIX_JAX = 'pip install -U "jax>=0.7.2,!=0.10.1"'
CUDA_13_DRIVER = 580  # CUDA 13.0 release notes: the oldest driver


class Problem(NamedTuple):
    """A problem, and the command or action that fixes it."""

    problem: str
    fix: str


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags: there are none."""


def main(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the verb; returns the report of `examine`."""
    report = examine()
    print(format_report(report), file=sys.stderr)
    return report


def examine() -> dict[str, Any]:
    """Examines the installation, the devices and the working directory.

    Returns:
        A dict that `json.dumps` takes:

        - `python`, `system`: Python's version, and the operating system.
        - `packages`: version by name, None if missing.
        - `devices`: `platform`, `kind`, `count`, `processes` and `memory_bytes` of one device (None if the backend does
          not tell); None if JAX does not start.
        - `extras`: for each missing optional extra, what it is for (`what`) and the command that installs it (`fix`).
        - `problems`: what is wrong (`problem`) and how to fix it (`fix`).
        - `ok`: whether there is no problem.

    Example:
        >>> sorted(examine())
        ['devices', 'extras', 'ok', 'packages', 'problems', 'python', 'system']
    """
    versions = {name: _version(name) for name in REQUIRED}
    versions["tensorflow"] = _version("tensorflow") or _version("tensorflow-cpu")
    devices, problems = _devices()
    problems = [*_package_problems(versions), *problems, *_folder_problems()]
    if devices is not None and devices["platform"] == "cpu":
        problems += _accelerator_problems()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": versions,
        "devices": devices,
        "extras": {
            extra: {"what": what, "fix": _install(extra)}
            for extra, (modules, what) in EXTRAS.items()
            if not all(importlib.util.find_spec(module) for module in modules)
        },
        "problems": [problem._asdict() for problem in problems],
        "ok": not problems,
    }


def format_report(report: dict[str, Any]) -> str:
    """Formats a report as text.

    Args:
        report: from `examine`.

    Returns:
        Lines without colour codes.
    """
    rows = {"python": f"{report['python']} on {report['system']}"}
    rows |= {name: version or "missing" for name, version in report["packages"].items()}
    devices = report["devices"]
    if devices is None:
        rows["devices"] = "none: JAX does not start"
    else:
        memory = devices["memory_bytes"]
        processes = devices["processes"]
        rows["devices"] = f"{devices['count']} x {devices['kind']} ({devices['platform']})"
        rows["devices"] += f", {memory / 2**30:.1f} GiB each" if memory else ""
        rows["devices"] += f", {processes} processes" if processes > 1 else ""
    lines = [f"{name:22}{text}" for name, text in rows.items()]
    if report["extras"]:
        lines += ["", "Optional, not installed:"]
        lines += [f"  {each['what']:38}{each['fix']}" for each in report["extras"].values()]
    lines += ["", "Problems:" if report["problems"] else "No problems found."]
    for each in report["problems"]:
        lines += [f"  {each['problem']}", f"    fix: {each['fix']}"]
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _install(extra: str) -> str:
    return f'pip install "segjax[{extra}]"'


def _devices() -> tuple[dict[str, Any] | None, list[Problem]]:
    """Returns the devices that JAX sees, or why it sees none."""
    try:
        import jax

        devices = jax.devices()
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    except (ImportError, RuntimeError) as error:
        chosen = os.environ.get("JAX_PLATFORMS")
        fix = f"unset JAX_PLATFORMS (it is {chosen!r})" if chosen else FIX_JAX
        return None, [Problem(f"JAX does not start: {error}", fix)]
    found = {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "processes": jax.process_count(),
        "memory_bytes": memory,
    }
    return found, []


def _package_problems(versions: dict[str, str | None]) -> list[Problem]:
    """Finds missing and unsupported packages, and an unsupported Python."""
    problems = [
        Problem(f"{name} is not installed.", f"pip install {name}")
        for name in REQUIRED
        if versions[name] is None and name not in ("jax", "jaxlib")
    ]
    if sys.version_info[:2] < PYTHON:
        problems.append(Problem(f"Python {platform.python_version()} is too old.", "install Python 3.11, 3.12 or 3.13"))
    if versions["jax"] is None or versions["jaxlib"] is None:
        return [*problems, Problem("jax or jaxlib is not installed.", FIX_JAX)]
    jax = tuple(int(number) for number in re.findall(r"\d+", versions["jax"])[:3])
    if jax < OLDEST_JAX:
        problems.append(Problem(f"jax {versions['jax']} is too old: 0.7.2 is the oldest that works.", FIX_JAX))
    if jax == WRONG_JAX:
        problems.append(Problem(f"jax {versions['jax']} is reported to return wrong results.", FIX_JAX))
    return problems


def _folder_problems() -> list[Problem]:
    folder = os.getcwd()
    if os.access(folder, os.W_OK):
        return []
    return [Problem(f"{folder} cannot be written to.", "change to another folder, or set --workdir to one")]


def _accelerator_problems() -> list[Problem]:
    """Finds an accelerator that JAX, which sees only the CPU, does not use."""
    driver = _nvidia_driver()
    if _has_tpu():
        name, extra = "a TPU", "tpu"
    elif driver is not None:
        name, extra = "an NVIDIA GPU", "cuda13" if driver >= CUDA_13_DRIVER else "cuda12"
    else:
        return []
    chosen = os.environ.get("JAX_PLATFORMS")
    fix = f"unset JAX_PLATFORMS (it is {chosen!r})" if chosen else _install(extra)
    return [Problem(f"There is {name}, but JAX sees only the CPU.", fix)]


def _has_tpu() -> bool:
    """Whether the machine has a TPU: its device files, or the variables that Cloud and Colab set."""
    files = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(files or os.environ.get("TPU_NAME") or os.environ.get("COLAB_TPU_ADDR"))


def _nvidia_driver() -> int | None:
    """Major version of the NVIDIA driver; None without a GPU."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    number = re.match(r"\d+", answer)
    return int(number.group()) if number else None
