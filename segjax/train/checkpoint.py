"""Saves and restores checkpoints; the only module that uses Orbax."""

import pathlib
from typing import Annotated, Any

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
        folder = pathlib.Path(workdir).absolute() / "checkpoints"
        with writing(f"The workdir {workdir}"):
            folder.mkdir(exist_ok=True)
        policies = ocp.checkpoint_managers
        best_one = policies.BestN(get_metric_fn=self._best_metric, n=1, keep_checkpoints_without_metrics=False)
        kept = policies.AnyPreservationPolicy([policies.LatestN(1), best_one])
        self._manager = ocp.CheckpointManager(
            folder,
            item_handlers={"state": ocp.StandardCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(best_fn=self._best_metric, preservation_policy=kept),
        )

    def check_best(self, summary: dict[str, Any]) -> None:
        """Raises a UserError, before a run starts, if its summaries lack the metric `checkpoint.best`."""
        check_choice("checkpoint.best", self.best, [k for k, v in summary.items() if not isinstance(v, dict)])

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error) -> None:
        """Waits for pending saves, even if the run failed."""
        self._manager.close()

    def _best_metric(self, summary: dict[str, Any]) -> float:
        value = summary.get(self.best)
        return float("-inf") if value is None else float(value)

    def save(self, step: int, state: TrainState, summary: dict[str, Any] | None) -> None:
        """Saves a state and its evaluation metrics in the background; `state` may be donated right after the call."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state))
        if not self._manager.save(step, args=args, metrics=summary, force=True):
            raise RuntimeError(f"Orbax refused to save step {step} in {self._workdir}.")

    def latest(self) -> int | None:
        """Returns the step of the last checkpoint, or None if there is no checkpoint."""
        return self._manager.latest_step()

    def chosen(self) -> int:
        """Returns the step of the best checkpoint, or of the last if so configured or if no checkpoint has metrics.

        Raises:
            UserError: there is no checkpoint.
        """
        self._manager.wait_until_finished()
        best = self._manager.best_step() if self._evaluate == "best" else None
        step = self.latest() if best is None else best
        if step is None:
            raise UserError(f"There is no checkpoint in {self._workdir}/checkpoints: train first with `segjax train`.")
        return step

    def summary(self, step: int) -> dict[str, Any] | None:
        """Returns the metrics saved with a checkpoint, or None if it was not evaluated."""
        return self._manager.metrics(step)

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


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf, by dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
