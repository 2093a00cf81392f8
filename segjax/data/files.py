"""Finds the files of a data set by path templates and selects those of a split."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from segjax.checks import UserError

# File extensions of reading.FORMATS.
SUFFIXES = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def expand_path(path: str) -> str:
    """Expands `~` and environment variables in a path.

    Args:
        path: path such as "$SEGJAX_TEST_DATA/camvid".

    Returns:
        The expanded path.

    Raises:
        UserError: a variable is not set.

    Example:
        >>> expand_path("data/camvid")
        'data/camvid'
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise UserError(
            f"The path {path!r} needs the environment variable {unset[1]}, which is not set. "
            f"Run `export {unset[1]}=...`, or give the full path."
        )
    return expanded


def fill_split(template: str, key: str, split: str, *more: str) -> str:
    """Replaces {split} in a path template.

    Args:
        template: path with {split}, {stem} or other placeholders.
        key: configuration key of the template, for the message.
        split: name of the split.
        *more: allowed placeholders besides split and stem.

    Returns:
        The template without {split}.

    Raises:
        UserError: a placeholder is unknown.

    Example:
        >>> fill_split("{split}/{stem}.png", "images", "train")
        'train/{stem}.png'
    """
    if unknown := set(re.findall(r"\{(\w*)\}", template)) - {"split", "stem", *more}:
        raise UserError(f"source.{key}={template!r}: {{{unknown.pop()}}} is not a known placeholder.")
    return template.replace("{split}", split)


def dataset_root(root: str, split: str) -> Path:
    """Returns the root folder of a data set.

    Args:
        root: path; may contain {split}, `~` and environment variables.
        split: name of the split.

    Returns:
        The path.

    Raises:
        UserError: there is no such folder, or a variable is not set.

    Example:
        >>> dataset_root("/", "train").is_dir()
        True
    """
    path = Path(fill_split(expand_path(root), "root", split))
    if not path.is_dir():
        raise UserError(f"source.root: there is no folder {path}.")
    return path


def first_names(names: Sequence[str]) -> str:
    """Joins the first five names of samples for a message.

    Args:
        >>> first_names(["a", "b"])
        'a, b'
    """
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def natural_key(stem: str) -> tuple[list[int | str], str]:
    """Returns a natural sort key: 2 comes before 10.

    Args:
        stem: text with numbers in it.

    Returns:
        The key.

    Example:
        >>> sorted(["a10", "a9", "a1"], key=natural_key)
        ['a1', 'a9', 'a10']
    """
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", stem)], stem


def find_files(root: str | Path, template: str) -> dict[str, Path]:
    """Finds the files that match a template.

    Args:
        root: folder that a relative template starts from.
        template: path with {stem}, which may span folders and occur more than once, and * for any text within a name.
            A template without {stem} is a folder; "{stem}.*" finds image files only. Hidden files are skipped.

    Returns:
        Path of each stem; empty if nothing matches.

    Raises:
        UserError: two files have the same stem.

    Example:
        >>> find_files(Path(__file__).parent, "sources/sh{stem}.py")["apes"].name
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
            match = pattern.fullmatch(path.as_posix())
            if not match or (full.endswith(".*") and path.suffix.lower() not in SUFFIXES):
                continue
            if match["stem"] in found:
                raise UserError(f"Both {found[match['stem']]} and {path} match {template!r}: add the extension.")
            found[match["stem"]] = path
    return found


def read_lines(path: Path, key: str) -> list[str]:
    """Reads the lines of a text file, except blank lines and those that start with #.

    Args:
        path: file.
        key: configuration key of the file, for the message.

    Returns:
        The lines, stripped.

    Raises:
        UserError: the file cannot be read as text.

    Example:
        >>> read_lines(Path(__file__), "classes")[1:3]
        ['import os', 'import re']
    """
    try:
        text = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"source.{key}: {path} cannot be read ({error}).") from error
    return [line for line in text if line and not line.startswith("#")]


def select_listed(path: Path, stems: Sequence[str]) -> list[str]:
    """Selects the stems that a list file names.

    Args:
        path: text file with one stem, file name or path per line; further columns are ignored.
        stems: all stems.

    Returns:
        The listed stems, in file order.

    Raises:
        UserError: a listed name has no image or occurs twice, or the list is empty.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        ...     print("images/2.png masks/2.png", file=file, flush=True)
        ...     select_listed(Path(file.name), ["1", "2", "3"])
        ['2']
    """
    known, chosen = set(stems), {}
    for line in read_lines(path, "lists"):
        first = line.split()[0]
        bare = os.path.splitext(first)[0]
        stem = next((s for s in (line, first, bare, os.path.basename(bare)) if s in known), None)
        if stem is None or stem in chosen:
            problem = "has no image" if stem is None else "is listed twice"
            raise UserError(f"{path} (source.lists): {first!r} {problem}; {len(stems)} images, e.g. {stems[0]!r}.")
        chosen[stem] = None
    if not chosen:
        raise UserError(f"{path} (source.lists) names no image.")
    return list(chosen)


def select_fraction(stems: Sequence[str], fractions: Mapping[str, Sequence[int | float]], split: str) -> list[str]:
    """Selects the contiguous block of a split from a sorted list.

    Args:
        stems: all stems, sorted.
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


def list_images(path: Path) -> list[Path]:
    """Lists the images of a folder, or the one image that a path names.

    Args:
        path: file or folder; subfolders are not searched.

    Returns:
        The files, in natural order.

    Raises:
        UserError: there are none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("10.png", "9.JPG", "notes.txt", ".9.png"):
        ...         Path(folder, name).touch()
        ...     [path.name for path in list_images(Path(folder))]
        ['9.JPG', '10.png']
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"There is no file or folder {path}.")
    found = sorted((p for p in path.glob("[!.]*") if p.suffix.lower() in SUFFIXES), key=lambda p: natural_key(p.name))
    if not found:
        inner = [p.name for p in sorted(path.iterdir()) if p.is_dir()]
        hint = f" Its subfolders are not searched; name one of them: {', '.join(inner[:3])}." if inner else ""
        raise UserError(f"There is no image in {path}; known suffixes: {', '.join(SUFFIXES)}.{hint}")
    return found
