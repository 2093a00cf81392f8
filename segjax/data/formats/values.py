"""Converts stored values of image and mask files: bands, levels and colours of images, ids of masks."""

import logging

import numpy as np
from PIL import Image

from segjax.checks import UserError
from segjax.data.formats.opening import load_page, orientation_of, turn

log = logging.getLogger("segjax")

INTEGERS = 1 << 24  # float32 holds all integers up to this one


def to_levels(values, picture):
    """Values with 0 as black, and those of less than 8 bits spread over 0..255, as colours when there is a palette."""
    if picture.palette is not None:
        return np.concatenate([picture.palette, np.zeros((256, 3), np.uint8)])[values[..., 0]]
    white = picture.white or (np.iinfo(values.dtype).max if values.dtype.kind == "u" else 0)
    if picture.inverted:
        if not white:
            raise UserError(f"{picture.name}: 0 is white (WhiteIsZero), but values are {values.dtype}: which is black?")
        values = white - values
    return np.round(values * (255 / picture.white)).astype(np.uint8) if picture.white else values


def to_channels(values, alpha, picture, channels, reading):
    """Selects or converts bands to a number of channels; returns them, and whether alpha is among them."""
    bands = values.shape[2]
    if reading.bands:
        if max(reading.bands) >= bands or len(reading.bands) != channels:
            raise UserError(
                f"{picture.name} has {bands} bands, and preprocess.mean {channels} values: reading.bands="
                f"{tuple(reading.bands)} must choose as many bands, counted from 0, as there are values."
            )
        return values[..., list(reading.bands)], False
    coloured = picture.model in ("rgb", "palette") and bands == 3
    if picture.model not in ("grey", "palette", "rgb", "bands", "CMYK", "YCbCr"):
        raise UserError(f"{picture.name}: the colour model {picture.model} is not read. Save it as RGB.")
    if picture.model == "YCbCr" or (picture.model == "CMYK" and channels in (1, 3)):
        values, bands, coloured = np.asarray(Image.fromarray(values, picture.model).convert("RGB")), 3, True
    if bands == channels:
        return values, False
    if alpha is not None and bands + 1 == channels:
        return np.concatenate([values, alpha[..., None].astype(values.dtype)], -1), True
    if channels == 3 and bands == 1 and picture.model == "grey":
        return np.repeat(values, 3, axis=2), False
    if channels == 1 and coloured:
        return _luma(values), False
    extra = " and alpha" if alpha is not None else ""
    raise UserError(
        f"{picture.name} has {bands} channels{extra} ({picture.model}), but preprocess.mean and preprocess.std have "
        f"{channels} values: set as many as there are channels, or choose some with reading.bands."
    )


def _luma(rgb):
    """ITU-R 601-2 luma, rounded as Pillow does."""
    if rgb.dtype == np.uint8:
        return np.array(Image.fromarray(rgb).convert("L"))[..., None]
    grey = rgb.astype(np.float64) @ np.array([[0.299], [0.587], [0.114]])
    return (np.round(grey) if rgb.dtype.kind in "ui" else grey).astype(rgb.dtype)


def without_data(values, nodata):
    """Marks values [y, x, bands] without data; None if there are none."""
    marked = np.isnan(values) if values.dtype.kind == "f" else None
    if nodata is not None and not np.isnan(nodata):
        same = values == (np.float32(nodata) if values.dtype == np.float32 else nodata)
        marked = same if marked is None else marked | same
    return None if marked is None or not marked.any() else marked


def to_float32(values, picture, nodata):
    """Converts to float32; values without data become the smallest one of their band."""
    if values.dtype.kind in "iu" and values.size and max(-int(values.min()), int(values.max())) > INTEGERS:
        raise UserError(f"{picture.name} holds whole numbers beyond {INTEGERS}, which float32 would round. Rescale it.")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    known = np.ones(values.shape, bool) if nodata is None else ~nodata
    if np.isinf(values[known]).any():
        raise UserError(f"{picture.name} holds infinite values, or values beyond float32. Fix or remove it.")
    if nodata is not None:
        least = values.min(axis=(0, 1), where=known, initial=np.inf)
        values = np.where(known, values, np.where(np.isinf(least), 0, least)).astype(np.float32)
    return values


def union(*masks):
    """Returns the pixels in any of some masks, which may be None; None if there are none."""
    masks = [mask for mask in masks if mask is not None and mask.any()]
    return np.logical_or.reduce(masks) if masks else None


def not_opaque(alpha, name, reading):
    """Marks pixels that are not opaque, if they shall be unlabelled; says once if they shall not."""
    opaque = 255 if alpha.dtype == np.uint8 else np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1
    clear = alpha < opaque
    if reading.transparent == "unlabelled":
        return clear
    if clear.any():
        _warn_once(
            "transparent",
            f"{name} has pixels that are not opaque: the values stored there are used, here and in other files. "
            "reading.transparent='unlabelled' leaves these pixels out.",
        )
    return None


_warned: set[str] = set()


def _warn_once(kind, text):
    if kind not in _warned:
        _warned.add(kind)
        log.warning(text)


def mask_values(picture, page, reading, lossy=False):
    """Decodes a mask: stored values [y, x, bands], and the pixels without data, None if there are none."""
    if picture.lossy and not lossy:
        raise UserError(
            f"{picture.name}: lossy {picture.format} compression changes class ids. Save masks as PNG or, if they have "
            "two classes, set source.threshold to the grey value from which a pixel is of the second."
        )
    values, alpha, valid = (turn(a, orientation_of(picture, reading, None)) for a in load_page(picture, page))
    missing = None
    if values.dtype.kind == "f" and (missing := without_data(values, None)) is not None:
        values, missing = np.where(missing, 0, values), missing.any(-1)
    clear = None if alpha is None else not_opaque(alpha, picture.name, reading)
    empty = union(None if valid is None else valid == 0, missing, clear)
    return values, empty


def to_ids(values, picture, reading):
    """Whole numbers of a mask as int32."""
    if picture.inverted:
        if reading.white_is_zero == "error":
            raise UserError(
                f"{picture.name} says that 0 is white (photometric interpretation WhiteIsZero): set "
                "reading.white_is_zero='stored' if its values are class ids, 'inverted' if white is the highest id."
            )
        if reading.white_is_zero == "inverted":
            values = (picture.white or np.iinfo(values.dtype).max) - values
    if values.dtype.kind == "f" and (values != np.round(values)).any():
        odd = values[values != np.round(values)].flat[0]
        raise UserError(f"{picture.name} holds fractions such as {odd:g}, not class ids. Save masks as PNG.")
    if values.size and not -(2**31) <= float(values.min()) <= float(values.max()) < 2**31:
        raise UserError(f"{picture.name} holds ids beyond 32 bits, such as {values.max():g}.")
    return values.astype(np.int32)


def to_colours(values, picture):
    """Colours of a mask, uint8 [y, x, 3]."""
    if values.dtype != np.uint8 or picture.model not in ("grey", "palette", "rgb"):
        found = f"{picture.bands} bands" if picture.model == "bands" else f"{picture.model} {values.dtype} values"
        raise UserError(f"{picture.name} holds {found}, neither class ids nor 8-bit colours. Save masks as PNG.")
    shown = to_levels(values, picture)
    return shown if shown.shape[2] == 3 else np.repeat(shown, 3, axis=2)


def is_grey(rgb):
    """Tells whether three channels are equal."""
    return (rgb == rgb[..., :1]).all()


def colour_codes(rgb):
    """Encodes colours as one number each, red in the high bits."""
    red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def list_colours(codes):
    """Formats the most frequent colours and their pixel counts."""
    values, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    words = [f"{(int(values[i]) >> 16, int(values[i]) >> 8 & 255, int(values[i]) & 255)}: {counts[i]}" for i in order]
    return ", ".join(words[:4]) + (f" pixels, and {len(words) - 4} more" if len(words) > 4 else " pixels")


def ids_of_colours(rgb, colours, name):
    """Looks colours up in a table of ids; raises a UserError that lists unknown ones."""
    known = np.array([[r << 16 | g << 8 | b, index] for (r, g, b), index in colours.items()], np.int32)
    known = known[np.argsort(known[:, 0])]
    codes = colour_codes(rgb)
    place = np.searchsorted(known[:, 0], codes).clip(max=len(known) - 1)
    unknown = known[place, 0] != codes
    if unknown.any():
        raise UserError(
            f"{name} holds colours that source.colours does not list: {list_colours(codes[unknown])}. "
            "Add them to a class or to 'ignore'."
        )
    return known[place, 1]
