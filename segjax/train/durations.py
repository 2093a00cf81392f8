"""How long a run is, and what happens when: everything in steps."""

import math
from typing import Annotated, Literal, NamedTuple

from segjax.checks import Key, UserError


class Durations(NamedTuple):
    """Lengths of a run, all in steps."""

    total: int
    warmup: int
    eval_every: int
    checkpoint_every: int
    log_every: int

    def due(self, what: Literal["eval", "checkpoint", "log"], step: int) -> bool:
        """Whether something happens after `step` steps; everything happens after the last."""
        every = getattr(self, f"{what}_every")
        return step == self.total or (every > 0 and step % every == 0)


def durations(
    steps_per_epoch: int | float,
    batch_size: int,
    *,
    unit: Annotated[str, Key("what the next four are counted in", ("steps", "epochs", "examples"))] = "steps",
    total: Annotated[float, Key("length of the run", "(0, inf)")] = 1000.0,
    warmup: Annotated[float, Key("length of the learning rate's warm-up", "[0, inf)")] = 0.0,
    eval_every: Annotated[float, Key("between evaluations; 0: at the end only", "[0, inf)")] = 0.0,
    checkpoint_every: Annotated[
        float, Key("between checkpoints; 0: with each evaluation or, without those, ten times a run", "[0, inf)")
    ] = 0.0,
    log_every: Annotated[int, Key("steps between lines of the log, whatever the unit", "[1, inf)")] = 10,
) -> Durations:
    """Converts the section `run` of the configuration to steps, rounded up.

    Args:
        steps_per_epoch: steps that see each sample once on average.
        batch_size: samples a step.

    Raises:
        UserError: a run without steps.

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
