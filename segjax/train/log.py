"""What a run says: figures to metrics.jsonl, TensorBoard and W&B, progress to stderr.

Nothing here writes to stdout, whose last line is the command's result.
"""

import functools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from segjax.checks import Key, UserError

PLAIN_SECONDS = 5.0  # between lines of progress where there is no terminal


class Log:
    """The log of a run; a context manager that closes the bar and the writers, also on an error.

    Args:
        workdir: local folder of the run; made if need be.
        total_steps: length of the run.
        config: configuration of the run, for W&B.
        enabled: False makes every method do nothing; None enables process 0 only.

    Raises:
        UserError: W&B is asked for but not installed.

    Example:
        >>> import tempfile
        >>> workdir = tempfile.mkdtemp()
        >>> with Log(workdir, total_steps=8, tensorboard=False) as log:
        ...     log.write(4, "test", {"mIoU": 0.5, "iou_per_class": {"cat": 0.5, "dog": float("nan")}})
        >>> print(Path(workdir, "metrics.jsonl").read_text().strip())
        {"step": 4, "split": "test", "mIoU": 0.5, "iou_per_class": {"cat": 0.5, "dog": null}}
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        total_steps: int,
        *,
        wandb: Annotated[bool, Key("also report to Weights & Biases; a resumed run goes on with its record")] = False,
        tensorboard: Annotated[bool, Key("also write TensorBoard events, where tensorboardX is installed")] = True,
        config: Mapping[str, Any] | None = None,
        enabled: bool | None = None,
    ):
        self.enabled = jax.process_index() == 0 if enabled is None else enabled
        self.path = Path(workdir) / "metrics.jsonl"
        self.total_steps = total_steps
        self.console = Console(stderr=True)
        self._tensorboard, self._resumed = tensorboard, 0
        self._bar, self._first, self._last_line, self._run = None, None, -math.inf, None
        if self.enabled:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._run = _wandb_run(self.path.parent, config) if wandb else None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close(failed=kind is not None)

    def write(self, step: int, split: str, scalars: Mapping[str, Any]) -> None:
        """Records what was measured on a split after a step.

        A nested dict is kept in the file and becomes "outer/inner" elsewhere. What is not finite becomes null.
        """
        if not self.enabled:
            return
        scalars = _plain(scalars)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "split": split} | scalars, allow_nan=False) + "\n")
        figures = {f"{split}/{name}": value for name, value in _flat(scalars)}
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
        if self._run is not None:
            self._run.log(figures, step=step)

    def truncate(self, step: int) -> None:
        """Forgets what was recorded after a step, and a line that a crash tore: the run resumes there."""
        self._resumed = step
        if not self.enabled or not self.path.exists():
            return
        kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
        new = self.path.with_suffix(".jsonl.new")
        new.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        new.replace(self.path)

    def progress(self, step: int, loss: float, images_per_second: float) -> None:
        """Shows how far the run is: a bar on a terminal, now and then a line elsewhere."""
        if not self.enabled:
            return
        now = time.monotonic()
        self._first = self._first or (step, now)
        figures = f"loss {loss:.4f}  {images_per_second:.1f} images/s"
        if step > self._first[0]:
            seconds = (now - self._first[1]) / (step - self._first[0]) * (self.total_steps - step)
            figures += f"  {_clock(seconds)} left"
        if self.console.is_interactive:
            self._show(step, figures)
        elif step >= self.total_steps or now - self._last_line >= PLAIN_SECONDS:
            self._last_line = now
            self.message(f"step {step}/{self.total_steps}  {figures}")

    def message(self, text: str) -> None:
        """Prints text to stderr, above the bar."""
        if self.enabled:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self, failed: bool = False) -> None:
        """Closes the bar and the writers; W&B is told whether the run failed."""
        if self._bar is not None:
            self._bar.stop()
        if "_board" in vars(self) and self._board is not None:
            self._board.close()
        if self._run is not None:
            self._run.finish(exit_code=int(failed))

    @functools.cached_property
    def _board(self):
        """TensorBoard's writer, opened on the first figure, when it is known which steps a resumed run repeats."""
        if not self._tensorboard:
            return None
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self._resumed + 1)

    def _show(self, step: int, figures: str) -> None:
        if self._bar is None:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[figures]}"))
            # Rich would send what others print to stdout to stderr.
            self._bar = Progress(*columns, console=self.console, redirect_stdout=False)
            self._bar.add_task("", total=self.total_steps, completed=step, figures=figures)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=step, figures=figures)
        if step >= self.total_steps:
            self._bar.stop()


def _clock(seconds: int | float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _plain(value: Any) -> Any:
    """Makes a value fit for JSON: arrays become lists and numbers, what is not finite None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(scalars: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """Yields every number of a nested dict under its path."""
    for name, value in scalars.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


def _step(line: str) -> int | float:
    """The step of a line of metrics.jsonl; infinite for a torn line."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return math.inf


def _wandb_run(workdir: Path, config: Mapping[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("log.wandb=True needs W&B: `pip install wandb`, or set log.wandb=False.") from error
    return wandb.init(
        project="segjax", name=workdir.resolve().name, dir=str(workdir), config=dict(config or {}), resume="auto"
    )
