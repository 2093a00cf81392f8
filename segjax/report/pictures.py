"""Pictures of labels and objects: colours, overlays, error maps, panels. A picture is uint8 [y, x, 3]."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from segjax.report.instances import CONTOUR, contours, label_objects, shade_objects, unmatched_objects
from segjax.spec import DatasetSpec

IGNORED = (110, 110, 110)
WRONG = (230, 40, 40)
UNMATCHED = (255, 170, 0)
MIN_WIDTH = 160  # smallest width of a panel


def colourise(
    label: Shaped[np.ndarray, "y x *k"], spec: DatasetSpec, instance: Integer[np.ndarray, "y x"] | None = None
) -> UInt8[np.ndarray, "y x 3"]:
    """Draws a label in the colours of its classes.

    The label holds class indices [y, x], or 0/1 (or bool) [y, x, k], for which the colours of a pixel's classes are
    averaged. Ignored pixels are hatched grey. With `instance` each object has a shade of its class's colour.

    Example:
        >>> colourise(np.array([[0, 1]]), DatasetSpec(("road", "car"))).tolist()
        [[[0, 0, 0], [128, 0, 0]]]
    """
    colours = np.array(spec.colours, np.float64)
    if label.ndim == 3:
        present = label == 1
        picture = np.einsum("yxk,kc->yxc", present, colours) / np.maximum(present.sum(-1, keepdims=True), 1)
    else:
        picture = colours[np.where(label < len(colours), label, 0)]
    if instance is not None:
        picture = shade_objects(picture, instance)
    return _hatched(picture.astype(np.uint8), label, spec)


def overlay(
    image: UInt8[np.ndarray, "y x c"],
    label: Shaped[np.ndarray, "y x *k"],
    spec: DatasetSpec,
    opacity: float = 0.5,
    instance: Integer[np.ndarray, "y x"] | None = None,
    score: Float[np.ndarray, "n"] | None = None,
) -> UInt8[np.ndarray, "y x 3"]:
    """Draws a label's colours and the contours of objects over an image.

    `label`, `spec` and `instance` are those of `colourise`, `opacity` is that of the colours. The score of objects
    1 .. n is written on them after the class name.
    """
    mixed = _rgb(image) * (1 - opacity) + colourise(label, spec, instance).astype(np.float64) * opacity
    picture = np.round(mixed).astype(np.uint8)
    if instance is None:
        return picture
    picture[contours(instance)] = CONTOUR
    return picture if score is None else label_objects(picture, label, spec, instance, score)


def to_display(image: Shaped[np.ndarray, "y x c"], window: Sequence[float] | None = None) -> UInt8[np.ndarray, "y x d"]:
    """Converts an image of any bit depth and number of channels to grey or colour.

    `window` are the values that become black and white; None for 0..255 of uint8, else for the image's own range. The
    result has the first three channels, or the first of fewer.

    Example:
        >>> to_display(np.array([[[0, 9], [4095, 9]]], np.uint16), (0, 4095)).ravel().tolist()
        [0, 255]
    """
    image = image[..., : 3 if image.shape[2] >= 3 else 1]
    if image.dtype == np.uint8 and window is None:
        return image
    low, high = window or (float(np.nanmin(image)), float(np.nanmax(image)))
    share = (image.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.round(np.nan_to_num(share).clip(0, 1) * 255).astype(np.uint8)


def error_map(
    image: UInt8[np.ndarray, "y x c"],
    ground_truth: Shaped[np.ndarray, "y x *k"],
    prediction: Shaped[np.ndarray, "y x *k"],
    spec: DatasetSpec,
    true: Integer[np.ndarray, "y x"] | None = None,
    instance: Integer[np.ndarray, "y x"] | None = None,
) -> UInt8[np.ndarray, "y x 3"]:
    """Marks wrong pixels red on a dimmed image; unlabelled pixels are hatched.

    With objects, pixels of the right class are orange if their predicted object matches none: its `IoU <= 0.5` with
    each ground-truth object of its class, as in panoptic quality. Crowds are not objects. `true` and `instance` are the
    object numbers of ground truth and prediction, 0 for none.
    """
    known = ground_truth != spec.ignore
    differ = ground_truth != prediction if ground_truth.ndim == 2 else (ground_truth == 1) != (prediction == 1)
    wrong = known & differ if ground_truth.ndim == 2 else (known & differ).any(-1)
    picture = (_rgb(image) // 2 + 60).astype(np.uint8)
    picture[wrong] = WRONG
    if true is not None and instance is not None:
        picture[unmatched_objects(true, instance, known & ~wrong, known)] = UNMATCHED
    return _hatched(picture, ground_truth, spec)


def panels(pictures: Sequence[UInt8[np.ndarray, "y x 3"]], captions: Sequence[str]) -> Image.Image:
    """Puts pictures of one size side by side under captions; enlarges small ones by an integer factor."""
    height, width = pictures[0].shape[:2]
    factor = max(1, min(math.ceil(MIN_WIDTH / width), 4 * MIN_WIDTH // height))
    height, width, gap, head = factor * height, factor * width, 4, 16
    sheet = Image.new("RGB", (len(pictures) * (width + gap) - gap, height + head), "white")
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        panel = Image.new("RGB", (width, height + head), "white")  # clips a caption that is too long
        panel.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (0, head))
        ImageDraw.Draw(panel).text((2, 2), caption, fill="black")
        sheet.paste(panel, (i * (width + gap), 0))
    return sheet


def legend(spec: DatasetSpec) -> Image.Image:
    """Draws the colours and names of the classes, one per line."""
    width = 32 + math.ceil(max(ImageFont.load_default().getlength(name) for name in spec.classes))
    sheet = Image.new("RGB", (width, 18 * len(spec.classes)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, colour) in enumerate(zip(spec.classes, spec.colours, strict=True)):
        draw.rectangle((2, 18 * i + 3, 20, 18 * i + 15), fill=tuple(colour), outline="black")
        draw.text((26, 18 * i + 3), name, fill="black")
    return sheet


def _rgb(image):
    return np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float64)


def _hatched(picture, label, spec):
    """Hatches the pixels without any label; multi-label predictions are bool, and have none."""
    where = (label == spec.ignore) & (label.dtype != bool)
    where = where if where.ndim == 2 else where.all(-1)
    rows, columns = np.indices(where.shape)
    stripes = ((rows + columns) // 3 % 2 == 0)[..., None]
    return np.where(where[..., None], np.where(stripes, IGNORED, (150, 150, 150)), picture).astype(np.uint8)
