"""The largest batch of a run whose train step fits into the memory of its devices."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from segjax import parallel
from segjax.checks import UserError
from segjax.train import aot, components

log = logging.getLogger("segjax")


def fit(
    config: ConfigDict,
    devices: Sequence[jax.Device] | None = None,
    sources: components.Sources = None,
    memory: int | None = None,
) -> dict[str, Any]:
    """Finds the largest batch that fits, and whether activations must be recomputed for the configured one.

    Args:
        config: configuration of the run; its batch size is where the search begins.
        devices: what to compile for; None is the devices that are there.
        sources: sources by split that stand in for the configured one.
        memory: bytes of a device; None is what the chip has.

    Returns:
        "batch_size", the largest over all devices, 0 if none fits; "peak_bytes" of it; "needs_remat", whether the
        configured batch fits with model.remat=True only, and then "remat_batch_size" and "remat_peak_bytes".

    Raises:
        UserError: a device whose memory is not known.
    """

    def peak(remat):
        def of(rows):
            trial = config.copy_and_resolve_references()
            trial.data.batch_size, trial.model.remat = rows, remat
            name = f"batch of {rows}" + (", model.remat=True" if remat else "")
            log.info("%s: compiling", name)
            (program,) = aot.programs(trial, ("train",), devices, sources)
            found = aot.report(program)
            limit = memory or found.get("memory_bytes")
            if found["fits"] is not False and limit is None:
                raise UserError("The memory of these devices is not known: give --memory, in GiB.")
            used = found.get("peak_bytes")
            fits = found["fits"] is not False and used <= limit
            log.info("%s: %s (%.0f s)", name, "fits" if fits else "does not fit", found.get("compile_seconds", 0.0))
            return (used if fits else None), limit

        return of

    step = parallel.make_mesh(devices, **config.parallel).shape[parallel.DATA]
    batch, used = largest(peak(config.model.remat), config.data.batch_size, step)
    facts = {"batch_size": batch, "peak_bytes": used, "needs_remat": False}
    if batch < config.data.batch_size and not config.model.remat:
        more, used = largest(peak(True), max(batch, step), step)
        facts |= {"needs_remat": more >= config.data.batch_size, "remat_batch_size": more, "remat_peak_bytes": used}
    return facts


def largest(peak: Callable[[int], tuple[int | None, int | None]], start: int, step: int) -> tuple[int, int | None]:
    """Finds the largest number for which something fits, by interpolation: memory grows in proportion to the batch.

    Args:
        peak: number -> (bytes, or None where it does not fit; bytes that there are).
        start: where to begin, a multiple of `step`.
        step: all numbers are multiples of it.

    Returns:
        The number, 0 if not even `step` fits, and its bytes.

    Example:
        >>> largest(lambda n: (3 + 7 * n if 3 + 7 * n <= 100 else None, 100), 4, 2)
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
        # Two guesses go along the straight line; near the limit compilers save memory, and leave it.
        if len(known) > 1 and straight < 2:
            (a, below), (b, above) = sorted(known.items())[-2:]
            line = b + max(step, int((limit - above) * (b - a) / max(1, above - below)) // step * step)
            if above > below and low < line < (high or 8 * low):
                guess, straight = line, straight + 1
