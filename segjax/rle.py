"""Runs of equal values in maps, and COCO's run-length masks: encodes all objects in one pass, decodes single masks."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Integer

from segjax.checks import UserError


def coco_tools() -> ModuleType:
    """Imports `pycocotools` with its modules `mask`, `coco` and `cocoeval`.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        import pycocotools
        import pycocotools.coco
        import pycocotools.cocoeval
        import pycocotools.mask
    except ImportError as error:
        raise UserError(
            f'COCO\'s masks, polygons and metrics need pycocotools. Run `pip install "segjax[coco]"` ({error}).'
        ) from error
    return pycocotools


def runs(
    a: Integer[np.ndarray, "*shape"], b: Integer[np.ndarray, "*shape"]
) -> tuple[Int64[np.ndarray, "runs"], Int64[np.ndarray, "runs"]]:
    """Splits two maps, in row-major order, into runs along which neither changes.

    Segment maps change rarely, so counting on runs costs next to nothing.

    Args:
        a: a map.
        b: another of the same shape.

    Returns:
        Start of each run in the raveled maps, and its length in pixels.

    Example:
        >>> [x.tolist() for x in runs(np.array([[1, 1], [1, 2]]), np.array([[5, 7], [7, 7]]))]
        [[0, 1, 3], [1, 2, 1]]
    """
    a, b = a.ravel(), b.ravel()
    change = np.ones(a.size, bool)
    change[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    starts = np.flatnonzero(change)
    return starts, np.diff(starts, append=a.size)


def encode_masks(
    label: Integer[np.ndarray, "y x"], instance: Integer[np.ndarray, "y x"], things: Sequence[int]
) -> tuple[list[dict[str, Any]], Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """Encodes the masks of all objects of an image in one pass.

    An object is all pixels with one number and one thing class; number 0 of a thing class is a crowd.

    Args:
        label: class of each pixel.
        instance: number of the object of each pixel.
        things: indices of the thing classes.

    Returns:
        Mask of each object, `{"size": [y, x], "counts": bytes}`, and its class and number, sorted by number and class.

    Raises:
        UserError: there are objects, but pycocotools is not installed.

    Example:
        >>> encode_masks(np.array([[0, 1, 1]]), np.array([[0, 2, 2]]), things=(1,))
        ([{'size': [1, 3], 'counts': b'12'}], array([1]), array([2]))
    """
    starts, lengths = runs(label.T, instance.T)  # COCO's masks are column-major
    classes, numbers = (array.T.ravel()[starts].astype(np.int64) for array in (label, instance))
    order = np.lexsort((starts, classes, numbers))
    order = order[np.isin(classes[order], things)]
    starts, lengths, classes, numbers = (array[order] for array in (starts, lengths, classes, numbers))
    new = np.ones(len(starts), bool)
    new[1:] = (np.diff(numbers) != 0) | (np.diff(classes) != 0)
    ends = starts + lengths
    gaps = np.where(new, starts, starts - np.roll(ends, 1))
    counts = np.stack([gaps, lengths], axis=-1).ravel()
    first = np.flatnonzero(new)
    parts = zip(first, [*first[1:], len(starts)], strict=False)
    lengths = (np.append(counts[2 * a : 2 * b], label.size - ends[b - 1]) for a, b in parts)
    # A mask that includes the last pixel ends with an inner run, as in pycocotools.
    masks = [{"size": list(label.shape), "counts": np.trim_zeros(one, "b")} for one in lengths]
    packed = coco_tools().mask.frPyObjects(masks, *label.shape) if masks else []
    return packed, classes[first], numbers[first]


def decode_mask(counts: Any, shape: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """Decodes a mask; unlike pycocotools, never returns uninitialised memory if the lengths are too few.

    Args:
        counts: lengths of the runs, alternately outside and inside, column-major; or COCO's compressed form.
        shape: rows and columns.

    Returns:
        The object's pixels.

    Raises:
        TypeError, ValueError: the lengths are invalid, or do not fill the shape; the caller names the file.

    Example:
        >>> decode_mask([1, 2, 1], (2, 2)).astype(int)
        array([[0, 1],
               [1, 0]])
        >>> bool((decode_mask(b"121", (2, 2)) == decode_mask([1, 2, 1], (2, 2))).all())
        True
    """
    rows, columns = shape
    lengths = _unpack(counts) if isinstance(counts, str | bytes) else np.array(counts, np.int64)
    pixels = rows * columns
    # Each is bounded before they are summed: a sum of 64 bits may overflow to the right number.
    if lengths.ndim != 1 or lengths.min(initial=0) < 0 or lengths.max(initial=0) > pixels or lengths.sum() != pixels:
        raise ValueError(f"its run lengths cover {sum(lengths.ravel().tolist())} pixels, its image has {pixels}")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(columns, rows).T


# Characters of a number, 5 bits each: lengths have 32 bits, and sums of these numbers then fit into 64.
_LONGEST = 7


def _unpack(text):
    """Decodes COCO's compressed run lengths: differences from two lengths before, 5 bits per character, low bits first.

    Bit 5 of a character is set if its number continues; bit 4 of the last character is its sign.
    """
    codes = np.frombuffer(text if isinstance(text, bytes) else bytes(text, "utf-8"), np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0
    if not len(codes) or not last[-1] or codes.min() < 0 or codes.max() > 63:
        raise ValueError("its run lengths are truncated or contain an invalid character")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    length = ends - starts + 1
    if length.max() > _LONGEST:
        raise ValueError("its run lengths contain a number of more than 35 bits")
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, length))
    values = np.add.reduceat((codes & 31) << shift, starts) - np.where(codes[ends] & 16, 1 << 5 * length, 0)
    for chain in (values[1::2], values[2::2]):
        np.cumsum(chain, out=chain)
    return values
