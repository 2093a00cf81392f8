"""Reads, writes and compares the config.json of a workdir."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from segjax import config as configuration
from segjax.checks import UserError, writing
from segjax.spec import DatasetSpec
from segjax.train.config_json import parse
from segjax.train.shared_folder import check_shared

# Sections that must match for a checkpoint to be reusable.
FIXED = ("model", "objective", "task", "preprocess", "spec")


def compare(workdir: str, config: ConfigDict, spec: DatasetSpec) -> list[str]:
    """Compares a configuration, and the data set as its task reads it, with those of the last run in a workdir.

    Returns:
        The keys that differ, as "key: old -> new".

    Raises:
        UserError: the model, objective, task, preprocessing or classes differ, and `resume.allow_changed` is not set.
    """
    saved = _read_json(workdir)
    if saved is None:
        return []
    old_config, old_spec = parse(saved)
    changed = _differences(_as_saved(old_config, old_spec), _as_saved(config, spec))
    fixed = [line for line in changed if line.startswith(tuple(f"{section}." for section in FIXED))]
    if fixed and not config.resume.allow_changed:
        raise UserError(
            f"The workdir {workdir} belongs to another model: {'; '.join(fixed)}. Choose another --workdir, "
            f"or set --config.resume.allow_changed=True if its checkpoints still match."
        )
    return changed


def make_workdir(workdir: str) -> None:
    """Makes the folder and checks that all hosts see it; otherwise the first checkpoint would hang.

    Raises:
        UserError: the folder is not writable, or hosts see different folders.
    """
    if "://" in str(workdir):
        raise UserError(f"The workdir {workdir} must be a local path: mount the bucket, and pass the mount point.")
    folder = pathlib.Path(workdir)
    with writing(f"The workdir {workdir}"):
        folder.mkdir(parents=True, exist_ok=True)
    if jax.process_count() > 1:
        check_shared(folder)


def write_config(workdir: str, config: ConfigDict, spec: DatasetSpec) -> None:
    """Writes the configuration and data set to the workdir atomically; raises a UserError if it is not writable."""
    if jax.process_index() > 0:
        return
    part = pathlib.Path(workdir) / "config.json.part"
    with writing(f"The workdir {workdir}"):
        part.write_text(json.dumps(_as_saved(config, spec), indent=2) + "\n")
        part.replace(part.with_suffix(""))


def read_config(workdir: str, other: ConfigDict | None = None) -> tuple[ConfigDict, DatasetSpec]:
    """Reads the configuration of a workdir (`other` replaces it) and the data set as its task reads it.

    Raises:
        UserError: there is no run, a value is out of range, or `compare` rejects `other`.
    """
    saved = _read_json(workdir)
    if saved is None:
        raise UserError(f"There is no run in {workdir}: config.json is missing. Train one with `segjax train`.")
    config, spec = parse(saved)
    configuration.check(other or config)
    if other is not None:
        compare(workdir, other, spec)
    return other or config, spec


def _as_saved(config: ConfigDict, spec: DatasetSpec) -> dict[str, Any]:
    return configuration.to_dict(config) | {"spec": configuration.to_dict(dataclasses.asdict(spec))}


def _read_json(workdir: str) -> dict[str, Any] | None:
    path = pathlib.Path(workdir) / "config.json"
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Lists the leaves that differ between two nested dicts, as "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [line for k in keys for line in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [f"{path}: {old} -> {new}"]
