"""Colours of categories, as annotation tools write them."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import ImageColor

from segjax.checks import first_names
from segjax.spec import Colour, voc_colours


def read_colour(value: Any) -> Colour | None:
    """Reads a colour.

    Args:
        value: numbers 0..255, or 0..1 if one is a fraction; "#rgb", "#rrggbb" or a CSS name. A fourth number, the
            opacity, is left out.

    Returns:
        (red, green, blue), 0..255; None if it is no colour.

    Example:
        >>> read_colour("#69db90"), read_colour([0.4, 0.9, 0.6, 1.0]), read_colour(None)
        ((105, 219, 144), (102, 230, 153), None)
    """
    if isinstance(value, str):
        hexadecimal = re.fullmatch(r"[0-9a-fA-F]{6}([0-9a-fA-F]{2})?", value)
        try:
            red, green, blue, *_ = ImageColor.getrgb(f"#{value}" if hexadecimal else value.strip())
        except ValueError:
            return None
        return red, green, blue
    if not isinstance(value, list) or len(value) not in (3, 4):
        return None
    if not all(isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each <= 255 for each in value):
        return None
    unit = any(isinstance(each, float) for each in value) and max(value) <= 1
    red, green, blue = (round(each * 255) if unit else round(each) for each in value[:3])
    return red, green, blue


def palette_of(categories: Sequence[Mapping[str, Any]], path: Path, first: int = 0) -> tuple[list[Colour] | None, str]:
    """Reads the colours of all categories; those that cannot be read get the PASCAL VOC colour of their class.

    Args:
        categories: of the file, in the order of the classes.
        path: the file, for the warning.
        first: class index of the first category.

    Returns:
        A colour per category, None if the file has none; and a warning, "" if all are read.

    Example:
        >>> palette_of([{"name": "cat", "color": [9, 9, 9]}, {"name": "dog", "color": "?"}], Path("a.json"))
        ([(9, 9, 9), (128, 0, 0)], "a.json: colours that cannot be read are left out: 'dog' ('?').")
    """
    found = [read_colour(category.get("color")) for category in categories]
    unread = [
        f"{category['name']!r} ({reprlib.repr(category['color'])})"
        for category, colour in zip(categories, found, strict=True)
        if colour is None and "color" in category
    ]
    warning = f"{path}: colours that cannot be read are left out: {first_names(unread)}." if unread else ""
    if not any(found):
        return None, warning
    default = voc_colours(first + len(found))[first:]
    return [colour or other for colour, other in zip(found, default, strict=True)], warning
