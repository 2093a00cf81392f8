"""Reads the data.yaml of Ultralytics: class names, and the images of a split in folders and lists."""

import logging
import os
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from segjax.checks import UserError
from segjax.data import files

log = logging.getLogger("segjax")


class Images(NamedTuple):
    """The images of a split.

    Attributes:
        classes: as written: a list of names or a mapping from their indices.
        stems: path of each image in the data set, without its extension.
        images: file of each image.
        labels: text file of each image; None if there is none.
    """

    classes: Any
    stems: tuple[str, ...]
    images: tuple[Path, ...]
    labels: tuple[Path | None, ...]


def read_yaml(path: Path) -> dict[Any, Any]:
    """Reads a YAML file of keys and values.

    Args:
        path: file.

    Returns:
        Its content.

    Raises:
        UserError: the file cannot be read, is no mapping, or has a key twice.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "data.yaml")
        ...     size = path.write_text("{train: images/train, names: {0: cat, 1: dog}}")
        ...     read_yaml(path)
        {'train': 'images/train', 'names': {0: 'cat', 1: 'dog'}}
    """
    text = files.read_text(path, "yaml")
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"source.yaml: {path} cannot be read as YAML ({what}).") from error
    if not isinstance(content, dict):
        raise UserError(f"source.yaml: {path} must have keys and values, such as train: and names:.")
    return content


class _Loader(yaml.SafeLoader):
    """Builds plain values only, and refuses a key that occurs twice, of which PyYAML would keep the last."""

    def construct_mapping(self, node, deep=False):
        """Builds a mapping."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key.value, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice", key.start_mark
                )
            seen.add(key.value if isinstance(key.value, str) else None)
        return super().construct_mapping(node, deep)


def open_split(path: Path, root: Path, split: str) -> Images:
    """Finds the images and text files of a split, as Ultralytics does.

    The entry of the split is a folder with images, also in folders below, or a text file that lists images, or a list
    of both. It starts from `path` in the file, which starts from the folder of the file. The text file of an image
    is where the last folder called images is called labels, else beside it.

    Args:
        path: the data.yaml.
        root: folder of the data set; everything must lie in it.
        split: key of the split in the file, such as "val".

    Returns:
        The images, naturally sorted in each folder, in file order of each list.

    Raises:
        UserError: the file lacks the split or names, an entry does not exist or leaves the data set, or no image has a
            text file.
    """
    content = read_yaml(path)
    if not isinstance(content.get("names"), list | dict):
        raise UserError(f"source.yaml: {path} has no names; write names: [first, second].")
    if (count := content.get("nc")) is not None and count != len(content["names"]):
        raise UserError(f"source.yaml: {path} says nc: {reprlib.repr(count)}, but has {len(content['names'])} names.")
    base = _base(content.get("path"), path, root)
    entries = content.get(split)
    if not entries:
        known = ", ".join(str(key) for key in ("train", "val", "test") if content.get(key)) or "none"
        raise UserError(f"source.yaml: {path} has no images for split {split!r}; it has {known}.")
    found: dict[str, Path] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, str):
            raise UserError(f"source.yaml: {path}: {split} must name folders or text files, not {reprlib.repr(entry)}.")
        place = _entry(entry, path, base, root)
        for image in _listed(place, base, root) if place.is_file() else _in_folder(place):
            stem = os.path.splitext(os.path.relpath(image, root))[0].replace(os.sep, "/")
            if stem in found:
                twice = "is listed twice" if found[stem] == image else f"and {found[stem]} have one text file"
                raise UserError(f"source.yaml: {path}: {split}: {image} {twice}.")
            found[stem] = image
    if not found:
        raise UserError(f"source.yaml: {path}: there is no image in {split}: {reprlib.repr(entries)}.")
    labels = tuple(_label(stem, root) for stem in found)
    if not any(labels):
        raise UserError(
            f"source.yaml: {path}: none of the {len(found)} images of {split} has a text file, such as "
            f"{root / _label_name(next(iter(found)))}."
        )
    return Images(content["names"], tuple(found), tuple(found.values()), labels)


def _base(written, path, root):
    """The folder that entries start from."""
    if written in (None, ""):
        return path.parent
    if not isinstance(written, str):
        raise UserError(f"source.yaml: {path}: path must be a folder, not {reprlib.repr(written)}.")
    try:
        place = files.inside(root, written, str(path), path.parent)
    except UserError:
        place = None
    if place is not None and place.is_dir():
        return place
    # The usual value: a folder of another machine, or one beside where Ultralytics keeps its data sets.
    log.warning("%s: path %r is no folder in source.root; entries are looked for beside the file.", path, written)
    return path.parent


def _entry(entry, path, base, root):
    """The folder or list of an entry. Roboflow writes ../train/images for train/images, which Ultralytics allows."""
    names = [entry, entry[3:]] if entry.startswith("../") else [entry]
    for name in names:
        if name == names[-1]:
            place = files.inside(root, name, str(path), base)
        else:
            place = Path(os.path.normpath(base / name))
            if not place.is_relative_to(root):
                continue
        if place.exists():
            return place
    raise UserError(f"source.yaml: {path} names {reprlib.repr(entry)}, but there is no {place}.")


def _in_folder(folder):
    found = files.find_files(folder, "{stem}.*")
    return [found[stem] for stem in sorted(found, key=files.natural_key)]


def _listed(path, base, root):
    """Images that a text file lists: from its own folder if they start with "./", else from that or the base."""
    for line in filter(None, map(str.strip, files.read_text(path, "yaml").splitlines())):
        image = files.inside(root, line, str(path), path.parent)
        if not image.is_file() and not line.startswith("./"):
            image = files.inside(root, line, str(path), base)
        if not image.is_file():
            raise UserError(f"{path} names {line!r:.200}, but there is no {image}.")
        yield image


def _label_name(stem):
    head, images, tail = f"/{stem}".rpartition("/images/")
    return f"{head}/labels/{tail}.txt"[1:] if images else f"{stem}.txt"


def _label(stem, root):
    path = root / _label_name(stem)
    return path if path.is_file() else None
