"""Draws a pixel of a random class, for crops that show rare classes."""

import numpy as np
from jaxtyping import Float64, Shaped


def rare_pixel(
    label: Shaped[np.ndarray, "y x *k"], ignore: int, which: float, pixel: float
) -> Float64[np.ndarray, "2"] | None:
    """Returns (y, x) of a random pixel of a random class in the label; None if nothing is labelled.

    `which` chooses the class, `pixel` the pixel, both in [0, 1).
    """
    if label.ndim == 3:
        present = np.flatnonzero((label == 1).any(axis=(0, 1)))
    else:
        present = np.unique(label)
        present = present[present != ignore]
    if not len(present):
        return None
    chosen = present[int(which * len(present))]
    hits = np.flatnonzero(label[..., chosen] == 1 if label.ndim == 3 else label == chosen)
    return np.array(np.unravel_index(hits[int(pixel * len(hits))], label.shape[:2]), np.float64)
