"""Labels and objects as pictures: colours, overlays, error maps, panels. A picture is uint8 [y, x, 3]."""

import math
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from segjax.report.instances import CONTOUR, contours, named, shaded, unmatched
from segjax.spec import DatasetSpec

IGNORED = (110, 110, 110)
WRONG = (230, 40, 40)
UNMATCHED = (255, 170, 0)
LEAST = 160  # columns of a panel


def colourise(
    label: Shaped[np.ndarray, "y x *k"], spec: DatasetSpec, instance: Integer[np.ndarray, "y x"] | None = None
) -> UInt8[np.ndarray, "y x 3"]:
    """Paints a label in the classes' colours.

    Args:
        label: class indices [y, x], or 0/1 (or bool) [y, x, k], where the colours of the classes of a pixel are
            averaged; ignored pixels are hatched grey.
        spec: the colours.
        instance: number of the object of each pixel, 0 for none: each object has a shade of its class's colour.

    Returns:
        The picture.

    Example:
        >>> colourise(np.array([[0, 1]]), DatasetSpec(("road", "car"))).tolist()
        [[[0, 0, 0], [128, 0, 0]]]
    """
    colours = np.array(spec.colours, np.float64)
    if label.ndim == 3:
        there = label == 1
        picture = np.einsum("yxk,kc->yxc", there, colours) / np.maximum(there.sum(-1, keepdims=True), 1)
    else:
        picture = colours[np.where(label < len(colours), label, 0)]
    if instance is not None:
        picture = shaded(picture, instance)
    return _hatched(picture.astype(np.uint8), label, spec)


def overlay(
    image: UInt8[np.ndarray, "y x c"],
    label: Shaped[np.ndarray, "y x *k"],
    spec: DatasetSpec,
    share: float = 0.5,
    instance: Integer[np.ndarray, "y x"] | None = None,
    score: Float[np.ndarray, "n"] | None = None,
) -> UInt8[np.ndarray, "y x 3"]:
    """Lays a label's colours over its image, and draws the contours of objects.

    Args:
        image: grey or colour.
        label, spec, instance: as in `colourise`.
        share: of the colours in the mixture.
        score: of objects 1 .. n, written on them after the name of their class.

    Returns:
        The picture.
    """
    mixed = _rgb(image) * (1 - share) + colourise(label, spec, instance).astype(np.float64) * share
    picture = np.round(mixed).astype(np.uint8)
    if instance is None:
        return picture
    picture[contours(instance)] = CONTOUR
    return picture if score is None else named(picture, label, spec, instance, score)


def displayed(image: Shaped[np.ndarray, "y x c"], window: Sequence[float] | None = None) -> UInt8[np.ndarray, "y x d"]:
    """An image of any depth and number of channels as grey or colour.

    Args:
        image: [y, x, c].
        window: values that become black and white; None for 0..255 of uint8, else for the image's own range.

    Returns:
        uint8 [y, x, 1 or 3]: the first three channels, or the first one of two.

    Example:
        >>> displayed(np.array([[[0, 9], [4095, 9]]], np.uint16), (0, 4095)).ravel().tolist()
        [0, 255]
    """
    image = image[..., : 3 if image.shape[2] >= 3 else 1]
    if image.dtype == np.uint8 and window is None:
        return image
    low, high = window or (float(np.nanmin(image)), float(np.nanmax(image)))
    share = (image.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.round(np.nan_to_num(share).clip(0, 1) * 255).astype(np.uint8)


def errors(
    image: UInt8[np.ndarray, "y x c"],
    truth: Shaped[np.ndarray, "y x *k"],
    prediction: Shaped[np.ndarray, "y x *k"],
    spec: DatasetSpec,
    true: Integer[np.ndarray, "y x"] | None = None,
    instance: Integer[np.ndarray, "y x"] | None = None,
) -> UInt8[np.ndarray, "y x 3"]:
    """Marks wrong pixels red on a dimmed image; unlabelled pixels are hatched.

    Of objects also marks orange the pixels of the right class in a predicted object that matches none: whose
    `IoU <= 0.5` with each object of its class in the ground truth, as in panoptic quality. Crowds are no objects.

    Args:
        image: grey or colour.
        truth, prediction, spec: as the label in `colourise`.
        true: numbers of the objects in the ground truth, 0 for none.
        instance: of the predicted ones.

    Returns:
        The picture.
    """
    known = truth != spec.ignore
    differ = truth != prediction if truth.ndim == 2 else (truth == 1) != (prediction == 1)
    wrong = known & differ if truth.ndim == 2 else (known & differ).any(-1)
    picture = (_rgb(image) // 2 + 60).astype(np.uint8)
    picture[wrong] = WRONG
    if true is not None and instance is not None:
        picture[unmatched(true, instance, known & ~wrong, known)] = UNMATCHED
    return _hatched(picture, truth, spec)


def panels(pictures: Sequence[UInt8[np.ndarray, "y x 3"]], captions: Sequence[str]) -> Image.Image:
    """Sets pictures of one size side by side, each under its caption; small ones are enlarged by a whole factor."""
    height, width = pictures[0].shape[:2]
    factor = max(1, min(math.ceil(LEAST / width), 4 * LEAST // height))
    height, width, gap, head = factor * height, factor * width, 4, 16
    sheet = Image.new("RGB", (len(pictures) * (width + gap) - gap, height + head), "white")
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        panel = Image.new("RGB", (width, height + head), "white")  # cuts a caption that is too long
        panel.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (0, head))
        ImageDraw.Draw(panel).text((2, 2), caption, fill="black")
        sheet.paste(panel, (i * (width + gap), 0))
    return sheet


def legend(spec: DatasetSpec) -> Image.Image:
    """Names the colours of the classes, one a line."""
    width = 32 + math.ceil(max(ImageFont.load_default().getlength(name) for name in spec.classes))
    sheet = Image.new("RGB", (width, 18 * len(spec.classes)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, colour) in enumerate(zip(spec.classes, spec.colours, strict=True)):
        draw.rectangle((2, 18 * i + 3, 20, 18 * i + 15), fill=tuple(colour), outline="black")
        draw.text((26, 18 * i + 3), name, fill="black")
    return sheet


def file_name(text: str) -> str:
    """Makes a name fit to be (part of) a file's name and of a relative URL: other characters become "_".

    Example:
        >>> file_name("seq 01/0016:E5")
        'seq_01_0016_E5'
    """
    return re.sub(r"[^\w.-]", "_", text)[-100:]


def _rgb(image):
    return np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float64)


def _hatched(picture, label, spec):
    """The picture with diagonal stripes over pixels without any label; predictions of many classes are bool."""
    where = (label == spec.ignore) & (label.dtype != bool)
    where = where if where.ndim == 2 else where.all(-1)
    rows, columns = np.indices(where.shape)
    stripes = ((rows + columns) // 3 % 2 == 0)[..., None]
    return np.where(where[..., None], np.where(stripes, IGNORED, (150, 150, 150)), picture).astype(np.uint8)
