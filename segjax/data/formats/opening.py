"""Opens image files whatever their format, and turns their pixels upright."""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import numpy as np

from segjax.checks import Key, UserError
from segjax.data.formats import numpy_files, pillow_files, tiff_files
from segjax.data.formats.picture import CorruptImage, File, Picture


class Reading(NamedTuple):
    """What is made of a file's own words about its pixels: the keys of the section `reading`."""

    orientation: Annotated[
        str,
        Key(
            "upright: as people see pictures, by their EXIF orientation; stored: as they lie in the file",
            ("upright", "stored"),
        ),
    ] = "upright"
    pages: Annotated[
        str,
        Key(
            "pages of TIFF, GIF and .npy files: samples; channels of one image; or only the first is read",
            ("samples", "channels", "first"),
        ),
    ] = "samples"
    bands: Annotated[tuple[int, ...], Key("bands to read from image files, counted from 0; (): all", "[0, inf)")] = ()
    transparent: Annotated[
        str,
        Key("pixels that are not opaque: stored (as if they were), or unlabelled", ("stored", "unlabelled")),
    ] = "stored"
    white_is_zero: Annotated[
        str,
        Key("masks that say that 0 is white: an error, ids as stored, or inverted", ("error", "stored", "inverted")),
    ] = "error"


DEFAULT = Reading()


@contextlib.contextmanager
def opened(file: File, name: str | None = None, reading: Reading = DEFAULT, mask: bool = False) -> Iterator[Picture]:
    """Opens an image file by its header, whatever its name.

    Args:
        file: path, or the encoded bytes.
        name: name of the file in messages; by default its path.
        reading: what pages are.
        mask: whether the file is a mask, whose pages are never channels.

    Yields:
        The picture; its pixels can be loaded until the end of the context.

    Raises:
        CorruptImage: the header is of no image.
        UserError: the file is missing.
    """
    name = name or name_of(file)
    joined = reading.pages == "channels" and not mask
    with _stream(file) as stream:
        head = stream.read(8)
        stream.seek(0)
        if head[:4] in tiff_files.MAGIC:
            picture = tiff_files.open_picture(stream, name, joined)
        elif head[:6] == numpy_files.MAGIC:
            picture = numpy_files.open_picture(stream, name, mask)
        else:
            picture = pillow_files.open_picture(stream, name)
        if reading.pages == "first":
            picture = picture._replace(pages=1)
        if np.dtype(picture.dtype).kind == "c":
            raise UserError(f"{name} holds complex numbers. Save their parts as bands.")
        yield _join(picture) if joined and picture.pages > 1 and picture.format != "TIFF" else picture


def _join(picture):
    """Makes all pages the bands of one."""

    def load(_):
        pages = [picture.load(number) for number in range(picture.pages)]
        return np.concatenate([values for values, _, _ in pages], -1), None, None

    return picture._replace(pages=1, bands=picture.pages * picture.bands, model="bands", load=load)


def name_of(file):
    """Returns the name of a file in messages."""
    return "image" if isinstance(file, bytes) else os.fspath(file)


def _stream(file):
    if isinstance(file, bytes):
        return io.BytesIO(file)
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # reading a pipe would wait for ever
            raise UserError(f"{file}: cannot be read (it is a folder, a pipe or a device).")
        return open(file, "rb")
    except OSError as error:
        raise UserError(f"{name_of(file)}: cannot be read ({error.strerror}).") from error


def load_page(picture, page):
    """Decodes a page, as `Picture.load` does; raises a CorruptImage that names the file on damage."""
    if page is None and picture.pages > 1:
        raise UserError(
            f"{picture.name} holds {picture.pages} pages: save each as a file of its own, or set reading.pages to "
            "'channels' or 'first'."
        )
    if (page or 0) >= picture.pages:
        raise UserError(f"{picture.name} holds {picture.pages} pages, so there is no page {page}, counted from 0.")
    try:
        return picture.load(page or 0)
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(f"{picture.name}: {error}. Save it in another encoding.") from error
    except Exception as error:  # decoders raise nearly every built-in error on invalid bytes
        raise CorruptImage(f"{picture.name}: damaged or truncated ({error}). Fix or remove it.") from error


def orientation_of(picture, reading, size):
    """EXIF orientation to undo; a stated size decides if only one of the readings has it."""
    tag = picture.orientation if 1 <= picture.orientation <= 8 else 1
    if size is not None and tag > 4 and picture.size[0] != picture.size[1]:
        if size == picture.size:
            return 1
        if size == picture.size[::-1]:
            return tag
    return tag if reading.orientation == "upright" else 1


def turn(values, orientation):
    """Turns stored pixels [y, x, ...] upright, as in table 6 of the EXIF standard (tag Orientation)."""
    if values is None or orientation == 1:
        return values
    if orientation > 4:
        values = values.swapaxes(0, 1)
    down = orientation in (3, 4, 7, 8)
    right = orientation in (2, 3, 6, 7)
    return values[:: -1 if down else 1, :: -1 if right else 1]
