"""Strict decoding of image and mask files: either the stored pixels, or an error that names the file.

Pillow decodes everything: it uses the accurate integer DCT for JPEG and keeps the indices of palette images, and no
second decoder has to agree with it.

Pixels are returned as stored. The EXIF orientation of JPEG, PNG and WebP files is not applied, because masks are
drawn on stored pixels, as TensorFlow and Pillow read them. (Pillow does apply the orientation tag of TIFF files.)
Only the first frame or page of a file is read.
"""

import contextlib
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32, Shaped
from PIL import Image, UnidentifiedImageError

from segjax.checks import UserError
from segjax.data.coco.read import rgb_to_id
from segjax.spec import Colour

SAMPLE = 64  # files of a data set that are checked before a run
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

File = str | os.PathLike | bytes


class CorruptImage(UserError):
    """A file that contains no image, or only part of one."""


class SizeMismatch(UserError):
    """An image and a mask of different sizes."""


def read_image(file: File, channels: int, dtype: str = "uint8", name: str | None = None) -> Shaped[np.ndarray, "y x c"]:
    """Reads an image as grey or RGB at its stored bit depth; palettes become colours and alpha is dropped.

    Args:
        file: path, or the encoded bytes.
        channels: 1 for grey (ITU-R 601-2 luma), 3 for RGB; grey files of more than 8 bits are repeated 3 times.
        dtype: dtype of the data set's images, see `read_dtype`.
        name: name of the file in messages; by default its path.

    Returns:
        Pixels of that dtype [y, x, channels] in stored units; NaN becomes the file's smallest value.

    Raises:
        CorruptImage: the file cannot be decoded.
        UserError: the file is missing, or has another bit depth.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (4, 3), (9, 8, 7)).save(buffer, "PNG")
        >>> read_image(buffer.getvalue(), channels=3).shape
        (3, 4, 3)
    """
    if channels not in (1, 3):
        raise UserError(
            f"Image files are read with 1 (grey) or 3 (RGB) channels, not {channels}: set preprocess.mean and "
            "preprocess.std to 1 or 3 values, or use the source 'arrays'."
        )
    picture, _, name = _decode(file, name)
    if (stored := _dtype(picture)) != dtype:
        raise UserError(
            f"{name} holds {stored} pixels, but other images of the data set {dtype}: save all with one bit depth."
        )
    if stored == "uint8":
        colour = picture.convert("RGB")
        return np.array(colour.convert("L"))[..., None] if channels == 1 else np.array(colour)
    values = np.asarray(picture).astype(dtype)
    if np.isnan(values).any():
        values = np.nan_to_num(values, nan=np.nanmin(values))
    return np.repeat(values[..., None], channels, axis=2)


def read_dtype(file: File, name: str | None = None) -> str:
    """Reads the pixel dtype from the header of an image file.

    Args:
        file: path, or the encoded bytes.
        name: name of the file in messages; by default its path.

    Returns:
        "uint8", "uint16" for 16-bit grey, or "float32" for 32-bit grey.

    Raises:
        CorruptImage: the file has no image header.
        UserError: the file is missing.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("I;16", (4, 3)).save(buffer, "PNG")
        >>> read_dtype(buffer.getvalue())
        'uint16'
    """
    with _stream(file) as stream:
        return _dtype(_open(stream, name or _name(file)))


def common_dtype(paths: Sequence[File]) -> str:
    """Reads the common dtype of a data set's images from files spread over it.

    Args:
        paths: image files.

    Returns:
        The dtype, as from `read_dtype`.

    Raises:
        UserError: two of these files differ.
    """
    dtypes = {}
    for path in paths[:: len(paths) // SAMPLE + 1]:
        with contextlib.suppress(CorruptImage):  # counted later, when it is read as a sample
            dtypes.setdefault(read_dtype(path), path)
    if len(dtypes) > 1:
        (a, first), (b, second), *_ = dtypes.items()
        raise UserError(f"{_name(first)} holds {a} pixels, but {_name(second)} {b}: save them all with one bit depth.")
    return next(iter(dtypes), "uint8")


def read_mask(
    file: File, colours: Mapping[Colour, int] | None = None, name: str | None = None
) -> Int32[np.ndarray, "y x"]:
    """Reads a map of class ids: the stored values, or those of colours in a table.

    Without a table, the stored values are the ids: grey values of 8, 16 or 32 bits, the indices (never the colours) of
    palette images, and 0 or 1 of 1-bit images. Colour images with three equal channels count as grey, and so do GIF
    files with a grey palette, since GIF has no other grey. Grey PNG files of 2 or 4 bits have values spread over
    0..255, as PNG defines them.
    With a table, every file is read as colours, so it does not matter whether a tool saved RGB, grey or a palette.

    Args:
        file: path, or the encoded bytes.
        colours: id of each (red, green, blue); None for files that hold ids.
        name: name of the file in messages; by default its path.

    Returns:
        Ids, int32 [y, x].

    Raises:
        CorruptImage: the file cannot be decoded.
        UserError: the file is missing, is lossily compressed, or holds floats, unknown colours, or colours where ids
            are expected.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (2, 1), (0, 0, 255)).save(buffer, "PNG")
        >>> read_mask(buffer.getvalue(), colours={(0, 0, 255): 4})
        array([[4, 4]], dtype=int32)
    """
    picture, name = _exact(file, name, colours is not None)
    if colours is not None:
        return _from_colours(np.asarray(picture.convert("RGB")), colours, name)
    stored = _stored(picture)
    if stored is not None:
        return stored
    rgb = np.asarray(picture.convert("RGB"))
    if _grey(rgb):
        return rgb[..., 0].astype(np.int32)
    raise UserError(
        f"{name} holds colours ({_listing(_codes(rgb))}), not class ids. "
        "Set source.colours to a table of class names and their (red, green, blue)."
    )


def read_instances(file: File, colours: bool = False, name: str | None = None) -> Int32[np.ndarray, "y x"]:
    """Reads a map of object ids: stored values as in `read_mask`, or `R + 256 G + 65536 B` of colours.

    Args:
        file: path, or the encoded bytes.
        colours: read grey and palette files as colours too, for formats whose ids are always colours.
        name: name of the file in messages; by default its path.

    Returns:
        Object ids, int32 [y, x].

    Raises:
        CorruptImage: the file cannot be decoded.
        UserError: the file is missing, is lossily compressed, or holds floats.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (2, 1), (4, 1, 0)).save(buffer, "PNG")
        >>> read_instances(buffer.getvalue())
        array([[260, 260]], dtype=int32)
    """
    picture, _ = _exact(file, name, colours)
    stored = None if colours else _stored(picture)
    return rgb_to_id(np.asarray(picture.convert("RGB"))) if stored is None else stored


def read_size(file: File, name: str | None = None) -> tuple[int, int]:
    """Reads the size of an image from the header of its file.

    Args:
        file: path, or the encoded bytes.
        name: name of the file in messages; by default its path.

    Returns:
        (rows, columns), in pixels.

    Raises:
        CorruptImage: the file has no image header.
        UserError: the file is missing.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("L", (4, 3)).save(buffer, "PNG")
        >>> read_size(buffer.getvalue())
        (3, 4)
    """
    with _stream(file) as stream:
        columns, rows = _open(stream, name or _name(file)).size
    return rows, columns


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


def _name(file):
    return "image" if isinstance(file, bytes) else os.fspath(file)


def _stream(file):
    try:
        return io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb")
    except OSError as error:
        raise UserError(f"{_name(file)}: cannot be read ({error.strerror}).") from error


def _open(stream, name):
    try:
        return Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise CorruptImage(f"{name}: its header is of none of {', '.join(FORMATS)}. Fix or remove it.") from error
    except Exception as error:  # Pillow's decoders raise nearly every built-in error on invalid bytes
        raise CorruptImage(f"{name}: not a readable image ({error}). Fix or remove it.") from error


def _decode(file, name):
    """Decodes a file; returns the picture, whether it is lossily compressed, and its name."""
    name = name or _name(file)
    with _stream(file) as stream:
        content = stream.read()
    picture = _open(io.BytesIO(content), name)
    if len(picture.getbands()) > 1 and any(";16" in str(tile[3]) for tile in picture.tile):
        raise UserError(f"{name}: Pillow reads 16-bit colour as 8 bits. Save it with 8 bits per channel, or as grey.")
    try:
        picture.load()
    except Exception as error:  # as in _open
        raise CorruptImage(f"{name}: damaged or truncated ({error}). Fix or remove it.") from error
    picture.info.pop("transparency", None)  # dropped with alpha; Pillow warns when it has to convert it
    lossy = (
        picture.format in ("JPEG", "MPO")
        or picture.info.get("compression") == "jpeg"
        or (picture.format == "WEBP" and b"VP8L" not in content)
    )
    return picture, lossy, name


def _exact(file, name, colours):
    """Decodes a file of ids, or of colours that encode them; returns the picture and its name."""
    picture, lossy, name = _decode(file, name)
    if lossy:
        raise UserError(f"{name}: lossy {picture.format} compression changes class ids. Save masks as PNG.")
    if picture.mode == "F" or (_deep(picture) and colours):
        raise UserError(f"{name} holds {picture.mode} values, neither class ids nor 8-bit colours. Save masks as PNG.")
    return picture, name


def _stored(picture):
    """Stored values of a picture; None if it stores colours."""
    if picture.format == "GIF" and picture.mode == "P" and _grey(np.reshape(picture.getpalette("RGB"), (-1, 3))):
        picture = picture.convert("L")
    if picture.mode in ("1", "L", "P", "LA", "PA") or _deep(picture):
        return np.atleast_3d(picture)[..., 0].astype(np.int32)
    return None


def _deep(picture):
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def _dtype(picture):
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format != "TIFF"):
        return "uint16"  # 16-bit PNG and PGM files
    return "float32" if picture.mode in ("I", "F") else "uint8"


def _grey(rgb):
    return (rgb == rgb[..., :1]).all()


def _codes(rgb):
    red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _listing(codes):
    """Formats the most frequent colours and their pixel counts."""
    values, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    words = [f"{(int(values[i]) >> 16, int(values[i]) >> 8 & 255, int(values[i]) & 255)}: {counts[i]}" for i in order]
    return ", ".join(words[:4]) + (f" pixels, and {len(words) - 4} more" if len(words) > 4 else " pixels")


def _from_colours(rgb, colours, name):
    known = np.array([[r << 16 | g << 8 | b, index] for (r, g, b), index in colours.items()], np.int32)
    known = known[np.argsort(known[:, 0])]
    codes = _codes(rgb)
    place = np.searchsorted(known[:, 0], codes).clip(max=len(known) - 1)
    unknown = known[place, 0] != codes
    if unknown.any():
        raise UserError(
            f"{name} holds colours that source.colours does not list: {_listing(codes[unknown])}. "
            "Add them to a class or to 'ignore'."
        )
    return known[place, 1]
