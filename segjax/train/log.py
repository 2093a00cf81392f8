"""Logs a run: metrics to metrics.jsonl, TensorBoard and W&B, progress to stderr.

Nothing here writes to stdout, because the last line of stdout is the command's result.
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

PLAIN_SECONDS = 5.0  # between progress lines without a terminal


class Log:
    """The log of a run; a context manager that closes the progress bar and the writers, even after an error.

    The workdir is created if missing; `config` is for W&B. `enabled=False` makes every method do nothing; None enables
    process 0 only. Raises a UserError if W&B is requested but not installed.

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
        wandb: Annotated[bool, Key("also log to Weights & Biases; a resumed run continues its W&B run")] = False,
        tensorboard: Annotated[bool, Key("also write TensorBoard events, if tensorboardX is installed")] = True,
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
        """Records the scalars of a split after a step.

        Nested dicts stay nested in the file and become "outer/inner" elsewhere. Non-finite values become null.
        """
        if not self.enabled:
            return
        scalars = _plain(scalars)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "split": split} | scalars, allow_nan=False) + "\n")
        metrics = {f"{split}/{name}": value for name, value in _flat(scalars)}
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
        if self._run is not None:
            self._run.log(metrics, step=step)

    def truncate(self, step: int) -> None:
        """Drops all records after the step that a run resumes from, and a line cut off by a crash."""
        self._resumed = step
        if not self.enabled or not self.path.exists():
            return
        kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
        new = self.path.with_suffix(".jsonl.new")
        new.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        new.replace(self.path)

    def progress(self, step: int, loss: float, images_per_second: float) -> None:
        """Shows the progress of the run: as a bar on a terminal, otherwise as a line every few seconds."""
        if not self.enabled:
            return
        now = time.monotonic()
        self._first = self._first or (step, now)
        status = f"loss {loss:.4f}  {images_per_second:.1f} images/s"
        if step > self._first[0]:
            seconds = (now - self._first[1]) / (step - self._first[0]) * (self.total_steps - step)
            status += f"  {_clock(seconds)} left"
        if self.console.is_interactive:
            self._show(step, status)
        elif step >= self.total_steps or now - self._last_line >= PLAIN_SECONDS:
            self._last_line = now
            self.message(f"step {step}/{self.total_steps}  {status}")

    def message(self, text: str) -> None:
        """Prints text to stderr, above the progress bar."""
        if self.enabled:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self, failed: bool = False) -> None:
        """Closes the progress bar and the writers; tells W&B whether the run failed."""
        if self._bar is not None:
            self._bar.stop()
        if "_board" in vars(self) and self._board is not None:
            self._board.close()
        if self._run is not None:
            self._run.finish(exit_code=int(failed))

    @functools.cached_property
    def _board(self):
        """The TensorBoard writer; opened on first use, when `truncate` has set the step to resume from."""
        if not self._tensorboard:
            return None
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self._resumed + 1)

    def _show(self, step: int, status: str) -> None:
        if self._bar is None:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[status]}"))
            # By default Rich redirects stdout to stderr.
            self._bar = Progress(*columns, console=self.console, redirect_stdout=False)
            self._bar.add_task("", total=self.total_steps, completed=step, status=status)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=step, status=status)
        if step >= self.total_steps:
            self._bar.stop()


def _clock(seconds: int | float) -> str:
    """Formats seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _plain(value: Any) -> Any:
    """Makes a value JSON-serialisable: arrays become lists and numbers, non-finite values None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(scalars: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """Yields the path and value of every number in a nested dict."""
    for name, value in scalars.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


def _step(line: str) -> int | float:
    """Returns the step of a line of metrics.jsonl; infinity if the line is cut off."""
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
