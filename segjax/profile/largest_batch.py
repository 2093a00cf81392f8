"""Finds the largest batch size whose train step fits in device memory."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from segjax import parallel
from segjax.checks import UserError
from segjax.profile import aot
from segjax.train import components

log = logging.getLogger("segjax")


def largest_batch(
    config: ConfigDict,
    devices: Sequence[jax.Device] | None = None,
    sources: components.Sources | None = None,
    memory: int | None = None,
) -> dict[str, Any]:
    """Finds the largest batch size that fits, and whether the configured one needs model.remat=True.

    Args:
        config: configuration of the run; the search starts at its batch size.
        devices: devices to compile for; None uses the attached devices.
        sources: sources by split, in place of the configured one.
        memory: bytes per device; None uses the chip's memory.

    Returns:
        "batch_size", the largest over all devices, 0 if none fits; its "peak_bytes"; "needs_remat", whether the
        configured batch fits only with model.remat=True, and then "remat_batch_size" and "remat_peak_bytes".

    Raises:
        UserError: the memory of the devices is unknown.
    """

    def peak(remat):
        def of(rows):
            trial = config.copy_and_resolve_references()
            trial.data.batch_size, trial.model.remat = rows, remat
            name = f"batch of {rows}" + (", model.remat=True" if remat else "")
            log.info("%s: compiling", name)
            (program,) = aot.step_programs(trial, ("train",), devices, sources)
            found = aot.cost_report(program)
            limit = memory or found.get("memory_bytes")
            if found["fits"] is not False and limit is None:
                raise UserError("The memory of these devices is unknown: pass --memory, in GiB.")
            used = found.get("peak_bytes")
            fits = found["fits"] is not False and used <= limit
            log.info("%s: %s (%.0f s)", name, "fits" if fits else "does not fit", found.get("compile_seconds", 0.0))
            return (used if fits else None), limit

        return of

    step = parallel.make_mesh(devices, **config.parallel).shape[parallel.DATA]
    batch, used = largest_that_fits(peak(config.model.remat), config.data.batch_size, step)
    facts = {"batch_size": batch, "peak_bytes": used, "needs_remat": False}
    if batch < config.data.batch_size and not config.model.remat:
        more, used = largest_that_fits(peak(True), max(batch, step), step)
        facts |= {"needs_remat": more >= config.data.batch_size, "remat_batch_size": more, "remat_peak_bytes": used}
    return facts


def largest_that_fits(
    peak: Callable[[int], tuple[int | None, int | None]], start: int, step: int
) -> tuple[int, int | None]:
    """Finds the largest number that fits in memory, by interpolation: memory grows linearly with the batch.

    Args:
        peak: number -> (bytes needed, or None if it does not fit; bytes available).
        start: first number to try, a multiple of `step`.
        step: all numbers are multiples of this.

    Returns:
        The number, 0 if not even `step` fits, and its bytes.

    Example:
        >>> largest_that_fits(lambda n: (3 + 7 * n if 3 + 7 * n <= 100 else None, 100), 4, 2)
        (12, 87)
    """
    known: dict[int, int] = {}
    low, high, guess, straight = 0, None, start, 0
    while True:
        used, limit = peak(guess)
        if used is None:
            high = guess
        else:
            low, known[guess] = guess, used
        if high is not None and high - low <= step:
            return low, known.get(low)
        guess = 2 * low if high is None else max(low + step, (low + high) // 2 // step * step)
        # Two guesses interpolate linearly; close to the limit the compiler recomputes, and memory is no longer linear.
        if len(known) > 1 and straight < 2:
            (a, below), (b, above) = sorted(known.items())[-2:]
            line = b + max(step, int((limit - above) * (b - a) / max(1, above - below)) // step * step)
            if above > below and low < line < (high or 8 * low):
                guess, straight = line, straight + 1
