"""Copy-paste augmentation: pastes objects of another image's crop (Ghiasi et al. 2021, arXiv:2012.07177)."""

from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt16

from segjax.checks import UserError
from segjax.spec import Preprocess


def check_copy_paste(share: float, max_objects: int, preprocess: Preprocess) -> None:
    """Raises a UserError if there are no instance maps, or if images have context around their labels."""
    if not max_objects or preprocess.context:
        raise UserError(
            f"data.copy_paste_fraction={share} pastes objects: it needs task.name='panoptic' or 'instance', "
            "and preprocess.context=0."
        )


def generator(seed: int, position: int) -> tuple[np.random.Generator, int]:
    """Returns the random generator of the sample at a position, and the key of the other image's crop."""
    key = 2**64 - 1 - position  # never a position: no other crop has these draws
    return np.random.Generator(np.random.Philox(key=np.array((seed, key), np.uint64)).jumped()), key


def draw_numbers(
    random: np.random.Generator, instance: UInt16[np.ndarray, "y x"], other: UInt16[np.ndarray, "v u"], max_objects: int
) -> UInt16[np.ndarray, " n"]:
    """Maps the object numbers of `other` to new ones in the image of `instance`; 0 drops an object, half on average."""
    used = int(instance.max())
    numbers = np.zeros(int(other.max()) + 1, np.uint16)
    chosen = np.flatnonzero(random.random(len(numbers) - 1) < 0.5)[: max_objects - used] + 1
    numbers[chosen] = used + 1 + np.arange(len(chosen))
    return numbers


def paste_objects(
    row: dict[str, Any], other: dict[str, Shaped[np.ndarray, "h w *c"]], numbers: UInt16[np.ndarray, " n"]
):
    """Pastes the objects of another row whose new number is not 0, in place.

    A pasted object overwrites the image, the label and the instance map, from which all targets are made.
    """
    other["instance"] = numbers.take(other["instance"])
    pasted = other["instance"] > 0
    for key, value in row.items():
        value[pasted] = other[key][pasted]
