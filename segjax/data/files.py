"""Finds the files of a data set by path templates, selects those of a split, and reads text."""

import codecs
import functools
import logging
import os
import re
import unicodedata
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from segjax.checks import UserError, first_names

log = logging.getLogger("segjax")

# File extensions of the formats that `segjax.data.reading` reads.
SUFFIXES = (
    ".bmp", ".btf", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".npy", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tf8", ".tif", ".tiff", ".webp",
)  # fmt: skip


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


def find_files(root: str | Path, template: str, stems: Iterable[str] | None = None) -> dict[str, Path]:
    """Finds the files that match a template.

    Args:
        root: folder that a relative template starts from.
        template: path with {stem}, which may span folders and occur more than once, and * for any text within a name.
            A template without {stem} is a folder; "{stem}.*" finds image files only. The case of a file's extension
            does not matter. Hidden files are skipped.
        stems: stems to look for; if * leaves several for a file, it belongs to the longest. None: any stem.

    Returns:
        Path of each stem, in NFC form of Unicode; empty if nothing matches.

    Raises:
        UserError: two files have the same stem.

    Example:
        >>> find_files(Path(__file__).parent, "sources/sh{stem}.py")["apes"].name
        'shapes.py'
    """
    if "{stem}" not in template:
        template = f"{template}/{{stem}}.*"
    place = Path(root, template).as_posix()
    start, *_ = re.split(r"\{stem\}|\*", place)
    full = unicodedata.normalize("NFC", place)
    any_image = full.endswith(".*")
    pattern = _pattern(full, "(?P<stem>.+)")
    known = set(stems) if stems is not None and "*" in full.removesuffix(".*") else None
    found: dict[str, Path] = {}
    for path in walk(start.rpartition("/")[0] or "."):
        text = unicodedata.normalize("NFC", path.as_posix())
        match = pattern.fullmatch(text)
        if not match or (any_image and path.suffix.lower() not in SUFFIXES):
            continue
        stem = match["stem"]
        if known is not None and stem not in known:
            inside = (text[i:j] for i in range(match.start("stem") + 1) for j in range(len(text), i, -1))
            fits = [one for one in inside if one in known and _pattern(full, re.escape(one)).fullmatch(text)]
            stem = max(fits, key=len, default=stem)
        if stem in found:
            raise UserError(f"Both {found[stem]} and {path} match {template!r}: add the extension.")
        found[stem] = path
    return found


def _pattern(template, stem):
    """Compiles a template with a pattern for its stem; the second {stem} refers to the first, and so on."""
    body, dot, extension = template.rpartition(".")
    if not dot or re.search(r"[/{}*]", extension):
        body, dot, extension = template, "", ""
    head, *tail = [re.escape(text).replace(r"\*", "[^/]*") for text in body.split("{stem}")]
    again = "(?P=stem)" if stem.startswith("(") else stem
    text = head + stem + again.join(tail) if tail else head
    return re.compile(text + re.escape(dot) + (f"(?i:{re.escape(extension)})" if dot else ""), re.DOTALL)


def walk(folder: str | Path, without: Path | None = None) -> Iterator[Path]:
    """Yields the files in a folder and those below, except hidden ones; each folder once, links followed.

    Args:
        folder: where to start.
        without: a folder that is not entered.
    """
    seen = set() if without is None else {os.path.realpath(without)}
    for where, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(where)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(where, name) for name in names if not name.startswith("."))


def read_text(path: Path, key: str = "") -> str:
    """Reads a text file: UTF-8, or UTF-16 if it begins with that byte order mark, as Windows writes it.

    Args:
        path: file.
        key: configuration key of the file, for the message.

    Returns:
        The text, without a byte order mark.

    Raises:
        UserError: the file cannot be read as text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "classes.txt")
        ...     size = path.write_bytes("cat".encode("utf-8-sig"))
        ...     read_text(path)
        'cat'
    """
    try:
        content = path.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if wide else "utf-8-sig")
    except (OSError, ValueError) as error:
        advice = " Save it as UTF-8." if isinstance(error, UnicodeDecodeError) else ""
        start = f"source.{key}: " if key else ""
        raise UserError(f"{start}{path} cannot be read ({error}).{advice}") from error


def read_lines(path: Path, key: str, names: Container[str] = ()) -> list[str]:
    """Reads the lines of a text file, except blank lines and those that start with #.

    Args:
        path: file.
        key: configuration key of the file, for the message.
        names: lines that are no comments, although they start with #.

    Returns:
        The lines, stripped.

    Raises:
        UserError: the file cannot be read as text.

    Example:
        >>> read_lines(Path(__file__), "classes")[1:3]
        ['import codecs', 'import functools']
    """
    text = [line.strip() for line in read_text(path, key).splitlines()]
    return [line for line in text if line in names or (line and not line.startswith("#"))]


def inside(root: Path, name: str, where: str, folder: Path | None = None) -> Path:
    r"""Returns the path of a file that another file names, which must lie in the data set.

    Nobody need trust an annotation file: what it names with `..` or an absolute path may lie in the data set, never
    outside of it. Links in the data set are the user's own, and are followed. A backslash separates folders, as on
    Windows, unless there is a file with that name.

    Args:
        root: folder of the data set.
        name: path as written.
        where: what names it, for the message.
        folder: folder that a relative path starts from, which the user chose; None for the root.

    Returns:
        The path; there need not be such a file.

    Raises:
        UserError: it leaves the data set, or is no path.

    Example:
        >>> inside(Path("/pets"), "train\\..\\1.jpg", "a.json").as_posix()
        '/pets/1.jpg'
        >>> inside(Path("/pets"), "../1.jpg", "a.json")
        Traceback (most recent call last):
        segjax.checks.UserError: a.json names '../1.jpg', which is outside of /pets: only files in it are read.
    """
    folder = root if folder is None else folder
    if "\0" in name or name.encode("utf-8", "ignore").decode() != name:
        raise UserError(f"{where} names {name!r:.200}, which is no path.")
    if "\\" in name and not os.path.lexists(os.path.join(folder, name)):
        name = name.replace("\\", "/")
    path = os.path.normpath(os.path.join(folder, name))
    if not os.path.abspath(path).startswith(_prefixes(os.path.abspath(root), os.path.abspath(folder))):
        raise UserError(f"{where} names {name!r:.200}, which is outside of {root}: only files in it are read.")
    return Path(path)


@functools.lru_cache(maxsize=8)
def _prefixes(root, folder):
    """How the absolute paths in a data set begin, by its own name and by the one that links lead to."""
    return tuple(os.path.join(place, "") for place in (root, os.path.realpath(root), folder))


def list_images(path: Path, recursive: bool = False, without: Path | None = None) -> list[Path]:
    """Lists the images of a folder, or the one image that a path names.

    Args:
        path: file or folder.
        recursive: whether to search subfolders; if not, a warning counts them.
        without: folder that is not searched.

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
    here = (each for each in path.glob("[!.]*") if not each.is_dir())
    found = [each for each in (walk(path, without) if recursive else here) if each.suffix.lower() in SUFFIXES]
    found.sort(key=lambda each: natural_key(each.relative_to(path).as_posix()))
    inner = [each.name for each in sorted(path.iterdir()) if each.is_dir() and each != without]
    if not found:
        hint = f" Its subfolders are not searched without --recursive: {', '.join(inner[:3])}." if inner else ""
        raise UserError(f"There is no image in {path}; known suffixes: {', '.join(SUFFIXES)}.{hint}")
    if inner and not recursive:
        log.warning("%d folders in %s are not searched without --recursive: %s.", len(inner), path, first_names(inner))
    return found
