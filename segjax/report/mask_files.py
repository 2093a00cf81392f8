"""Mask files: images whose values are class indices, in the colours of the classes."""

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from segjax.spec import DatasetSpec


def mask_pictures(label: Shaped[np.ndarray, "y x *k"], spec: DatasetSpec) -> list[tuple[str, Image.Image]]:
    """Makes mask images to write to disk: palette images whose values are class indices.

    Args:
        label: class indices [y, x], or 0/1 (or bool) [y, x, k].
        spec: the colours.

    Returns:
        [("", mask)]; in multi-label mode one 0/1 mask per class, [(".name", mask), ...].

    Example:
        >>> [(suffix, mask.mode) for suffix, mask in mask_pictures(np.array([[0, 1]]), DatasetSpec(("road", "car")))]
        [('', 'P')]
    """
    if label.ndim == 3:
        pair = [(0, 0, 0), (255, 255, 255)]
        return [(f".{name}", _palette(label[..., k], pair)) for k, name in enumerate(spec.classes)]
    return [("", _palette(label, spec.colours))]


def _palette(label, colours):
    """Makes a palette image; 16-bit grey if an index does not fit a palette."""
    if len(colours) > 256:
        return Image.fromarray(label.astype(np.uint16))
    picture = Image.fromarray(label.astype(np.uint8))
    # Pillow writes as few bits as the palette needs, whatever the values: those beyond it, such as 255, need 8.
    filled = [*colours, *[(0, 0, 0)] * max(0, int(label.max(initial=0)) + 1 - len(colours))]
    picture.putpalette([value for colour in filled for value in colour])
    return picture
