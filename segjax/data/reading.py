"""Strict reading of image and mask files: the stored pixels in their right meaning, or an error that names the file.

What a file says about its pixels is applied or refused, never dropped without a word: orientation, pages, palettes,
transparency, the meaning of 0, the colour model, the sign and width of numbers. docs/your_data.md has the table.
Pillow reads most formats: it uses the accurate integer DCT for JPEG and keeps the indices of palette images. tifffile
reads TIFF files, and numpy .npy files.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Shaped

from segjax.checks import UserError, spread
from segjax.data.coco.read import rgb_to_id
from segjax.data.formats.opening import DEFAULT, Reading, load_page, name_of, opened, orientation_of, turn
from segjax.data.formats.picture import CorruptImage, File
from segjax.data.formats.values import (
    colour_codes,
    ids_of_colours,
    is_grey,
    list_colours,
    mask_values,
    not_opaque,
    to_channels,
    to_colours,
    to_float32,
    to_ids,
    to_levels,
    union,
    without_data,
)
from segjax.data.ids import Mask
from segjax.spec import Colour


class SizeMismatch(UserError):
    """An image and a mask of different sizes."""


def read_image(
    file: File,
    channels: int,
    dtype: str = "uint8",
    name: str | None = None,
    *,
    reading: Reading = DEFAULT,
    page: int | None = None,
    size: tuple[int, int] | None = None,
    stated_by: str = "",
) -> tuple[Shaped[np.ndarray, "y x c"], Bool[np.ndarray, "y x"] | None]:
    """Reads an image at its stored bit depth.

    Args:
        file: path, or the encoded bytes.
        channels: as many bands as the file has; 3 also for grey files, which are repeated, and 1 also for RGB files,
            whose ITU-R 601-2 luma is taken; palettes, CMYK and YCbCr become RGB. A band of opacity counts if it is
            needed for this number.
        dtype: dtype of the data set's images, see `read_dtype`.
        name: name of the file in messages; by default its path.
        reading: what is made of orientation, pages and so on.
        page: number of the page; None if the file must hold only one.
        size: (rows, columns) that the annotation states: they decide whether the image is turned upright.
        stated_by: name of the annotation in messages.

    Returns:
        Pixels of that dtype [y, x, channels] in stored units, and the pixels without data, bool [y, x], None if there
        are none: those that a mask inside the file excludes, those with the declared nodata value or NaN in all bands
        and, with `reading.transparent="unlabelled"`, those that are not opaque. In float images they and other NaN
        become the smallest value of the band.

    Raises:
        CorruptImage: the file cannot be decoded.
        SizeMismatch: the image does not have the stated size.
        UserError: the file is missing, or has other bands, another bit depth or several pages.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (4, 3), (9, 8, 7)).save(buffer, "PNG")
        >>> pixels, empty = read_image(buffer.getvalue(), channels=3)
        >>> pixels.shape, empty
        ((3, 4, 3), None)
    """
    with opened(file, name, reading) as picture:
        if (stored := _image_dtype(picture)) != dtype:
            raise UserError(
                f"{picture.name} holds {stored} pixels, but other images of the data set {dtype}: save all with one "
                "bit depth."
            )
        orientation = orientation_of(picture, reading, size)
        values, alpha, valid = (turn(each, orientation) for each in load_page(picture, page))
        values = to_levels(values, picture)
        nodata = without_data(values, picture.nodata)
        if dtype == "float32":
            values = to_float32(values, picture, nodata)
        pixels, has_alpha = to_channels(values, alpha, picture, channels, reading)
        clear = None if has_alpha or alpha is None else not_opaque(alpha, picture.name, reading)
        empty = union(None if valid is None else valid == 0, None if nodata is None else nodata.all(-1), clear)
        if size is not None:
            check_sizes(pixels.shape[:2], size, picture.name, stated_by)
    return np.require(pixels, dtype, "CW"), empty


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
        dtype: "uint8" for up to 8 bits, "uint16", or "float32" for every other number.
        size: rows and columns of an image, upright unless `reading.orientation="stored"`.
        pages: samples in the file: its pages, or 1 unless `reading.pages="samples"`.
    """

    dtype: str
    size: tuple[int, int]
    pages: int


def read_header(
    file: File,
    name: str | None = None,
    *,
    reading: Reading = DEFAULT,
    size: tuple[int, int] | None = None,
    mask: bool = False,
) -> Header:
    """Reads the header of an image file.

    Args:
        file: path, or the encoded bytes.
        name: name of the file in messages; by default its path.
        reading: what pages are, and whether pictures are turned upright.
        size: as for `read_image`.
        mask: whether the file is a mask, whose pages are never channels.

    Returns:
        The header.

    Raises:
        CorruptImage: the file has no image header.
        UserError: the file is missing, or its pages differ.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> buffer = io.BytesIO()
        >>> Image.new("I;16", (4, 3)).save(buffer, "PNG")
        >>> read_header(buffer.getvalue())
        Header(dtype='uint16', size=(3, 4), pages=1)
    """
    with opened(file, name, reading, mask) as picture:
        rows, columns = picture.size
        turned = orientation_of(picture, reading, size) > 4
        return Header(_image_dtype(picture), (columns, rows) if turned else (rows, columns), picture.pages)


def read_dtype(file: File, name: str | None = None) -> str:
    """Reads the dtype of a file's images, see `read_header`."""
    return read_header(file, name).dtype


def read_mask(
    file: File,
    colours: Mapping[Colour, int] | None = None,
    name: str | None = None,
    *,
    reading: Reading = DEFAULT,
    page: int | None = None,
    threshold: int | None = None,
) -> Mask:
    """Reads a map of class ids: the stored values, or those of colours in a table.

    Without a table, the stored values are the ids: whole numbers of any width and sign, the indices (never the colours)
    of palette images, and 0 or 1 of 1-bit images. Colour images with three equal channels count as grey, and so do GIF
    files with a grey palette, since GIF has no other grey.
    With a table, every file is read as colours, so it does not matter whether a tool saved RGB, grey or a palette.

    Args:
        file: path, or the encoded bytes.
        colours: id of each (red, green, blue); None for files that hold ids.
        name: name of the file in messages; by default its path.
        reading: what is made of orientation, transparency and so on.
        page: number of the page; None if the file must hold only one.
        threshold: ids are 1 where the grey value is at least this, 0 elsewhere; also for lossy files.

    Returns:
        The ids.

    Raises:
        CorruptImage: the file cannot be decoded.
        UserError: the file is missing, is lossily compressed, or holds fractions, unknown colours, or colours where ids
            are expected.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (2, 1), (0, 0, 255)).save(buffer, "PNG")
        >>> read_mask(buffer.getvalue(), colours={(0, 0, 255): 4}).ids
        array([[4, 4]], dtype=int32)
    """
    with opened(file, name, reading, mask=True) as picture:
        values, empty = mask_values(picture, page, reading, lossy=threshold is not None)
        name = picture.name
        if threshold is not None:
            grey = values[..., 0] if picture.bands == 1 else to_channels(values, None, picture, 1, DEFAULT)[0][..., 0]
            ids = (to_levels(grey, picture) >= threshold).astype(np.int32)
        elif colours is not None:
            ids = ids_of_colours(to_colours(values, picture), colours, name)
        elif picture.bands == 1 or (picture.model == "rgb" and is_grey(values)):
            ids = to_ids(values[..., 0], picture, reading)
        elif picture.model == "rgb":
            raise UserError(
                f"{name} holds colours ({list_colours(colour_codes(values))}), not class ids. "
                "Set source.colours to a table of class names and their (red, green, blue)."
            )
        else:
            raise UserError(f"{name} has {picture.bands} bands ({picture.model}), not one of class ids.")
        nodata = picture.nodata if picture.nodata is not None and float(picture.nodata).is_integer() else None
    return Mask(ids, empty, None if nodata is None or colours is not None else int(nodata))


def read_instances(
    file: File,
    colours: bool = False,
    name: str | None = None,
    *,
    reading: Reading = DEFAULT,
    page: int | None = None,
) -> Int32[np.ndarray, "y x"]:
    """Reads a map of object ids: stored values as in `read_mask`, or `R + 256 G + 65536 B` of colours.

    Args:
        file: path, or the encoded bytes.
        colours: read grey and palette files as colours too, for formats whose ids are always colours.
        name: name of the file in messages; by default its path.
        reading: what is made of orientation, transparency and so on.
        page: number of the page; None if the file must hold only one.

    Returns:
        Object ids, int32 [y, x]; 0 where the file marks pixels as without data.

    Raises:
        CorruptImage: the file cannot be decoded.
        UserError: the file is missing, is lossily compressed, or holds fractions.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (2, 1), (4, 1, 0)).save(buffer, "PNG")
        >>> read_instances(buffer.getvalue())
        array([[260, 260]], dtype=int32)
    """
    with opened(file, name, reading, mask=True) as picture:
        values, empty = mask_values(picture, page, reading)
        if picture.bands == 1 and not colours:
            ids = to_ids(values[..., 0], picture, reading)
        else:
            ids = rgb_to_id(to_colours(values, picture))
        if picture.nodata is not None and not colours:
            ids[ids == picture.nodata] = 0
    if empty is not None:
        ids[empty] = 0
    return ids


def read_size(
    file: File, name: str | None = None, *, reading: Reading = DEFAULT, size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Reads rows and columns of an image, see `read_header`; `size` is that of `read_image`."""
    return read_header(file, name, reading=reading, size=size).size


def count_pages(file: File, name: str | None = None, *, reading: Reading = DEFAULT, mask: bool = False) -> int:
    """Counts the samples in a file, see `read_header`; 1 for a file that cannot be read, which is found later."""
    try:
        return read_header(file, name, reading=reading, mask=mask).pages
    except UserError:
        return 1


def page_suffix(page: int, pages: int) -> str:
    """Returns what the name of a page has beside that of its file.

    Example:
        >>> page_suffix(0, 12), page_suffix(0, 1)
        ('_page01', '')
    """
    return f"_page{page + 1:0{len(str(pages))}}" if pages > 1 else ""


def count_all_pages(paths: Sequence[File], header: Callable[[File], Header] = read_header) -> list[int] | None:
    """Counts the pages of all files, in parallel, unless files spread over the data set have one page each.

    Opening a large data set then reads few headers; a file of several pages that was not seen is an error later.

    Args:
        paths: image files.
        header: reads the header of a file.

    Returns:
        Pages of each file, 1 of those that cannot be read; None if all have one.
    """

    def count(path):
        try:
            return header(path).pages
        except UserError:
            return 1

    if all(count(path) == 1 for path in spread(paths)):
        return None
    with ThreadPoolExecutor() as pool:
        return list(pool.map(count, paths))


def common_dtype(paths: Sequence[File], header: Callable[[File], Header] = read_header) -> str:
    """Reads the common dtype of a data set's images from files spread over it.

    Args:
        paths: image files.
        header: reads the header of a file.

    Returns:
        The dtype, as in `Header`.

    Raises:
        UserError: two of these files differ.
    """
    dtypes = {}
    for path in spread(paths):
        with contextlib.suppress(CorruptImage):  # counted later, when it is read as a sample
            dtypes.setdefault(header(path).dtype, path)
    if len(dtypes) > 1:
        (a, first), (b, second), *_ = dtypes.items()
        raise UserError(f"{name_of(first)} holds {a} pixels, but {name_of(second)} {b}: save all with one bit depth.")
    return next(iter(dtypes), "uint8")


def describe_file(file: File, name: str | None = None) -> str:
    """Says from the header how a mask is encoded: its colour model, depth and palette.

    Args:
        file: path, or the encoded bytes.
        name: name of the file in messages; by default its path.

    Returns:
        Text that is equal for masks of one encoding; that of a palette begins with that of a shorter one.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> buffer = io.BytesIO()
        >>> Image.new("L", (4, 3)).save(buffer, "PNG")
        >>> describe_file(buffer.getvalue())
        'grey uint8'
    """
    with opened(file, name, mask=True) as picture:
        if picture.palette is None:
            return f"{picture.model} {picture.dtype}"
        colours = picture.palette.tobytes().rstrip(b"\0")  # writers fill up with black
        return f"palette {colours.hex()}"


def read_orientation(file: File) -> str:
    """Says how an image must be turned to be upright; "" if it is, or has no header.

    Example:
        >>> read_orientation(b"no image")
        ''
    """
    try:
        with opened(file) as picture:
            return f"turned (EXIF orientation {picture.orientation})" if 1 < picture.orientation <= 8 else ""
    except UserError:
        return ""


def check_sizes(image: tuple[int, int], mask: tuple[int, int], image_name: str, mask_name: str) -> None:
    """Raises a SizeMismatch unless an image and its mask have the same size.

    Args:
        image: rows and columns of the image.
        mask: rows and columns of the mask.
        image_name: name of the image, for the message.
        mask_name: name of the mask, for the message.

    Raises:
        SizeMismatch: they differ.

    Example:
        >>> check_sizes((4, 6), (4, 6), "images/a.png", "masks/a.png")
    """
    if image != mask:
        raise SizeMismatch(
            f"{image_name} has {image[0]} x {image[1]} pixels (rows x columns) but its mask {mask_name} has "
            f"{mask[0]} x {mask[1]}."
        )


def _image_dtype(picture):
    return picture.dtype if picture.dtype in ("uint8", "uint16") else "float32"
