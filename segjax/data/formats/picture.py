"""What an image file holds: facts from its header, and its pixels as stored."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from segjax.checks import UserError

# Largest page that is decoded, in bytes: beyond it, a header is more likely wrong or hostile than an image trainable.
MAX_BYTES = 1 << 32

File = str | os.PathLike | bytes


class CorruptImage(UserError):
    """A file that contains no image, or only part of one."""


class Picture(NamedTuple):
    """An open image file.

    Attributes:
        name: its name in messages.
        format: such as "PNG".
        size: rows and columns as stored.
        dtype: numpy dtype of the stored values.
        model: what the bands are: "grey", "palette" (indices), "rgb", "bands" (anything else), or the name of a colour
            model that is not read, such as "LAB".
        bands: number of bands, without alpha.
        load: page number -> values [y, x, bands] as stored; alpha [y, x], None without; what a mask inside the file
            includes [y, x], None without. Raises any exception on damage.
        pages: number of pages or frames.
        orientation: EXIF orientation, 1 (upright) .. 8.
        white: stored value of white if it is less than the dtype's largest (files of 1, 2 and 4 bits); 0 if not.
        inverted: whether 0 is white.
        palette: uint8 [n, 3], colour of each index; None without a palette.
        lossy: whether values were changed by compression.
        nodata: value of pixels without data; None if the file declares none.
    """

    name: str
    format: str
    size: tuple[int, int]
    dtype: str
    model: str
    bands: int
    load: Callable[[int], tuple[Any, Any, Any]]
    pages: int = 1
    orientation: int = 1
    white: int = 0
    inverted: bool = False
    palette: Any = None
    lossy: bool = False
    nodata: float | None = None
