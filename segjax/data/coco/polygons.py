"""Polygons and run lengths of COCO's instance format: brought to one form, and bounded before any library sees them.

Nobody need trust an annotation file. pycocotools is C code that crashes on large coordinates, or takes all memory.
"""

import itertools
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.checks import UserError

# How far outside of its image a polygon may reach, as a fraction of the side: tools round points, and augment images.
OUTSIDE = 0.1
# Pixels of an image. pycocotools counts them, and five times a coordinate, in 32 bits.
MAX_PIXELS = 1 << 31
MAX_SIDE = 1 << 27
# Length of a polygon in pixels. pycocotools takes 100 bytes for each: 0.4 GB.
MAX_OUTLINE = 1 << 22


def check_size(rows: int, columns: int, where: str) -> None:
    """Raises a UserError if an image is stated to be larger than any that can be read.

    Example:
        >>> check_size(70000, 70000, "a.json: images[0]")
        Traceback (most recent call last):
        segjax.checks.UserError: a.json: images[0] is 70000 x 70000 pixels; an image can have at most 2^31.
    """
    if rows * columns > MAX_PIXELS or max(rows, columns) > MAX_SIDE:
        raise UserError(f"{where} is {rows} x {columns} pixels; an image can have at most 2^31.")


def one_form(segmentation: Any) -> Any:
    """Brings the polygons of an object to COCO's own form, without those that enclose nothing.

    Args:
        segmentation: as a tool wrote it: lists of x, y, x, y; or one such list; or lists of pairs.

    Returns:
        Lists of x, y, x, y, with 3 points or more each; anything else as it was, and [] for None.

    Example:
        >>> one_form([0, 0, 3, 0, 3, 3])
        [[0, 0, 3, 0, 3, 3]]
        >>> one_form([[0, 0, 3, 0, 3, 3], [1, 1, 2, 2]])
        [[0, 0, 3, 0, 3, 3]]
    """
    if segmentation is None:
        return []
    if not isinstance(segmentation, list) or not segmentation:
        return segmentation
    return [one for one in _flat(segmentation) if not _encloses_nothing(one)]


def lost(segmentation: Any) -> int:
    """Counts the polygons that `one_form` leaves out.

    Example:
        >>> lost([[0, 0, 3, 0, 3, 3], [1, 1, 2, 2]]), lost([[0, 0], [3, 0], [3, 3]])
        (1, 0)
    """
    listed = isinstance(segmentation, list) and bool(segmentation)
    return sum(map(_encloses_nothing, _flat(segmentation))) if listed else 0


def _flat(segmentation):
    if _is_number(segmentation[0]) or (len(segmentation) > 2 and _are_pairs(segmentation)):
        segmentation = [segmentation]
    return [list(itertools.chain(*one)) if _are_pairs(one) else one for one in segmentation]


def _encloses_nothing(polygon):
    return isinstance(polygon, list) and len(polygon) in (0, 2, 4) and all(map(_is_number, polygon))


def fault(segmentation: Any, size: tuple[int, int] | None) -> str:
    """Says what is wrong with the polygons or run lengths of an object, as far as can be told without drawing it.

    Args:
        segmentation: from `one_form`.
        size: rows and columns of the image; None if the file does not state them.

    Returns:
        The fault; "" if there is none.

    Example:
        >>> fault([[0, 0, 3, 0, 3, 1e9]], (4, 4))
        'a polygon reaches y = 1e+09, far outside of the image, which is 4 x 4 (rows x columns)'
    """
    if isinstance(segmentation, Mapping):
        return _fault_of_runs(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        return "an object needs polygons, and each of them 3 or more pairs x, y: [[x, y, ...], ...]"
    return next(filter(None, (_fault_of_polygon(polygon, size) for polygon in segmentation)), "")


def _fault_of_polygon(polygon, size):
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return "a polygon needs 3 or more pairs x, y: [[x, y, ...], ...]"
    try:
        if not all(map(_is_number, polygon)) or not math.isfinite(sum(polygon)):
            return "a coordinate is not a finite number"
    except (TypeError, OverflowError):
        return "a coordinate is not a finite number"
    for axis, values, side in zip("xy", (polygon[0::2], polygon[1::2]), (size or ())[::-1], strict=False):
        low, high, margin = min(values), max(values), 1 + OUTSIDE * side
        if low < -margin or high > side + margin:
            value = low if low < -margin else high
            return (
                f"a polygon reaches {axis} = {value:g}, far outside of the image, which is {size[0]} x {size[1]} (rows "
                "x columns)"
            )
    return ""


def _fault_of_runs(mask, size):
    stated, counts = mask.get("size"), mask.get("counts")
    if size is not None and stated != list(size):
        return f"its mask has the size {reprlib.repr(stated)}, its image {list(size)}"
    if not isinstance(stated, list) or len(stated) != 2 or not all(map(_is_number, stated)):
        return f"its mask has the size {reprlib.repr(stated)}, not [rows, columns]"
    if isinstance(counts, str | bytes):
        return "" if counts.isascii() else "its run lengths are truncated or contain an invalid character"
    if not isinstance(counts, list) or not all(_is_number(each) and each % 1 == 0 for each in counts):
        return f"its run lengths must be whole numbers or COCO's compressed text, not {reprlib.repr(counts)}"
    total = sum(counts)
    if total != stated[0] * stated[1] or min(counts, default=0) < 0:
        return f"its run lengths cover {total} pixels, its image has {stated[0] * stated[1]}"
    return ""


def check_outline(polygon: Any, where: str) -> None:
    """Raises a UserError if a polygon is longer than `MAX_OUTLINE`, which takes its bytes in memory to draw.

    Example:
        >>> check_outline([0, 0, 3, 0, 3, 3], "a.json: annotation 5")
    """
    points = np.reshape(np.asarray(polygon, np.float64), (-1, 2))
    length = np.abs(points - np.roll(points, 1, axis=0)).max(-1).sum()
    if length > MAX_OUTLINE:
        raise UserError(f"{where}: its outline is {length:.3g} pixels long; at most {MAX_OUTLINE} can be drawn.")


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_pairs(value):
    return isinstance(value, list) and all(
        isinstance(one, list) and len(one) == 2 and all(map(_is_number, one)) for one in value
    )
