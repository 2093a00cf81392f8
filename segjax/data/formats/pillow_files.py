"""Opens the files that Pillow reads: BMP, GIF, JPEG, JPEG 2000, PBM, PGM, PNG, PPM and WebP."""

import re
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from segjax.checks import UserError
from segjax.data.formats.picture import CorruptImage, Picture

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "WEBP")
ORIENTATION = 0x0112  # EXIF tag

# Model and number of bands of Pillow's modes; CMYK and YCbCr become RGB.
MODES = {
    "1": ("grey", 1), "L": ("grey", 1), "LA": ("grey", 1), "P": ("palette", 1), "PA": ("palette", 1),
    "RGB": ("rgb", 3), "RGBA": ("rgb", 3), "CMYK": ("rgb", 3), "YCbCr": ("rgb", 3), "F": ("grey", 1), "I": ("grey", 1),
}  # fmt: skip


def open_picture(stream: Any, name: str) -> Picture:
    """Opens a file by its header.

    Args:
        stream: the open file.
        name: its name in messages.

    Returns:
        The picture.

    Raises:
        CorruptImage: the header is of no known format.

    Example:
        >>> import io
        >>> buffer = io.BytesIO()
        >>> Image.new("L", (4, 3)).save(buffer, "PNG")
        >>> open_picture(buffer, "a.png").size
        (3, 4)
    """
    try:
        return _picture(stream, name, Image.open(stream, formats=FORMATS))
    except UnidentifiedImageError as error:
        known = ", ".join((*FORMATS, "TIFF", "NPY"))
        raise CorruptImage(f"{name}: its header is of none of {known}. Fix or remove it.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: {error} Cut it into tiles.") from error
    except Exception as error:  # Pillow's decoders raise nearly every built-in error on invalid bytes
        raise CorruptImage(f"{name}: not a readable image ({error}). Fix or remove it.") from error


def _picture(stream, name, image):
    pages = getattr(image, "n_frames", 1) if image.format in ("GIF", "PNG", "WEBP") else 1
    raw = str(image.tile[0][3]) if image.tile else ""
    deep = _deep_colour(stream, image, raw)
    model, bands = MODES.get(image.mode, ("grey", 1) if image.mode.startswith("I;16") else (image.mode, 1))
    palette = np.reshape(image.getpalette("RGB"), (-1, 3)).astype(np.uint8) if model == "palette" else None
    if pages > 1:  # Pillow composes frames, in colour
        model, bands, palette = "rgb", 3, None
    elif image.format == "GIF" and palette is not None and (palette == palette[:, :1]).all():
        model, palette = "grey", None  # GIF has no other grey
    return Picture(
        name=name,
        format=image.format,
        size=(image.height, image.width),
        dtype="uint16" if deep else _dtype(image),
        model=model,
        bands=bands,
        load=lambda page: _load(stream, image, page, raw, deep, model),
        pages=pages,
        # The base class looks at what is before the pixels; PngImageFile's own decodes them first.
        orientation=Image.Image.getexif(image).get(ORIENTATION, 1),
        white=_white(image, raw),
        inverted=image.format == "PPM" and image.mode == "1",
        palette=palette,
        lossy=image.format in ("JPEG", "MPO") or (image.format == "WEBP" and b"VP8L" not in _content(stream)),
    )


def _content(stream):
    stream.seek(0)
    return stream.read()


def _dtype(image):
    if image.mode.startswith("I;16") or image.mode == "I":
        return "uint16"
    return "float32" if image.mode == "F" else "uint8"


def _white(image, raw):
    """Stored value of white in grey files of less than 8 bits."""
    if image.mode == "1":
        return 1
    if image.format == "PNG" and (small := re.match(r"L;(\d)$", raw)):
        return (1 << int(small[1])) - 1
    return _ppm_maximum(image) if image.mode == "L" else 0


def _ppm_maximum(image):
    """Value of white in a PGM or PPM file that Pillow would scale; 0 for others."""
    decoder, _, _, arguments = image.tile[0] if image.tile else ("", None, 0, ())
    return int(arguments[1]) if decoder in ("ppm", "ppm_plain") else 0


def _deep_colour(stream, image, raw):
    """Whether a file holds 16-bit colour, which Pillow would read as 8 bits."""
    if len(image.getbands()) < 2:
        return False
    if image.format == "JPEG2000":
        content = _content(stream)
        start = content.find(b"\xff\x4f\xff\x51")  # the codestream; byte 42 is the depth of its first band, less 1
        return 0 <= start < len(content) - 42 and content[start + 42] & 127 > 7
    return ";16" in raw or _ppm_maximum(image) > 255


def _load(stream, image, page, raw, deep, model):
    if deep:
        return _load_deep(stream, image)
    if image.mode in ("L", "I", "I;16") and _ppm_maximum(image):
        return _ppm_values(stream, image, 1), None, None
    if page:
        image.seek(page)
    image.load()
    alpha = _alpha(image)
    if model == "rgb":
        image.info.pop("transparency", None)  # Pillow warns when it has to convert it
        if image.mode == "RGBA":
            return np.asarray(image)[..., :3], alpha, None
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), alpha, None
    if image.mode == "P" and model == "grey":
        image.info.pop("transparency", None)
        image = image.convert("L")
    pixels = np.atleast_3d(np.asarray(image))[..., :1]
    if image.mode == "1":
        pixels = pixels.astype(np.uint8) ^ (image.format == "PPM")  # a PBM file stores 1 for black
    elif image.format == "PNG" and (white := _white(image, raw)):
        pixels = pixels // (255 // white)  # Pillow spreads the values over 0..255
    return pixels.astype(np.uint16) if image.mode == "I" else pixels, alpha, None


def _alpha(image):
    """Alpha of each pixel, from a band, a palette or a colour that stands for transparency; None if there is none."""
    if image.mode in ("LA", "PA", "RGBA"):
        return np.asarray(image)[..., -1]
    clear = image.info.get("transparency")
    if clear is None:
        return None
    values = np.asarray(image)
    if isinstance(clear, bytes):
        table = np.full(256, 255, np.uint8)
        table[: len(clear)] = np.frombuffer(clear, np.uint8)[:256]
        return table[values]
    match = values == np.asarray(clear)
    return np.where(match.all(-1) if match.ndim == 3 else match, 0, 255).astype(np.uint8)


def _ppm_values(stream, image, bands):
    """Stored values of a PGM or PPM file, which Pillow would scale to 8 or 16 bits."""
    _, _, offset, (_, maximum) = image.tile[0][:4]
    count = image.height * image.width * bands
    dtype = np.dtype(">u2" if maximum > 255 else "u1")
    stream.seek(0)
    if stream.read(2) in (b"P2", b"P3"):
        stream.seek(offset)
        values = np.array(re.sub(rb"#[^\n]*", b"", stream.read()).split()[:count], np.uint16)
    else:
        stream.seek(offset)
        values = np.frombuffer(stream.read(count * dtype.itemsize), dtype)
    return values.reshape(image.height, image.width, bands).astype(np.uint16 if maximum > 255 else np.uint8)


def _load_deep(stream, image):
    """Loads 16-bit colour, and its alpha."""
    if image.format == "PPM":
        return _ppm_values(stream, image, 3), None, None
    try:
        import imagecodecs
    except ImportError as error:
        raise UserError('16-bit colour needs imagecodecs. Run `pip install "segjax[formats]"`') from error
    decode = imagecodecs.png_decode if image.format == "PNG" else imagecodecs.jpeg2k_decode
    values = np.atleast_3d(decode(_content(stream)))
    bands = 3 if values.shape[2] > 2 else 1
    return values[..., :bands], values[..., bands] if values.shape[2] > bands else None, None
