"""Strict decoding of image and mask files: what is in the file, or an error that names it.

Pillow decodes everything. It uses the accurate integer DCT for JPEG, keeps the indices of palette images, and is
needed nowhere else to agree with a second decoder.

Pixels come as they are stored. The EXIF orientation of JPEG, PNG and WebP files is not applied, because masks are
drawn on stored pixels, as TensorFlow and Pillow read them. (Pillow does apply the orientation tag of TIFF files.)
Of a file with many frames or pages the first is read.
"""

import contextlib
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32, Shaped
from PIL import Image, UnidentifiedImageError

from segjax.checks import UserError
from segjax.data.coco import rgb_to_id
from segjax.spec import Colour

SAMPLE = 64  # files of a set that are looked at before a run
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

File = str | os.PathLike | bytes


class CorruptImage(UserError):
    """A file that holds no image, or only part of one."""


class SizeMismatch(UserError):
    """An image and its mask that differ in size."""


def image(file: File, channels: int, dtype: str = "uint8", name: str | None = None) -> Shaped[np.ndarray, "y x c"]:
    """Reads an image as grey or RGB, in the depth that it is stored in; palettes become colours and alpha is dropped.

    Args:
        file: path, or the encoded bytes.
        channels: 1 for grey (ITU-R 601-2 luma), 3 for RGB; grey files of more than 8 bits are repeated.
        dtype: what the data set's images are stored in, see `dtype_of`.
        name: what to call the file in messages; its path when left out.

    Returns:
        Pixels of that dtype [y, x, channels] in stored units; NaN becomes the file's least value.

    Raises:
        CorruptImage: the file cannot be decoded.
        UserError: the file is missing, or of another depth.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (4, 3), (9, 8, 7)).save(buffer, "PNG")
        >>> image(buffer.getvalue(), channels=3).shape
        (3, 4, 3)
    """
    if channels not in (1, 3):
        raise UserError(
            f"Image files are read with 1 (grey) or 3 (RGB) channels, not {channels}: give preprocess.mean and "
            "preprocess.std as many values, or use the source arrays."
        )
    picture, _, name = _decode(file, name)
    if (found := _dtype(picture)) != dtype:
        raise UserError(
            f"{name} holds {found} pixels, but other images of the data set {dtype}: save all of them in one depth."
        )
    if found == "uint8":
        colour = picture.convert("RGB")
        return np.array(colour.convert("L"))[..., None] if channels == 1 else np.array(colour)
    values = np.asarray(picture).astype(dtype)
    if np.isnan(values).any():
        values = np.nan_to_num(values, nan=np.nanmin(values))
    return np.repeat(values[..., None], channels, axis=2)


def dtype_of(file: File, name: str | None = None) -> str:
    """Reads from the head of an image file what its pixels are stored in.

    Args:
        file: path, or the encoded bytes.
        name: what to call the file in messages; its path when left out.

    Returns:
        "uint8", "uint16" for grey of 16 bits, or "float32" for grey of 32 bits.

    Raises:
        CorruptImage: the file does not start like an image.
        UserError: the file is missing.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("I;16", (4, 3)).save(buffer, "PNG")
        >>> dtype_of(buffer.getvalue())
        'uint16'
    """
    with _stream(file) as stream:
        return _dtype(_open(stream, name or _name(file)))


def common_dtype(paths: Sequence[File]) -> str:
    """Reads what the images of a data set are stored in, from a sample of files spread over it.

    Args:
        paths: image files.

    Returns:
        As `dtype_of`.

    Raises:
        UserError: two files of the sample differ.
    """
    found = {}
    for path in paths[:: len(paths) // SAMPLE + 1]:
        with contextlib.suppress(CorruptImage):  # met again, and counted, when it is read
            found.setdefault(dtype_of(path), path)
    if len(found) > 1:
        (a, first), (b, second), *_ = found.items()
        raise UserError(
            f"{_name(first)} holds {a} pixels and {_name(second)} {b}: save all images of the data set in one depth."
        )
    return next(iter(found), "uint8")


def mask(file: File, colours: Mapping[Colour, int] | None = None, name: str | None = None) -> Int32[np.ndarray, "y x"]:
    """Reads a map of class ids: the stored values, or what a table says of the colours.

    Without a table the stored numbers are the ids: grey values of 8, 16 or 32 bits, the indices (never the colours)
    of palette images, and 0 or 1 of 1-bit images. Colour images whose three channels are equal count as grey, and so
    do GIF files with a palette of greys, since GIF stores grey in no other way. Grey files of 2 or 4 bits hold what
    PNG says they do: values spread over 0..255.
    With a table every file is read as colours, so that it does not matter whether a tool saved RGB, grey or a palette.

    Args:
        file: path, or the encoded bytes.
        colours: id of each (red, green, blue); None for files that hold ids.
        name: what to call the file in messages; its path when left out.

    Returns:
        Ids, int32 [y, x].

    Raises:
        CorruptImage: the file cannot be decoded.
        UserError: the file is missing, is compressed with loss, or holds floats, unknown colours, or colours where ids
            are expected.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (2, 1), (0, 0, 255)).save(buffer, "PNG")
        >>> mask(buffer.getvalue(), colours={(0, 0, 255): 4})
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


def objects(file: File, colours: bool = False, name: str | None = None) -> Int32[np.ndarray, "y x"]:
    """Reads a map of the numbers of objects: the stored ones, as `mask` does, or `R + 256 G + 65536 B` of colours.

    Args:
        file: path, or the encoded bytes.
        colours: read grey and palette files as colours too, for formats whose numbers are colours always.
        name: what to call the file in messages; its path when left out.

    Returns:
        Numbers, int32 [y, x].

    Raises:
        CorruptImage: the file cannot be decoded.
        UserError: the file is missing, is compressed with loss, or holds floats.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (2, 1), (4, 1, 0)).save(buffer, "PNG")
        >>> objects(buffer.getvalue())
        array([[260, 260]], dtype=int32)
    """
    picture, _ = _exact(file, name, colours)
    stored = None if colours else _stored(picture)
    return rgb_to_id(np.asarray(picture.convert("RGB"))) if stored is None else stored


def size(file: File, name: str | None = None) -> tuple[int, int]:
    """Reads the size of an image from the head of its file.

    Args:
        file: path, or the encoded bytes.
        name: what to call the file in messages; its path when left out.

    Returns:
        (rows, columns), in pixels.

    Raises:
        CorruptImage: the file does not start like an image.
        UserError: the file is missing.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("L", (4, 3)).save(buffer, "PNG")
        >>> size(buffer.getvalue())
        (3, 4)
    """
    with _stream(file) as stream:
        columns, rows = _open(stream, name or _name(file)).size
    return rows, columns


def check_sizes(image: tuple[int, int], mask: tuple[int, int], image_name: str, mask_name: str) -> None:
    """Raises a SizeMismatch unless an image and its mask have one size.

    Args:
        image: rows and columns of the image.
        mask: of the mask.
        image_name: what to call the image in the message.
        mask_name: and the mask.

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
        raise CorruptImage(f"{name}: no image that starts like {', '.join(FORMATS)}. Fix or remove it.") from error
    except Exception as error:  # Pillow's decoders raise nearly every built-in error when bytes make no sense
        raise CorruptImage(f"{name}: not a readable image ({error}). Fix or remove it.") from error


def _decode(file, name):
    """Decodes a file; returns the picture, whether it was compressed with loss, and its name."""
    name = name or _name(file)
    with _stream(file) as stream:
        content = stream.read()
    picture = _open(io.BytesIO(content), name)
    if len(picture.getbands()) > 1 and any(";16" in str(tile[3]) for tile in picture.tile):
        raise UserError(f"{name}: Pillow reads 16-bit colour as 8 bits. Save it with 8 bits a channel, or as grey.")
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
    """Decodes a file of ids, or of colours that stand for them; returns the picture and its name."""
    picture, lossy, name = _decode(file, name)
    if lossy:
        raise UserError(f"{name}: lossy {picture.format} compression changes class ids. Save masks as PNG.")
    if picture.mode == "F" or (_deep(picture) and colours):
        raise UserError(f"{name} holds {picture.mode} values, neither class ids nor 8-bit colours. Save masks as PNG.")
    return picture, name


def _stored(picture):
    """The numbers that a picture holds; None where it holds colours."""
    if picture.format == "GIF" and picture.mode == "P" and _grey(np.reshape(picture.getpalette("RGB"), (-1, 3))):
        picture = picture.convert("L")
    if picture.mode in ("1", "L", "P", "LA", "PA") or _deep(picture):
        return np.atleast_3d(picture)[..., 0].astype(np.int32)
    return None


def _deep(picture):
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def _dtype(picture):
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format != "TIFF"):
        return "uint16"  # what PNG and PGM files of 16 bits become
    return "float32" if picture.mode in ("I", "F") else "uint8"


def _grey(rgb):
    return (rgb == rgb[..., :1]).all()


def _codes(rgb):
    red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _listing(codes):
    """The most frequent colours and their pixel counts, in words."""
    values, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    words = [f"{(int(values[i]) >> 16, int(values[i]) >> 8 & 255, int(values[i]) & 255)}: {counts[i]}" for i in order]
    return ", ".join(words[:4]) + (f" pixels, and {len(words) - 4} more" if len(words) > 4 else " pixels")


def _from_colours(rgb, colours, name):
    known = np.array([[r << 16 | g << 8 | b, index] for (r, g, b), index in colours.items()], np.int32)
    known = known[np.argsort(known[:, 0])]
    codes = _codes(rgb)
    place = np.searchsorted(known[:, 0], codes).clip(max=len(known) - 1)
    strange = known[place, 0] != codes
    if strange.any():
        raise UserError(
            f"{name} holds colours that source.colours does not name: {_listing(codes[strange])}. "
            "Add them to a class or to 'ignore'."
        )
    return known[place, 1]
