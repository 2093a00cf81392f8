"""Opens TIFF files: any number of bands and pages, any depth, tiled, BigTIFF, GeoTIFF, ImageJ and OME stacks."""

import contextlib
import logging
import math
import threading
from typing import Any

import numpy as np

from segjax.checks import UserError
from segjax.data.formats.picture import MAX_BYTES, CorruptImage, Picture

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION, GDAL_NODATA = 274, 42113  # tags
LOSSY = ("OJPEG", "JPEG", "ALT_JPEG", "JPEG_LOSSY", "JPEG_2000_LOSSY", "WEBP", "LERC")
MODELS = {0: "grey", 1: "grey", 2: "rgb", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "LAB", 9: "LAB", 10: "LAB"}
COLOURS = {"grey": 1, "palette": 1, "rgb": 3, "CMYK": 4}


def open_picture(stream: Any, name: str, join_pages: bool = False) -> Picture:
    """Opens a file by its header.

    Overviews are no pages, and neither are masks.

    Args:
        stream: the open file.
        name: its name in messages.
        join_pages: whether pages are the bands of one image; if the file names an axis of channels (OME, ImageJ), only
            those along it.

    Returns:
        The picture.

    Raises:
        CorruptImage: the header cannot be read.
        UserError: pages differ in size, dtype or bands, or a page is too large.

    Example:
        >>> import io, tifffile
        >>> buffer = io.BytesIO()
        >>> tifffile.imwrite(buffer, np.zeros((3, 4, 5), np.uint16), photometric="minisblack", planarconfig="contig")
        >>> picture = open_picture(buffer, "a.tif")
        >>> picture.size, picture.bands, picture.dtype
        ((3, 4), 5, 'uint16')
    """
    import tifffile  # on demand: the import takes a while

    try:
        stream.seek(0)
        with _broken_chains() as broken:
            file = tifffile.TiffFile(stream)
            len(file.pages)
        if broken:
            raise ValueError(broken[0])
        series = [one for one in file.series if not one.keyframe.is_mask]
        masks = [page for one in file.series if _is_whole_mask(one.keyframe) for page in one.pages]
        shapes = {(one.keyframe.shape, one.keyframe.axes, str(one.dtype)) for one in series}
        planes = [(one, k) for one in series for k in range(_planes(one))]
        facts = _facts(series[0].keyframe)
    except Exception as error:  # tifffile raises nearly every built-in error on invalid bytes
        raise CorruptImage(f"{name}: not a readable TIFF file ({error}). Fix or remove it.") from error
    if len(shapes) > 1:
        listed = ", ".join(f"{dtype} {list(shape)}" for shape, _, dtype in sorted(shapes))
        raise UserError(f"{name}: its pages differ ({listed}). Save each as a file of its own.")
    ((shape, axes, dtype),) = shapes
    if set(axes) - set("YXS"):
        raise UserError(f"{name}: pages with the axes {axes} are not read. Save planes as pages.")
    samples = _samples(series, len(planes)) if join_pages else [[number] for number in range(len(planes))]
    if math.prod(shape) * len(samples[0]) * np.dtype(dtype).itemsize > MAX_BYTES:
        raise UserError(f"{name}: an image of {list(shape)} {dtype} values is too large. Cut it into tiles.")
    bands = shape[axes.index("S")] if "S" in axes else 1
    has_alpha = facts.pop("has_alpha") and bands > 1

    def load(number):
        try:
            values = np.concatenate([_plane(file, *planes[k]) for k in samples[number]], -1)
            inside = masks[number if len(masks) == len(planes) else 0].asarray() if masks else None
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise UserError(f'{name}: {error}. Run `pip install "segjax[formats]"`.') from error
            raise
        return (values[..., :-1], values[..., -1], inside) if has_alpha else (values, None, inside)

    bands = (bands - has_alpha) * len(samples[0])
    if facts["model"] not in COLOURS or bands != COLOURS[facts["model"]]:
        facts["model"] = facts["model"] if facts["model"] in ("YCbCr", "LAB") else "bands"
    size = (shape[axes.index("Y")], shape[axes.index("X")])
    facts["pages"] = len(samples)
    return Picture(name, "TIFF", size, "uint8" if dtype == "bool" else dtype, bands=bands, load=load, **facts)


def _is_whole_mask(page):
    return page.is_mask and not page.is_reduced


@contextlib.contextmanager
def _broken_chains():
    """Yields a list of what tifffile logs, and passes over, when the list of pages ends in nothing."""
    thread, broken = threading.get_ident(), []

    def keep(record):
        ours = record.thread == thread and "TiffPages" in record.getMessage()
        if ours:
            broken.append(record.getMessage())
        return not ours

    logger = logging.getLogger("tifffile")
    logger.addFilter(keep)
    try:
        yield broken
    finally:
        logger.removeFilter(keep)


def _planes(series):
    """Number of planes of a series: what remains beside rows, columns and the bands within a page."""
    return math.prod(n for n, axis in zip(series.shape, series.axes, strict=True) if axis not in "YXS")


def _samples(series, count):
    """Numbers of the planes that make up each image: those along an axis of channels, or else all."""
    samples, first = [], 0
    for one in series:
        outer = [(n, axis) for n, axis in zip(one.shape, one.axes, strict=True) if axis not in "YXS"]
        if "C" not in (axis for _, axis in outer):
            return [list(range(count))]
        numbers = np.arange(first, first + _planes(one)).reshape([n for n, _ in outer])
        along = [axis for _, axis in outer].index("C")
        samples += np.moveaxis(numbers, along, -1).reshape(-1, outer[along][0]).tolist()
        first += numbers.size
    return samples


def _plane(file, series, k):
    """Values of a plane, [y, x, bands]."""
    if len(series.pages) == _planes(series):
        values = series.pages[k].asarray()
    elif series.dataoffset is not None:  # ImageJ lists the first page only
        shape = (_planes(series), *series.keyframe.shape)
        values = file.filehandle.memmap_array(file.byteorder + series.dtype.char, shape, series.dataoffset)[k]
    else:
        values = series.asarray().reshape(-1, *series.keyframe.shape)[k]
    if "S" not in series.keyframe.axes:
        values = values[..., None]
    values = np.moveaxis(values, series.keyframe.axes.index("S"), -1) if "S" in series.keyframe.axes else values
    return values.astype(np.uint8 if values.dtype == bool else values.dtype.newbyteorder("="), copy=False)


def _facts(page):
    """What the tags of a page say of its values, as fields of `Picture`."""
    tag = {number: page.tags[number].value for number in (ORIENTATION, GDAL_NODATA) if number in page.tags}
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 8
    palette = None if page.colormap is None else page.colormap.T
    if palette is not None and palette.max() > 255:
        palette = palette >> 8  # 16 bits, but for old writers
    model = MODELS.get(int(page.photometric), "bands")
    if model == "YCbCr" and page.compression.name in LOSSY:
        model = "rgb"  # converted by the JPEG decoder
    return {
        "model": model,
        "has_alpha": bool(page.extrasamples) and int(page.extrasamples[-1]) in (1, 2),
        "orientation": int(tag.get(ORIENTATION, 1)),
        "white": (1 << bits) - 1 if bits < 8 and model == "grey" else 0,
        "inverted": int(page.photometric) == 0,
        "palette": None if palette is None else palette.astype(np.uint8),
        "lossy": page.compression.name in LOSSY,
        "nodata": float(tag[GDAL_NODATA]) if GDAL_NODATA in tag else None,
    }
