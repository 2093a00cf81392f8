"""Strict reading of the COCO formats: JSON files, segment ids of panoptic PNGs, polygons and run lengths.

Every entry of a JSON file must have all its keys, ids must be unique, and each annotation must have its image listed.
"""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from segjax import rle
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
# Types of values, and their names in messages.
_IDS = int | str, "a number or a string"
KINDS = {
    **dict.fromkeys(("id", "image_id", "category_id"), _IDS),
    **dict.fromkeys(("file_name", "name"), (str, "a string")),
    **dict.fromkeys(("height", "width"), (int, "a whole number")),
    "segments_info": (list, "a list"),
}


class Records(NamedTuple):
    """Contents of a COCO file.

    Attributes:
        path: the file.
        images: in file order.
        annotations: by image id; an empty list if an image has none.
        categories: in file order.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: dict[int | str, list[dict[str, Any]]]
    categories: list[dict[str, Any]]


def read_json(path: Path, keys: Mapping[str, Sequence[str]]) -> Records:
    """Reads a COCO file.

    Args:
        path: JSON file.
        keys: keys that every entry of each list must have: `PANOPTIC` or `INSTANCES`.

    Returns:
        Its entries, annotations grouped by image.

    Raises:
        UserError: the file cannot be read, lacks a key, has a value of the wrong type or an id twice, or annotates an
            image that it does not list.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.json")
        ...     image = {"id": 7, "file_name": "7.jpg", "height": 3, "width": 4}
        ...     size = path.write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
        ...     read_json(path, PANOPTIC).annotations
        {7: []}
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"source.annotations: there is no file {path}. Check this key and the names of the splits."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"source.annotations: {path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict) or not set(keys) <= set(content):
        raise UserError(f"source.annotations: {path} is not a COCO file: it must be an object with {', '.join(keys)}.")
    for kind, needed in keys.items():
        if not isinstance(content[kind], list):
            raise UserError(f"source.annotations: {path} is not a COCO file: its {kind} must be a list.")
        for place, entry in enumerate(content[kind]):
            require_keys(entry, needed, f"{path}: {kind}[{place}]")
        counts = collections.Counter(entry["id"] for entry in content[kind] if "id" in needed)
        if twice := [i for i, n in counts.items() if n > 1]:
            raise UserError(f"{path}: {kind} has id {twice[0]} twice.")
    annotations = {image["id"]: [] for image in content["images"]}
    for place, annotation in enumerate(content["annotations"]):
        if annotation["image_id"] not in annotations:
            raise UserError(f"{path}: annotations[{place}] is of image {annotation['image_id']}, which is not listed.")
        annotations[annotation["image_id"]].append(annotation)
    return Records(path, content["images"], annotations, content["categories"])


def require_keys(entry: Any, keys: Sequence[str], where: str) -> None:
    """Raises a UserError unless an entry of a COCO file has the required keys.

    Args:
        entry: object of the file.
        keys: required keys.
        where: file and position, for the message.

    Raises:
        UserError: it lacks a key, or a value has the wrong type.

    Example:
        >>> require_keys({"id": 3, "name": "cat"}, ("id",), "a.json: categories[0]")
    """
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {entry!r}, not an object with {', '.join(keys)}.")
    if missing := [key for key in keys if key not in entry]:
        named = next((f" ({key} {entry[key]})" for key in ("id", "image_id") if key in entry), "")
        raise UserError(f"{where}{named} lacks {', '.join(map(repr, missing))}.")
    for key, (kind, word) in KINDS.items():
        if key in keys and not isinstance(entry[key], kind):
            raise UserError(f"{where}: {key} must be {word}, not {entry[key]!r:.40}.")


def class_of_category(entry: Mapping[str, Any], known: Mapping[int | str, int | None], where: str) -> int:
    """Looks up the class of a segment or an object.

    Args:
        entry: has "category_id".
        known: class index of each category; None for stuff if only things have classes.
        where: file and id, for the message.

    Returns:
        The class index.

    Raises:
        UserError: the category is unknown, or is stuff without a class.

    Example:
        >>> class_of_category({"category_id": 90}, {1: 0, 90: 1}, "a.json: segment 5")
        1
    """
    key = entry["category_id"]
    if key not in known:
        raise UserError(f"{where} has category_id {key}, which is not among the file's categories; add it there.")
    if known[key] is None:
        raise UserError(
            f"{where} has category_id {key}, which is stuff (isthing 0), but the instance format has objects only; set "
            "isthing to 1 there, or remove the annotation."
        )
    return known[key]


def rgb_to_id(rgb: UInt8[np.ndarray, "y x 3"]) -> Int32[np.ndarray, "y x"]:
    """Decodes the segment ids of a panoptic PNG: `R + 256 G + 65536 B`.

    Args:
        rgb: its pixels.

    Returns:
        Ids, 0 .. 2^24 - 1.

    Example:
        >>> rgb_to_id(np.array([[[3, 2, 1]]], np.uint8))
        array([[66051]], dtype=int32)
    """
    return rgb.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)


def rasterise(segmentation: Any, shape: tuple[int, int], where: str) -> Bool[np.ndarray, "y x"]:
    """Rasterises an object of COCO's instance format, as pycocotools does.

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...] in pixels, or a run-length encoding, compressed or not.
        shape: rows and columns of the image.
        where: file and id, for the message.

    Returns:
        The object's pixels.

    Raises:
        UserError: pycocotools is not installed, or the segmentation is invalid.

    Example:
        >>> rasterise([[1, 0, 3, 0, 3, 1, 1, 1]], (2, 4), "a.json: annotation 5").astype(int)
        array([[0, 1, 1, 0],
               [0, 0, 0, 0]])
    """
    rows, columns = shape
    encoded = isinstance(segmentation, Mapping)
    if encoded and segmentation.get("size") != [rows, columns]:
        raise UserError(f"{where}: its mask has the size {segmentation.get('size')}, its image {[rows, columns]}.")
    if not encoded and not _are_polygons(segmentation):
        raise UserError(
            f"{where}: an object needs polygons, and each of them 3 or more pairs x, y: [[x, y, ...], ...]."
        )
    tools = rle.coco_tools().mask
    try:
        if not encoded:
            if not np.isfinite(np.concatenate(segmentation)).all():
                raise ValueError("a coordinate is not finite")
            segmentation = tools.merge(tools.frPyObjects(segmentation, rows, columns))
        return rle.decode_mask(segmentation["counts"], shape)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{where}: its segmentation cannot be decoded ({error}).") from error


def _are_polygons(value):
    """Whether a value is a list of COCO polygons; pycocotools would take four numbers for a box."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in value)
    )
