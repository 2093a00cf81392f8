"""Pictures of objects: shades, contours and names, overlapping masks, centres and offsets."""

import math

import numpy as np
from jaxtyping import Bool, Float, Float64, Integer, UInt8
from PIL import Image, ImageDraw

from segjax.spec import DatasetSpec

CONTOUR = (255, 255, 255)
OUTSIDE = (60, 60, 60)


def overlay_masks(
    image: UInt8[np.ndarray, "y x c"],
    masks: Bool[np.ndarray, "n y x"],
    classes: Integer[np.ndarray, "n"],
    spec: DatasetSpec,
    score: Float[np.ndarray, "n"],
    opacity: float = 0.5,
) -> UInt8[np.ndarray, "y x 3"]:
    """Draws possibly overlapping objects over their image, the surest on top, with contour, class and score.

    Args:
        image: uint8 [y, x, 1 or 3].
        masks: pixels of each object.
        classes: class of each, -1 for unused slots.
        spec: the colours.
        score: confidence of each.
        share: opacity of the colours.

    Returns:
        uint8 [y, x, 3].

    Example:
        >>> masks = np.array([[[True, False]], [[False, False]]])
        >>> spec = DatasetSpec(("road", "car"), things=(1,))
        >>> image = np.zeros((1, 2, 1), np.uint8)
        >>> overlay_masks(image, masks, np.array([1, -1]), spec, np.array([0.9, 0.0])).shape
        (1, 2, 3)
    """
    picture = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float64)
    order = [n for n in np.argsort(score, kind="stable").tolist() if classes[n] >= 0 and masks[n].any()]
    label, instance = np.full(masks.shape[1:], spec.ignore), np.zeros(masks.shape[1:], int)
    for n in order:
        one = masks[n].astype(int) * (n + 1)
        colour = shade_objects(np.array(spec.colours[classes[n]], np.float64).reshape(1, 1, 3), np.array([[n + 1]]))
        picture = np.where(masks[n][..., None], picture * (1 - opacity) + colour * opacity, picture)
        picture[contours(one)] = CONTOUR
        label[masks[n]], instance[masks[n]] = classes[n], n + 1
    return label_objects(np.round(picture).astype(np.uint8), label, spec, instance, score)


def overlay_heatmap(image: UInt8[np.ndarray, "y x c"], centre: Float[np.ndarray, "y x"]) -> UInt8[np.ndarray, "y x 3"]:
    """Draws a heatmap of centres over the dimmed image: nothing at 0, then red, yellow, and white at 1.

    Args:
        image: uint8 [y, x, 1 or 3].
        centre: the heatmap; values are clipped to 0..1.

    Returns:
        uint8 [y, x, 3].

    Example:
        >>> overlay_heatmap(np.full((1, 2, 1), 100, np.uint8), np.array([[0.0, 1.0]])).tolist()
        [[[50, 50, 50], [255, 255, 255]]]
    """
    warmth = centre.astype(np.float64).clip(0, 1)[..., None]
    glow = (3 * warmth - np.arange(3)).clip(0, 1) * 255
    return np.round(np.broadcast_to(image, (*image.shape[:2], 3)) / 2 * (1 - warmth) + glow * warmth).astype(np.uint8)


def colour_offsets(offset: Float[np.ndarray, "y x 2"], inside: Bool[np.ndarray, "y x"]) -> UInt8[np.ndarray, "y x 3"]:
    """Draws offsets in the colours of a wheel: the hue is the direction, red to the right, yellow-green down.

    Args:
        offset: (dy, dx) in pixels.
        inside: pixels of objects; the others are dark grey.

    Returns:
        uint8 [y, x, 3]; white for a zero offset, full saturation for the longest one inside.

    Example:
        >>> colour_offsets(np.array([[[0, 2.0], [0, 0]]]), np.array([[True, True]])).tolist()
        [[[255, 0, 0], [255, 255, 255]]]
    """
    dy, dx = np.moveaxis(offset.astype(np.float64), -1, 0)
    length = np.hypot(dy, dx)
    saturation = length / length.max(where=inside, initial=1e-6)
    # From HSV with value 1: each channel is full for a third of the circle around its own hue.
    sixths = (np.arctan2(dy, dx) * 3 / np.pi)[..., None] + np.array([0, 4, 2])
    full = (abs(sixths % 6 - 3) - 1).clip(0, 1)
    picture = np.round(255 * (1 - saturation.clip(0, 1)[..., None] * (1 - full))).astype(np.uint8)
    return np.where(inside[..., None], picture, np.array(OUTSIDE, np.uint8))


def shade_objects(picture: Float64[np.ndarray, "y x 3"], instance: Integer[np.ndarray, "y x"]) -> np.ndarray:
    """Shades the colour of each object towards white, a bright one towards black; object 1 keeps its colour."""
    # Multiples of the golden ratio modulo 1: consecutive objects, often neighbours, get very different shades.
    opacity = np.where(instance > 0, 0.6 * ((instance.astype(np.float64) - 1) * 0.618034 % 1), 0)[..., None]
    return picture + opacity * (np.where(picture.max(-1, keepdims=True) > 160, 0, 255) - picture)


def contours(instance: Integer[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Marks pixels whose right or lower neighbour is of another object: lines one pixel wide."""
    lines = np.zeros(instance.shape, bool)
    lines[:, :-1] = instance[:, :-1] != instance[:, 1:]
    lines[:-1] |= instance[:-1] != instance[1:]
    return lines


def label_objects(
    picture: UInt8[np.ndarray, "y x 3"],
    label: Integer[np.ndarray, "y x"],
    spec: DatasetSpec,
    instance: Integer[np.ndarray, "y x"],
    score: Float[np.ndarray, "n"],
) -> UInt8[np.ndarray, "y x 3"]:
    """Writes class and score on each object, at its pixel nearest to its centre of mass."""
    sheet = Image.fromarray(picture)
    draw = ImageDraw.Draw(sheet)
    for n in np.unique(instance[instance > 0]).tolist():
        inside = np.argwhere(instance == n)
        y, x = inside[abs(inside - inside.mean(0)).sum(1).argmin()].tolist()
        text = f"{spec.classes[label[y, x]]} {score[n - 1]:.2f}"
        half = draw.textlength(text) / 2 + 1
        x = max(half, min(x, sheet.width - half))
        draw.text((x, y), text, fill="white", stroke_width=1, stroke_fill="black", anchor="mm")
    return np.array(sheet)


def unmatched_objects(
    ground_truth: Integer[np.ndarray, "y x"],
    prediction: Integer[np.ndarray, "y x"],
    right: Bool[np.ndarray, "y x"],
    known: Bool[np.ndarray, "y x"],
) -> Bool[np.ndarray, "y x"]:
    """Marks pixels of ground-truth objects, of the right class, whose predicted object matches none."""
    ground_truth, prediction = (
        np.where(known, ground_truth, 0).astype(np.int64),
        np.where(known, prediction, 0).astype(np.int64),
    )
    shape = ground_truth.max() + 1, prediction.max() + 1
    shared = np.bincount((ground_truth * shape[1] + prediction)[right], minlength=math.prod(shape)).reshape(shape)
    areas, predicted = np.bincount(ground_truth.ravel()), np.bincount(prediction.ravel())
    matched = (3 * shared > areas[:, None] + predicted)[1:].any(0)  # shared / (areas + predicted - shared) > 1/2
    return right & (ground_truth > 0) & ~matched[prediction]
