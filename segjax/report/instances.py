"""Objects as pictures: shades, contours and names, masks that overlap, centres and offsets."""

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
    share: float = 0.5,
) -> UInt8[np.ndarray, "y x 3"]:
    """Lays objects that may overlap over their image, the surest on top, each with its contour, class and score.

    Args:
        image: uint8 [y, x, 1 or 3].
        masks: pixels of each object.
        classes: class of each, -1 for places that are not taken.
        spec: the colours.
        score: of the objects.
        share: of the colours in the mixture.

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
        colour = shaded(np.array(spec.colours[classes[n]], np.float64).reshape(1, 1, 3), np.array([[n + 1]]))
        picture = np.where(masks[n][..., None], picture * (1 - share) + colour * share, picture)
        picture[contours(one)] = CONTOUR
        label[masks[n]], instance[masks[n]] = classes[n], n + 1
    return named(np.round(picture).astype(np.uint8), label, spec, instance, score)


def heat(image: UInt8[np.ndarray, "y x c"], centre: Float[np.ndarray, "y x"]) -> UInt8[np.ndarray, "y x 3"]:
    """Lays a map of centres over its dimmed image: nothing at 0, by way of red and yellow to white at 1.

    Args:
        image: uint8 [y, x, 1 or 3].
        centre: the map; values beyond 0..1 count as 0 and 1.

    Returns:
        uint8 [y, x, 3].

    Example:
        >>> heat(np.full((1, 2, 1), 100, np.uint8), np.array([[0.0, 1.0]])).tolist()
        [[[50, 50, 50], [255, 255, 255]]]
    """
    warmth = centre.astype(np.float64).clip(0, 1)[..., None]
    glow = (3 * warmth - np.arange(3)).clip(0, 1) * 255
    return np.round(np.broadcast_to(image, (*image.shape[:2], 3)) / 2 * (1 - warmth) + glow * warmth).astype(np.uint8)


def directions(offset: Float[np.ndarray, "y x 2"], inside: Bool[np.ndarray, "y x"]) -> UInt8[np.ndarray, "y x 3"]:
    """Paints offsets by the wheel of colours: the hue is the direction, red to the right, yellow-green down.

    Args:
        offset: (dy, dx) in pixels.
        inside: where there are objects; elsewhere is dark grey.

    Returns:
        uint8 [y, x, 3]; white is no offset, full colours the longest one inside.

    Example:
        >>> directions(np.array([[[0, 2.0], [0, 0]]]), np.array([[True, True]])).tolist()
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


def shaded(picture: Float64[np.ndarray, "y x 3"], instance: Integer[np.ndarray, "y x"]) -> np.ndarray:
    """Takes the colour of each object some way towards white, a bright one towards black; object 1 keeps it."""
    # Multiples of the golden ratio modulo 1: consecutive numbers, often neighbours, lie far apart.
    share = np.where(instance > 0, 0.6 * ((instance.astype(np.float64) - 1) * 0.618034 % 1), 0)[..., None]
    return picture + share * (np.where(picture.max(-1, keepdims=True) > 160, 0, 255) - picture)


def contours(instance: Integer[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Pixels whose right or lower neighbour is of another object: lines one pixel wide."""
    found = np.zeros(instance.shape, bool)
    found[:, :-1] = instance[:, :-1] != instance[:, 1:]
    found[:-1] |= instance[:-1] != instance[1:]
    return found


def named(
    picture: UInt8[np.ndarray, "y x 3"],
    label: Integer[np.ndarray, "y x"],
    spec: DatasetSpec,
    instance: Integer[np.ndarray, "y x"],
    score: Float[np.ndarray, "n"],
) -> UInt8[np.ndarray, "y x 3"]:
    """Writes class and score on each object, around the pixel of it that is nearest to its centre of mass."""
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


def unmatched(
    truth: Integer[np.ndarray, "y x"],
    prediction: Integer[np.ndarray, "y x"],
    right: Bool[np.ndarray, "y x"],
    known: Bool[np.ndarray, "y x"],
) -> Bool[np.ndarray, "y x"]:
    """Pixels of true objects, of the right class, whose predicted object matches none."""
    truth, prediction = np.where(known, truth, 0).astype(np.int64), np.where(known, prediction, 0).astype(np.int64)
    shape = truth.max() + 1, prediction.max() + 1
    shared = np.bincount((truth * shape[1] + prediction)[right], minlength=math.prod(shape)).reshape(shape)
    areas, found = np.bincount(truth.ravel()), np.bincount(prediction.ravel())
    matched = (3 * shared > areas[:, None] + found)[1:].any(0)  # shared / (areas + found - shared) > 1/2
    return right & (truth > 0) & ~matched[prediction]
