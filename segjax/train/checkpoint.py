"""Saves and restores checkpoints; the only module that uses Orbax."""

import json
import pathlib
from typing import Annotated, Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from segjax import parallel
from segjax.checks import Key, UserError, check_choice, writing
from segjax.train.state import TrainState


class Checkpoints:
    """Keeps the last and the best state of a run; saves in the background.

    The keyword arguments are the keys of the section `checkpoint`.

    Args:
        workdir: the run's folder, which must exist.

    Raises:
        UserError: the folder is not writable.
    """

    def __init__(
        self,
        workdir: str,
        *,
        best: Annotated[str, Key("metric that selects the best checkpoint; the last one is kept too")] = "mIoU",
        evaluate: Annotated[str, Key("checkpoint for the final scores and for prediction", ("best", "last"))] = "best",
    ):
        self.best, self._evaluate, self._workdir = best, evaluate, workdir
        self._summaries: dict[int, dict[str, Any]] = {}
        folder = pathlib.Path(workdir).absolute() / "checkpoints"
        with writing(f"The workdir {workdir}"):
            folder.mkdir(exist_ok=True)
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder,
            item_handlers={"state": ocp.StandardCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(preservation_policy=_Keep(self)),
        )
        for step in self._manager.all_steps():
            # Version 0.1 gave the metrics to Orbax.
            for file in (self._scores(step), folder / str(step) / "metrics" / "metrics"):
                if file.exists():
                    self._summaries.setdefault(step, _read_summary(file))

    def check_best(self, summary: dict[str, Any]) -> None:
        """Raises a UserError, before a run starts, if its summaries lack the metric `checkpoint.best`."""
        check_choice("checkpoint.best", self.best, [k for k, v in summary.items() if not isinstance(v, dict)])

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error) -> None:
        """Waits for pending saves, even if the run failed."""
        self._manager.close()

    def save(self, step: int, state: TrainState) -> None:
        """Saves a state in the background, before it is evaluated; `state` may be donated right after the call."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state))
        if not self._manager.save(step, args=args, force=True):
            raise RuntimeError(f"Orbax refused to save step {step} in {self._workdir}.")

    def record(self, step: int, summary: dict[str, Any]) -> None:
        """Keeps the evaluation metrics of a saved step in its folder, and removes what is neither best nor last."""
        self._summaries[step] = summary
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            part = self._scores(step).with_suffix(".part")
            with writing(f"The workdir {self._workdir}"):
                part.write_text(json.dumps(summary))
                part.replace(self._scores(step))
        for other in set(self._manager.all_steps()) - {self.latest(), self.best_step()}:
            self._manager.delete(other)

    def _scores(self, step):
        return self._folder / str(step) / "scores.json"

    def best_step(self) -> int | None:
        """Returns the step with the best metric, the last of equal ones; None if no step that is left was evaluated."""
        steps = [step for step in self._manager.all_steps() if step in self._summaries]
        return max(steps, key=lambda step: (self._best_metric(step), step), default=None)

    def _best_metric(self, step):
        value = self._summaries[step].get(self.best)
        return float("-inf") if value is None else float(value)

    def latest(self) -> int | None:
        """Returns the step of the last checkpoint, or None if there is no checkpoint."""
        return self._manager.latest_step()

    def chosen(self) -> int:
        """Returns the step of the best checkpoint, or of the last if so configured or if no checkpoint has metrics.

        Raises:
            UserError: there is no checkpoint.
        """
        self._manager.wait_until_finished()
        best = self.best_step() if self._evaluate == "best" else None
        step = self.latest() if best is None else best
        if step is None:
            raise UserError(f"There is no checkpoint in {self._workdir}/checkpoints: train first with `segjax train`.")
        return step

    def summary(self, step: int) -> dict[str, Any] | None:
        """Returns the evaluation metrics of a checkpoint, or None if it was not evaluated."""
        return self._summaries.get(step)

    def restore(self, step: int, abstract: TrainState, mesh: Any, fsdp: bool = False) -> TrainState:
        """Restores a checkpoint onto a mesh; the device count and `fsdp` may differ from those of the run.

        Raises:
            UserError: its shapes differ from those of `abstract`.
        """
        saved = _shapes(self._manager.item_metadata(step)["state"].tree)
        configured = _shapes(abstract)
        wrong = [
            f"{name}: saved {saved.get(name, 'nothing')}, configured {configured.get(name, 'nothing')}"
            for name in saved | configured
            if saved.get(name) != configured.get(name)
        ]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise UserError(
                f"Checkpoint {step} in {self._workdir} does not match the configured model and optimiser: "
                f"{'; '.join(wrong[:5])}{more}. Choose another --workdir, or use the configuration in its config.json."
            )
        placed = parallel.state_shardings(mesh, abstract, fsdp)
        target = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, placed)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=args)["state"]


def _read_summary(file):
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}). Remove it: the checkpoint then has no score.") from error


class _Keep(NamedTuple):
    """Orbax's policy of what to keep: the last checkpoint, and the best."""

    checkpoints: Checkpoints

    def should_preserve(self, checkpoints, *, context):
        """Marks the checkpoints to keep, given in ascending order."""
        best = self.checkpoints.best_step()
        return [info.step == best or info is checkpoints[-1] for info in checkpoints]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf, by dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
