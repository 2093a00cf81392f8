"""Checkpoints of a run: the only file that knows Orbax."""

import pathlib
from typing import Annotated, Any

import jax
import orbax.checkpoint as ocp

from segjax import parallel
from segjax.checks import Key, UserError, check_choice, writing
from segjax.train.state import State


class Checkpoints:
    """The last and the best state of a run; saves in the background.

    The keyword arguments are the keys of the section `checkpoint`.

    Args:
        workdir: folder of the run, which exists.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(
        self,
        workdir: str,
        *,
        best: Annotated[str, Key("figure whose best checkpoint is kept beside the last")] = "mIoU",
        evaluate: Annotated[str, Key("the one that is scored at the end and predicts", ("best", "last"))] = "best",
    ):
        self.best, self._evaluate, self._workdir = best, evaluate, workdir
        folder = pathlib.Path(workdir).absolute() / "checkpoints"
        with writing(f"The workdir {workdir}"):
            folder.mkdir(exist_ok=True)
        policies = ocp.checkpoint_managers
        best_one = policies.BestN(get_metric_fn=self._figure, n=1, keep_checkpoints_without_metrics=False)
        kept = policies.AnyPreservationPolicy([policies.LatestN(1), best_one])
        self._manager = ocp.CheckpointManager(
            folder,
            item_handlers={"state": ocp.StandardCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(best_fn=self._figure, preservation_policy=kept),
        )

    def check_best(self, summary: dict[str, Any]) -> None:
        """Raises a UserError, before a run, where its summaries do not hold the figure to choose by."""
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
        """Saves in the background, with the figures of an evaluation; `state` may be donated right after."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state))
        if not self._manager.save(step, args=args, metrics=summary, force=True):
            raise RuntimeError(f"Orbax refused to save step {step} in {self._workdir}.")

    def latest(self) -> int | None:
        """Step of the last checkpoint; None where there is none."""
        return self._manager.latest_step()

    def chosen(self) -> int:
        """Step of the checkpoint to score and predict with: the best, or the last if so configured or none was scored.

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
        """Reads a checkpoint onto the devices of a mesh; their number, and `fsdp`, may differ from those of the run.

        Raises:
            UserError: its shapes are not those of `abstract`.
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
