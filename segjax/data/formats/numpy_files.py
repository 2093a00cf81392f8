"""Opens .npy files: images [y, x], [y, x, c] or, as pages, [n, y, x, c]."""

import io
from typing import Any

import numpy as np

from segjax.checks import UserError
from segjax.data.formats.picture import CorruptImage, Picture

MAGIC = b"\x93NUMPY"


def open_picture(stream: Any, name: str, mask: bool = False) -> Picture:
    """Opens a file by its header.

    Args:
        stream: the open file.
        name: its name in messages.
        mask: whether the file holds [y, x] or, as pages, [n, y, x].

    Returns:
        The picture.

    Raises:
        CorruptImage: the file is no .npy file, or is damaged.
        UserError: an array of another rank, or of objects.

    Example:
        >>> buffer = io.BytesIO()
        >>> np.save(buffer, np.zeros((3, 4, 5), np.float32))
        >>> open_picture(buffer, "a.npy").bands, open_picture(buffer, "a.npy", mask=True).pages
        (5, 3)
    """
    try:
        stream.seek(0)
        values = np.load(stream, allow_pickle=False) if isinstance(stream, io.BytesIO) else _mapped(stream)
    except Exception as error:  # numpy raises several built-in errors on invalid bytes
        raise CorruptImage(f"{name}: not a readable .npy file ({error}). Fix or remove it.") from error
    if mask and values.ndim == 3 and values.shape[2] == 1 and values.shape[0] > 1:
        values = values[..., 0]
    ranks = (2, 3) if mask else (2, 3, 4)
    if values.ndim not in ranks or values.dtype.kind not in "buif":
        axes = "[y, x] or, as pages, [n, y, x]" if mask else "[y, x], [y, x, c] or, as pages, [n, y, x, c]"
        raise UserError(f"{name} holds {values.dtype} {list(values.shape)}, but must hold numbers {axes}.")
    pages = values if values.ndim == 2 + mask + (0 if mask else 2) else values[None]
    pages = pages.reshape(*pages.shape[:3], -1)
    dtype = "uint8" if values.dtype == bool else values.dtype.newbyteorder("=").name
    return Picture(
        name=name,
        format="NPY",
        size=pages.shape[1:3],
        dtype=dtype,
        model={1: "grey", 3: "rgb"}.get(pages.shape[3], "bands"),
        bands=pages.shape[3],
        load=lambda page: (np.array(pages[page], dtype), None, None),
        pages=len(pages),
    )


def _mapped(stream):
    """Maps the array of an open file into memory, so that one page is read at a time."""
    return np.load(stream.name, mmap_mode="r", allow_pickle=False)
