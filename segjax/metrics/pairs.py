"""Counts the pairs of values in two maps in one pass; later steps work on a few hundred counts, not on pixels."""

import numpy as np
from jaxtyping import Int64, Integer

from segjax.checks import UserError
from segjax.rle import runs

_TABLE = 2**20  # maximum range of values for the lookup table: enough for 1000 classes with 1000 objects each


def check_maps(a: np.ndarray, b: np.ndarray) -> None:
    """Checks that two maps can be compared pixel by pixel.

    Args:
        a: one map [y, x].
        b: another one.

    Raises:
        UserError: their sizes differ, or one does not hold integers.

    Example:
        >>> check_maps(np.zeros((4, 6), np.int32), np.zeros((4, 6), np.uint8))
    """
    if a.shape != b.shape:
        raise UserError(f"Sizes differ, {a.shape} and {b.shape} (rows, columns): resize one with nearest neighbour.")
    for kind in (a.dtype, b.dtype):
        if not np.issubdtype(kind, np.integer):
            raise UserError(f"A map of classes or objects must hold integers, not {kind}: use astype(np.int32).")


def compact(values: Integer[np.ndarray, "n"]) -> tuple[Int64[np.ndarray, "found"], Int64[np.ndarray, "n"]]:
    """Finds the unique values, as `np.unique` with its inverse, but without a sort if their range is small.

    Args:
        values: integers.

    Returns:
        The unique values, in order, and the index of each element among them.

    Example:
        >>> [x.tolist() for x in compact(np.array([7000, -1, 7000, 3]))]
        [[-1, 3, 7000], [2, 0, 2, 1]]
    """
    values = values.astype(np.int64)
    low, high = values.min(initial=0), values.max(initial=0)
    if high - low >= _TABLE:
        return np.unique(values, return_inverse=True)
    seen = np.zeros(high - low + 1, bool)
    seen[values - low] = True
    found = np.flatnonzero(seen)
    place = np.zeros(len(seen), np.int64)
    place[found] = np.arange(len(found))
    return found + low, place[values - low]


def count_pairs(
    a: np.ndarray, b: np.ndarray
) -> tuple[Int64[np.ndarray, "pairs"], Int64[np.ndarray, "pairs"], Int64[np.ndarray, "pairs"]]:
    """Counts the pixels of each pair of values that two maps have at the same position.

    Args:
        a: integers [y, x].
        b: integers [y, x].

    Returns:
        Value in `a`, value in `b` and number of pixels of each pair that occurs, in order.

    Raises:
        UserError: sizes differ, or a map does not hold integers.

    Example:
        >>> [x.tolist() for x in count_pairs(np.array([[1, 1, 2, 1]]), np.array([[5, 7, 7, 5]]))]
        [[1, 1, 2], [5, 7, 7], [2, 1, 1]]
    """
    check_maps(a, b)
    starts, lengths = runs(a, b)
    (a_values, a), (b_values, b) = (compact(array.ravel()[starts]) for array in (a, b))
    codes, pair = compact(a * len(b_values) + b)
    a, b = codes // max(len(b_values), 1), codes % max(len(b_values), 1)
    return a_values[a], b_values[b], np.bincount(pair, lengths, len(codes)).astype(np.int64)
