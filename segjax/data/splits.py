"""Selects the samples of a split: those that a list file names, or a block of all."""

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segjax.checks import UserError
from segjax.data.files import SUFFIXES, read_lines


def select_listed(path: Path, images: Mapping[str, Path]) -> list[str]:
    """Selects the stems that a list file names.

    A line is a stem, a file name or a path; more columns may follow after a tab, after the extension of an image or,
    unless a stem continues there, after a space. A name is taken as a whole, never as less than what is written: a path
    must name the folder of the image.

    Args:
        path: text file.
        images: file of each stem.

    Returns:
        The listed stems, in file order.

    Raises:
        UserError: a listed name has no image or occurs twice, or the list is empty.

    Example:
        >>> import tempfile
        >>> images = {stem: Path("images", f"{stem}.jpg") for stem in ("1", "2", "3")}
        >>> with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        ...     print("images/2.jpg masks/2.png", file=file, flush=True)
        ...     select_listed(Path(file.name), images)
        ['2']
    """
    chosen: dict[str, None] = {}
    for line in read_lines(path, "lists", images):
        line = unicodedata.normalize("NFC", line)
        stem, name = _listed_stem(line, images)
        if stem is None or stem in chosen:
            first = next(iter(images))
            problem = "has no image" if stem is None else "is listed twice"
            raise UserError(f"{path} (source.lists): {name!r} {problem}; {len(images)} images, e.g. {first!r}.")
        chosen[stem] = None
    if not chosen:
        raise UserError(f"{path} (source.lists) names no image.")
    return list(chosen)


# The first path of a line, up to the extension of an image.
_FIRST = re.compile(rf".*?(?:{'|'.join(map(re.escape, SUFFIXES))})(?=\s|,|;|$)", re.IGNORECASE)


def _listed_stem(line, images):
    """Finds the stem that a line names, None if there is none; returns it and the name as written."""
    if line in images:
        return line, line
    first = line.split("\t")[0].strip()
    if match := _FIRST.match(first):
        name = match[0]
    else:
        word = first.split()[0]
        name = first if any(stem.startswith(f"{word} ") for stem in images) else word
    bare = os.path.splitext(name)[0] if name.lower().endswith(SUFFIXES) else name
    if bare in images:
        return bare, name
    bare = bare.replace("\\", "/")
    # Without the leading folders, as long as the image does lie in the last of them.
    for stem in (bare.split("/", n)[-1] for n in range(1, bare.count("/") + 1)):
        if stem in images:
            written, lies = Path(name.replace("\\", "/")).parent, images[stem].parent
            return (stem, name) if written.name == lies.name else (None, f"{name} (but {images[stem]})")
    return None, name


def select_fraction(stems: Sequence[Any], fractions: Mapping[str, Sequence[int | float]], split: str) -> list[Any]:
    """Selects the contiguous block of a split from a sorted list.

    Args:
        stems: all stems or samples, sorted.
        fractions: (from, to) of each split, 0..1.
        split: name of the split.

    Returns:
        Stems round(from * n) .. round(to * n) - 1.

    Raises:
        UserError: the split has no fraction, or its block is empty.

    Example:
        >>> select_fraction(["1", "2", "3", "4"], {"train": (0, 0.75), "test": (0.75, 1)}, "test")
        ['4']
    """
    if split not in fractions:
        raise UserError(f"source.fractions names the splits {', '.join(fractions)}, not {split!r}.")
    low, high = fractions[split]
    chosen = stems[round(low * len(stems)) : round(high * len(stems))] if 0 <= low < high <= 1 else []
    if not chosen:
        raise UserError(f"source.fractions: {split!r} from {low} to {high} holds none of the {len(stems)} images.")
    return list(chosen)
