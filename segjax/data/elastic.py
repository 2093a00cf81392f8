"""Elastic deformation: random displacements on a coarse grid, interpolated bicubically (U-Net paper, section 3.1)."""

import functools

import numpy as np
from jaxtyping import Float32


def displacement(
    grid: Float32[np.ndarray, "g g 2"], size: tuple[int, int], margin: int
) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """Interpolates a grid, spread over an output of `size`, to (dy, dx) of each pixel of the output and its margin."""
    points = len(grid)
    down, across = (_bicubic(points, n, margin) for n in size)
    return tuple(
        # Explicit sums instead of a matrix product: the same bits on every machine.
        sum(sum(down[:, i : i + 1] * grid[i, j, axis] for i in range(points)) * across[:, j] for j in range(points))
        for axis in (0, 1)
    )


@functools.lru_cache(maxsize=32)
def _bicubic(points: int, length: int, margin: int) -> np.ndarray:
    """Returns weights [length + 2 margin, points] that interpolate `points` values spread over an output of `length`.

    Keys' cubic with a = -1/2; beyond the first and last point the nearest value is repeated.
    """
    at = (np.arange(-margin, length + margin) + 0.5) / length * (points - 1)
    at = np.clip(at, 0, points - 1)
    base = np.minimum(np.floor(at), points - 2).astype(int)
    t = at - base
    weights = np.zeros((len(at), points))
    cubic = [
        ((-t + 2) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((-3 * t + 4) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    ]
    for k, w in enumerate(cubic):
        np.add.at(weights, (np.arange(len(at)), np.clip(base + k - 1, 0, points - 1)), w)
    return weights.astype(np.float32)
