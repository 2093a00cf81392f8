"""Copy-paste: objects of another image's crop are pasted into a crop (Ghiasi et al. 2021, arXiv:2012.07177)."""

from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt16

from segjax.checks import UserError
from segjax.spec import Preprocess


def check(share: float, max_objects: int, preprocess: Preprocess) -> None:
    """Raises a UserError if there are no instance maps to paste by, or more image than label."""
    if not max_objects or preprocess.context:
        raise UserError(
            f"data.paste={share} moves objects into crops: it needs task.name='panoptic' or 'instance', and no "
            "preprocess.context."
        )


def generator(seed: int, position: int) -> tuple[np.random.Generator, int]:
    """Random numbers of the sample at a position, and the key of the other image's crop."""
    key = 2**64 - 1 - position  # no position: another draw than that of any image
    return np.random.Generator(np.random.Philox(key=np.array((seed, key), np.uint64)).jumped()), key


def draw_numbers(
    random: np.random.Generator, instance: UInt16[np.ndarray, "y x"], other: UInt16[np.ndarray, "v u"], max_objects: int
) -> UInt16[np.ndarray, " n"]:
    """What the objects 0 .. n - 1 of the other map are called in the image of `instance`; 0 for half: left out."""
    used = int(instance.max())
    numbers = np.zeros(int(other.max()) + 1, np.uint16)
    chosen = np.flatnonzero(random.random(len(numbers) - 1) < 0.5)[: max_objects - used] + 1
    numbers[chosen] = used + 1 + np.arange(len(chosen))
    return numbers


def paste(row: dict[str, Any], other: dict[str, Shaped[np.ndarray, "h w *c"]], numbers: UInt16[np.ndarray, " n"]):
    """Pastes the objects of another row that have a number, in place.

    An object covers what lies behind it, and so do the maps, from which all targets are made.
    """
    other["instance"] = numbers.take(other["instance"])
    pasted = other["instance"] > 0
    for key, value in row.items():
        value[pasted] = other[key][pasted]
