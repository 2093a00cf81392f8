"""Pictures that commands save beside a report: masks that hold class indices, and contact sheets."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from segjax.spec import DatasetSpec


def masks(label: Shaped[np.ndarray, "y x *k"], spec: DatasetSpec) -> list[tuple[str, Image.Image]]:
    """Masks to write to disk: palette pictures whose values are class indices.

    Args:
        label: class indices [y, x], or 0/1 (or bool) [y, x, k].
        spec: the colours.

    Returns:
        [("", mask)]; in multi-label mode one 0/1 mask a class, [(".name", mask), ...].

    Example:
        >>> [(suffix, mask.mode) for suffix, mask in masks(np.array([[0, 1]]), DatasetSpec(("road", "car")))]
        [('', 'P')]
    """
    if label.ndim == 3:
        pair = [(0, 0, 0), (255, 255, 255)]
        return [(f".{name}", _palette(label[..., k], pair)) for k, name in enumerate(spec.classes)]
    return [("", _palette(label, spec.colours))]


def contact_sheet(rows: Sequence[Image.Image]) -> Image.Image:
    """Stacks pictures.

    Args:
        rows: pictures of any sizes.

    Returns:
        The sheet.
    """
    gap = 6
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height + gap for r in rows) - gap), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + gap
    return sheet


def _palette(label, colours):
    """A palette picture; 16-bit grey where an index does not fit a palette."""
    if len(colours) > 256:
        return Image.fromarray(label.astype(np.uint16))
    picture = Image.fromarray(label.astype(np.uint8))
    picture.putpalette([value for colour in colours for value in colour])
    return picture
