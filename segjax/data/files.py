"""Finds the files of a data set by path templates, and chooses those of a split."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from segjax.checks import UserError

# What Pillow reads under reading.FORMATS, as file names end.
SUFFIXES = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def resolve(path: str) -> str:
    """Fills `~` and environment variables into a path.

    Args:
        path: path such as "$SEGJAX_TEST_DATA/camvid".

    Returns:
        The path without variables.

    Raises:
        UserError: a variable is not set.

    Example:
        >>> resolve("data/camvid")
        'data/camvid'
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise UserError(
            f"The path {path!r} needs the environment variable {unset[1]}, which is not set. "
            f"Run `export {unset[1]}=...`, or give the full path."
        )
    return expanded


def fill(template: str, key: str, split: str, *more: str) -> str:
    """Fills the split into a path template.

    Args:
        template: text with {split}, {stem} or more.
        key: configuration key that it stands in, for the message.
        split: name of the split.
        *more: further names that may stand in braces, beside split and stem.

    Returns:
        The template without {split}.

    Raises:
        UserError: a name in braces that means nothing.

    Example:
        >>> fill("{split}/{stem}.png", "images", "train")
        'train/{stem}.png'
    """
    if unknown := set(re.findall(r"\{(\w*)\}", template)) - {"split", "stem", *more}:
        raise UserError(f"source.{key}={template!r}: {{{unknown.pop()}}} means nothing here.")
    return template.replace("{split}", split)


def base(root: str, split: str) -> Path:
    """Folder of a data set.

    Args:
        root: path, perhaps with {split}, `~` and environment variables.
        split: name of the split.

    Returns:
        The path.

    Raises:
        UserError: there is no such folder, or a variable is not set.

    Example:
        >>> base("/", "train").is_dir()
        True
    """
    path = Path(fill(resolve(root), "root", split))
    if not path.is_dir():
        raise UserError(f"source.root: there is no folder {path}.")
    return path


def some(names: Sequence[str]) -> str:
    """Puts names in words.

    Args:
        names: names of samples.

    Returns:
        The first five.

    Example:
        >>> some(["a", "b"])
        'a, b'
    """
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def natural(stem: str) -> tuple[list[int | str], str]:
    """Sort key that counts: 2 comes before 10.

    Args:
        stem: text with numbers in it.

    Returns:
        The key.

    Example:
        >>> sorted(["a10", "a9", "a1"], key=natural)
        ['a1', 'a9', 'a10']
    """
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", stem)], stem


def find(root: str | Path, template: str) -> dict[str, Path]:
    """Finds the files that fit a template.

    Args:
        root: folder that a relative template starts from.
        template: path with {stem}, which may span folders and stand more than once, and * for any text within a name.
            A template without {stem} is a folder; "{stem}.*" finds image files only. Hidden files are left out.

    Returns:
        Path of each stem; empty where nothing fits.

    Raises:
        UserError: two files have one stem.

    Example:
        >>> find(Path(__file__).parent, "sources/sh{stem}.py")["apes"].name
        'shapes.py'
    """
    if "{stem}" not in template:
        template = f"{template}/{{stem}}.*"
    full = Path(root, template).as_posix()
    start, *_ = re.split(r"\{stem\}|\*", full)
    head, *tail = [re.escape(text).replace(r"\*", "[^/]*") for text in full.split("{stem}")]
    pattern = re.compile(head + "(?P<stem>.+)" + "(?P=stem)".join(tail))
    found: dict[str, Path] = {}
    for where, folders, names in os.walk(start.rpartition("/")[0] or ".", followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(where, name) for name in names if not name.startswith(".")):
            fit = pattern.fullmatch(path.as_posix())
            if not fit or (full.endswith(".*") and path.suffix.lower() not in SUFFIXES):
                continue
            if fit["stem"] in found:
                raise UserError(f"Both {found[fit['stem']]} and {path} fit {template!r}: give the extension.")
            found[fit["stem"]] = path
    return found


def lines(path: Path, key: str) -> list[str]:
    """Reads the lines of a text file, without blank ones and those that start with #.

    Args:
        path: file.
        key: configuration key that names it, for the message.

    Returns:
        Lines, stripped.

    Raises:
        UserError: the file cannot be read as text.

    Example:
        >>> lines(Path(__file__), "classes")[1:3]
        ['import os', 'import re']
    """
    try:
        text = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"source.{key}: {path} cannot be read ({error}).") from error
    return [line for line in text if line and not line.startswith("#")]


def listed(path: Path, stems: Sequence[str]) -> list[str]:
    """Keeps the stems that a list file names.

    Args:
        path: text file with a stem, a file name or a path a line; further columns are not read.
        stems: what there is.

    Returns:
        Stems, in the order of the file.

    Raises:
        UserError: a line names nothing that there is, a line stands twice, or there is no line.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        ...     print("images/2.png masks/2.png", file=file, flush=True)
        ...     listed(Path(file.name), ["1", "2", "3"])
        ['2']
    """
    known, chosen = set(stems), {}
    for line in lines(path, "lists"):
        first = line.split()[0]
        bare = os.path.splitext(first)[0]
        stem = next((s for s in (line, first, bare, os.path.basename(bare)) if s in known), None)
        if stem is None or stem in chosen:
            fault = "has no image" if stem is None else "is listed twice"
            raise UserError(f"{path} (source.lists): {first!r} {fault}; {len(stems)} images, e.g. {stems[0]!r}.")
        chosen[stem] = None
    if not chosen:
        raise UserError(f"{path} (source.lists) names no image.")
    return list(chosen)


def fraction(stems: Sequence[str], fractions: Mapping[str, Sequence[int | float]], split: str) -> list[str]:
    """Cuts the contiguous block of a split out of a sorted list.

    Args:
        stems: what there is, sorted.
        fractions: (from, to) of each split, 0..1.
        split: name of the split.

    Returns:
        Stems from round(from * n) up to, without, round(to * n).

    Raises:
        UserError: the split is not named, or its block is empty.

    Example:
        >>> fraction(["1", "2", "3", "4"], {"train": (0, 0.75), "test": (0.75, 1)}, "test")
        ['4']
    """
    if split not in fractions:
        raise UserError(f"source.fractions names the splits {', '.join(fractions)}, not {split!r}.")
    low, high = fractions[split]
    chosen = stems[round(low * len(stems)) : round(high * len(stems))] if 0 <= low < high <= 1 else []
    if not chosen:
        raise UserError(f"source.fractions: {split!r} from {low} to {high} holds none of the {len(stems)} images.")
    return list(chosen)


def images(path: Path) -> list[Path]:
    """Lists the images of a folder, or the one image that a path names.

    Args:
        path: file or folder; subfolders are not entered.

    Returns:
        The files, in natural order.

    Raises:
        UserError: there is none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("10.png", "9.JPG", "notes.txt", ".9.png"):
        ...         Path(folder, name).touch()
        ...     [path.name for path in images(Path(folder))]
        ['9.JPG', '10.png']
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"There is no file or folder {path}.")
    found = sorted((p for p in path.glob("[!.]*") if p.suffix.lower() in SUFFIXES), key=lambda p: natural(p.name))
    if not found:
        inner = [p.name for p in sorted(path.iterdir()) if p.is_dir()]
        hint = f" Its folders are not searched, name one of them: {', '.join(inner[:3])}." if inner else ""
        raise UserError(f"There is no image in {path}; known suffixes: {', '.join(SUFFIXES)}.{hint}")
    return found
