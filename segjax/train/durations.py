"""The length of a run and its intervals, converted to steps."""

import math
from typing import Annotated, Literal, NamedTuple

from segjax.checks import Key, UserError


class Durations(NamedTuple):
    """Length and intervals of a run, all in steps."""

    total: int
    warmup: int
    eval_every: int
    checkpoint_every: int
    log_every: int

    def due(self, what: Literal["eval", "checkpoint", "log"], step: int) -> bool:
        """Tells whether `what` is due after `step` steps; everything is due after the last step."""
        every = getattr(self, f"{what}_every")
        return step == self.total or (every > 0 and step % every == 0)


def durations(
    steps_per_epoch: int | float,
    batch_size: int,
    *,
    unit: Annotated[str, Key("unit of the next four keys", ("steps", "epochs", "examples"))] = "steps",
    total: Annotated[float, Key("length of the run", "(0, inf)")] = 1000.0,
    warmup: Annotated[float, Key("length of the learning rate warm-up", "[0, inf)")] = 0.0,
    eval_every: Annotated[float, Key("interval between evaluations; 0: only at the end", "[0, inf)")] = 0.0,
    checkpoint_every: Annotated[
        float, Key("interval between checkpoints; 0: at each evaluation or, without them, ten times a run", "[0, inf)")
    ] = 0.0,
    log_every: Annotated[int, Key("interval between log lines, always in steps", "[1, inf)")] = 10,
) -> Durations:
    """Converts the section `run` of the configuration to steps, rounded up.

    Each sample is seen once in `steps_per_epoch` steps on average. Raises a UserError for a run without steps.

    Example:
        >>> durations(46, 8, unit="epochs", total=2, warmup=0.5)
        Durations(total=92, warmup=23, eval_every=0, checkpoint_every=10, log_every=10)
    """
    factor = {"steps": 1.0, "epochs": steps_per_epoch, "examples": 1.0 / batch_size}[unit]

    def steps(amount):
        return math.ceil(amount * factor - 1e-9)

    if steps(total) < 1:
        raise UserError(f"run.total={total} {unit} is less than one step.")
    saving = steps(checkpoint_every) or steps(eval_every) or math.ceil(steps(total) / 10)
    return Durations(steps(total), steps(warmup), steps(eval_every), saving, log_every)
