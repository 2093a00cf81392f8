"""The workdir's configuration and checkpoints: the only file that knows Orbax."""

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from segjax import parallel
from segjax.checks import UserError, check_choice
from segjax.config import from_dict, to_dict
from segjax.spec import DatasetSpec
from segjax.train.state import State

# A checkpoint of one kind of network, of labels or of inputs is no start for another.
FIXED = ("model", "task", "preprocess", "spec")


def compare(workdir: str, config: ConfigDict, spec: DatasetSpec, *, allow_changed: bool = False) -> list[str]:
    """Compares a configuration with that of the last run in a workdir.

    Args:
        workdir: folder of the run; it need not exist.
        config: configuration of the run.
        spec: the data set as the task reads it.
        allow_changed: accept another model, task, preprocessing or classes than the workdir's.

    Returns:
        The keys that differ, as "key: old -> new".

    Raises:
        UserError: the workdir belongs to another model.
    """
    old = _read_json(workdir)
    changed = [] if old is None else _differences(old, _as_saved(config, spec))
    fixed = [line for line in changed if line.startswith(tuple(f"{section}." for section in FIXED))]
    if fixed and not allow_changed:
        raise UserError(
            f"The workdir {workdir} belongs to another model: {'; '.join(fixed)}. Choose another --workdir, "
            f"or set --config.resume.allow_changed=True if its checkpoints still fit."
        )
    return changed


def check_shared(workdir: str) -> None:
    """Checks that all hosts see one workdir: where they do not, the first checkpoint would wait for ever.

    Args:
        workdir: folder of the run; made if need be.

    Raises:
        UserError: they do not, or the folder cannot be written.
    """
    if jax.process_count() == 1:
        return
    number = multihost_utils.broadcast_one_to_all(np.int32(time.time_ns() % 2**31))
    mark = pathlib.Path(workdir) / f".shared_{number}"  # a new name, of which no file system has an old answer
    if jax.process_index() == 0:
        _make_folder(mark.parent, workdir)
        mark.touch()
    multihost_utils.sync_global_devices("mark is written")
    seen = multihost_utils.process_allgather(np.array(mark.exists()))
    if jax.process_index() == 0:
        mark.unlink()
    if not seen.all():
        hosts = ", ".join(map(str, np.flatnonzero(~seen)))
        raise UserError(
            f"Hosts {hosts} do not see what host 0 writes to the workdir {workdir}: choose a folder of a file system "
            "that all hosts share."
        )


def record(workdir: str, config: ConfigDict, spec: DatasetSpec) -> None:
    """Writes the configuration of a run to its workdir, all of it or nothing.

    Args:
        workdir: folder of the run; made if need be.
        config: configuration of the run.
        spec: the data set as the task reads it.

    Raises:
        UserError: the folder cannot be written.
    """
    if jax.process_index() > 0:
        return
    folder = pathlib.Path(workdir)
    _make_folder(folder, workdir)
    try:
        part = folder / "config.json.part"
        part.write_text(json.dumps(_as_saved(config, spec), indent=2) + "\n")
        part.replace(folder / "config.json")
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be written: {error.strerror or error}.") from error


def _make_folder(folder: pathlib.Path, workdir: str) -> None:
    if "://" in str(workdir):
        raise UserError(f"The workdir {workdir} is no folder: mount it, and name the folder where it is.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be written: {error.strerror or error}.") from error


def _as_saved(config: ConfigDict, spec: DatasetSpec) -> dict[str, Any]:
    return to_dict(config) | {"spec": to_dict(dataclasses.asdict(spec))}


def _read_json(workdir: str) -> dict[str, Any] | None:
    path = pathlib.Path(workdir) / "config.json"
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def read_config(workdir: str) -> tuple[ConfigDict, DatasetSpec]:
    """Reads the configuration of a workdir.

    Args:
        workdir: folder of a run.

    Returns:
        The configuration, and the data set as the task reads it.

    Raises:
        UserError: no run there.
    """
    saved = _read_json(workdir)
    if saved is None:
        raise UserError(f"There is no run in {workdir}: config.json is missing. Train one with `segjax train`.")
    spec = saved.pop("spec")
    spec = DatasetSpec(
        classes=tuple(spec["classes"]),
        colours=tuple(tuple(c) for c in spec["colours"]),
        things=tuple(spec["things"]),
        ignore=spec["ignore"],
        mode=spec["mode"],
    )
    return from_dict(saved), spec


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Leaves that differ between two nested dicts, as "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [line for k in keys for line in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [f"{path}: {old} -> {new}"]


class Checkpoints:
    """The last and the best state of a run; saves in the background.

    Attributes:
        best: the figure of the summary whose highest value is kept.
    """

    def __init__(self, workdir: str, *, best: str = "mIoU", evaluate: str = "best"):
        """Opens the checkpoints of a workdir.

        Args:
            workdir: folder of the run.
            best: the figure whose best checkpoint is kept beside the last.
            evaluate: "best" or "last": the one that `chosen` names.

        Raises:
            UserError: an unknown choice, or a folder that cannot be written.
        """
        check_choice("checkpoint.evaluate", evaluate, ("best", "last"))
        self.best, self._evaluate, self._workdir = best, evaluate, workdir
        folder = pathlib.Path(workdir).absolute() / "checkpoints"
        _make_folder(folder, workdir)
        policies = ocp.checkpoint_managers
        self._manager = ocp.CheckpointManager(
            folder,
            item_handlers={"state": ocp.StandardCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                best_fn=self._figure,
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(1),
                        policies.BestN(get_metric_fn=self._figure, n=1, keep_checkpoints_without_metrics=False),
                    ]
                ),
            ),
        )

    def check_best(self, summary: dict[str, Any]) -> None:
        """Checks, before a run, that its summaries will hold the figure to choose by.

        Args:
            summary: of an empty score.

        Raises:
            UserError: they will not.
        """
        check_choice("checkpoint.best", self.best, [k for k, v in summary.items() if not isinstance(v, dict)])

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error) -> None:
        """Waits for what is being saved, also when a run fails."""
        self._manager.close()

    def _figure(self, summary: dict[str, Any]) -> float:
        value = summary.get(self.best)
        return float("-inf") if value is None else float(value)

    def save(self, step: int, state: State, summary: dict[str, Any] | None) -> None:
        """Saves in the background; `state` may be donated right after.

        Args:
            step: number of finished steps.
            state: what to save.
            summary: figures of an evaluation at this step, if there was one.

        Raises:
            RuntimeError: nothing was saved.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(state))
        if not self._manager.save(step, args=args, metrics=summary, force=True):
            raise RuntimeError(f"Orbax refused to save step {step} in {self._workdir}.")

    def latest(self) -> int | None:
        """Step of the last checkpoint; None where there is none."""
        return self._manager.latest_step()

    def chosen(self) -> int:
        """Step of the checkpoint to score and predict with.

        Returns:
            The best one's, or the last one's where none was scored or the last was asked for.

        Raises:
            UserError: no checkpoint.
        """
        self._manager.wait_until_finished()
        best = self._manager.best_step() if self._evaluate == "best" else None
        step = self.latest() if best is None else best
        if step is None:
            raise UserError(f"There is no checkpoint in {self._workdir}/checkpoints: train first with `segjax train`.")
        return step

    def summary(self, step: int) -> dict[str, Any] | None:
        """Figures that were saved with a checkpoint; None where it was not scored."""
        return self._manager.metrics(step)

    def restore(self, step: int, abstract: State, mesh: Any, fsdp: bool = False) -> State:
        """Reads a checkpoint onto the devices.

        Args:
            step: which one.
            abstract: shapes and dtypes of the state.
            mesh: the devices, whose number may differ from the run's.
            fsdp: see `segjax.parallel.state_sharding`; may differ too.

        Returns:
            The state.

        Raises:
            UserError: the checkpoint is of another shape.
        """
        saved = _shapes(self._manager.item_metadata(step)["state"].tree)
        wanted = _shapes(abstract)
        wrong = [
            f"{name}: saved {saved.get(name, 'nothing')}, configured {wanted.get(name, 'nothing')}"
            for name in saved | wanted
            if saved.get(name) != wanted.get(name)
        ]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise UserError(
                f"Checkpoint {step} in {self._workdir} does not fit the configured model and optimiser: "
                f"{'; '.join(wrong[:5])}{more}. Choose another --workdir, or the configuration in its config.json."
            )
        placed = parallel.state_sharding(mesh, abstract, fsdp)
        target = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, placed)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=args)["state"]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every leaf by its dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
