"""The JSON files of COCO, read strictly: entries are whole, ids are unique, annotations have an image."""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segjax.checks import UserError

IMAGE = ("id", "file_name", "height", "width")
PANOPTIC = {
    "images": IMAGE,
    "annotations": ("image_id", "file_name", "segments_info"),
    "categories": ("id", "name", "isthing"),
}
INSTANCES = {
    "images": IMAGE,
    "annotations": ("id", "image_id", "category_id", "segmentation", "iscrowd"),
    "categories": ("id", "name"),
}
# Types of values, and what to call them.
_IDS = int | str, "a number or a text"
KINDS = {
    **dict.fromkeys(("id", "image_id", "category_id"), _IDS),
    **dict.fromkeys(("file_name", "name"), (str, "a text")),
    **dict.fromkeys(("height", "width"), (int, "a whole number")),
    "segments_info": (list, "a list"),
}


class Records(NamedTuple):
    """What a COCO file holds.

    Attributes:
        path: the file.
        images: in the order of the file.
        annotations: those of each image's id; an empty list where there are none.
        categories: in the order of the file.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: dict[int | str, list[dict[str, Any]]]
    categories: list[dict[str, Any]]


def load(path: Path, keys: Mapping[str, Sequence[str]]) -> Records:
    """Reads a COCO file.

    Args:
        path: JSON file.
        keys: what every entry of each list must have: `PANOPTIC` or `INSTANCES`.

    Returns:
        Its entries, annotations by image.

    Raises:
        UserError: the file cannot be read, lacks a key, has a value of a wrong type or an id twice, or annotates an
            image that it does not list.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.json")
        ...     image = {"id": 7, "file_name": "7.jpg", "height": 3, "width": 4}
        ...     size = path.write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
        ...     load(path, PANOPTIC).annotations
        {7: []}
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"source.annotations: there is no file {path}. Check that key, and the names of the splits."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"source.annotations: {path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict) or not set(keys) <= set(content):
        raise UserError(f"source.annotations: {path} is no COCO file: it must be an object with {', '.join(keys)}.")
    for kind, needed in keys.items():
        if not isinstance(content[kind], list):
            raise UserError(f"source.annotations: {path} is no COCO file: its {kind} must be a list.")
        for place, entry in enumerate(content[kind]):
            require(entry, needed, f"{path}: {kind}[{place}]")
        counts = collections.Counter(entry["id"] for entry in content[kind] if "id" in needed)
        if twice := [i for i, n in counts.items() if n > 1]:
            raise UserError(f"{path}: {kind} has id {twice[0]} twice.")
    annotations = {image["id"]: [] for image in content["images"]}
    for place, annotation in enumerate(content["annotations"]):
        if annotation["image_id"] not in annotations:
            raise UserError(f"{path}: annotations[{place}] is of image {annotation['image_id']}, which is not listed.")
        annotations[annotation["image_id"]].append(annotation)
    return Records(path, content["images"], annotations, content["categories"])


def require(entry: Any, keys: Sequence[str], where: str) -> None:
    """Raises a UserError unless an entry of a COCO file has what it must have.

    Args:
        entry: object of the file.
        keys: what it must have.
        where: file and place, for the message.

    Raises:
        UserError: it lacks a key, or a value has a wrong type.

    Example:
        >>> require({"id": 3, "name": "cat"}, ("id",), "a.json: categories[0]")
    """
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {entry!r}, not an object with {', '.join(keys)}.")
    if missing := [key for key in keys if key not in entry]:
        named = next((f" ({key} {entry[key]})" for key in ("id", "image_id") if key in entry), "")
        raise UserError(f"{where}{named} lacks {', '.join(map(repr, missing))}.")
    for key, (kind, word) in KINDS.items():
        if key in keys and not isinstance(entry[key], kind):
            raise UserError(f"{where}: {key} must be {word}, not {entry[key]!r:.40}.")


def category(entry: Mapping[str, Any], known: Mapping[int | str, int | None], where: str) -> int:
    """Looks up the class of a segment or an object.

    Args:
        entry: has "category_id".
        known: class index of each category; None of those that are stuff where only things have classes.
        where: file and id, for the message.

    Returns:
        The class index.

    Raises:
        UserError: the category is not known, or is a stuff without a class.

    Example:
        >>> category({"category_id": 90}, {1: 0, 90: 1}, "a.json: segment 5")
        1
    """
    key = entry["category_id"]
    if key not in known:
        raise UserError(f"{where} has category_id {key}, which is not among the file's categories; add it there.")
    if known[key] is None:
        raise UserError(
            f"{where} has category_id {key}, which is stuff (isthing 0), but the instance format has objects only; set "
            "isthing to 1 there, or take the annotation out."
        )
    return known[key]
