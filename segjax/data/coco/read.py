"""Reading of the COCO formats: JSON files, segment ids of panoptic PNGs, polygons and run lengths.

What third parties leave out or write otherwise is read: no `iscrowd`, no sizes, polygons as flat lists. Contradictions
are errors: ids must be unique, and each annotation must have its image listed.
"""

import collections
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from segjax import rle
from segjax.checks import UserError
from segjax.data import json_files
from segjax.data.coco import polygons

PANOPTIC = {
    "images": ("id",),
    "annotations": ("image_id", "file_name", "segments_info"),
    "categories": ("id", "name", "isthing"),
}
INSTANCES = {
    "images": ("id",),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id", "name"),
}
# Types of values, and their names in messages.
_IDS = int | str, "a number or a string"
KINDS = {
    **dict.fromkeys(("id", "image_id", "category_id"), _IDS),
    **dict.fromkeys(("file_name", "name"), (str, "a string")),
    "segments_info": (list, "a list"),
}


class Records(NamedTuple):
    """Contents of a COCO file.

    Attributes:
        path: the file.
        images: in file order; "height" and "width" are None if the file does not state them.
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
        >>> import json, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.json")
        ...     image = {"id": 7, "file_name": "7.jpg", "height": 3, "width": 4}
        ...     size = path.write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
        ...     read_json(path, PANOPTIC).annotations
        {7: []}
    """
    if not path.is_file():
        raise UserError(f"source.annotations: there is no file {path}. Check this key and the names of the splits.")
    content = json_files.read_json(path, "annotations")
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
    for place, image in enumerate(content["images"]):
        _complete_image(image, f"{path}: images[{place}]")
    for place, category in enumerate(content["categories"]):
        default = None if "isthing" in keys["categories"] else 1
        category["isthing"] = flag(category, "isthing", f"{path}: categories[{place}]", default)
    annotations = {image["id"]: [] for image in content["images"]}
    for place, annotation in enumerate(content["annotations"]):
        key, where = annotation["image_id"], f"{path}: annotations[{place}]"
        if key not in annotations:
            raise UserError(f"{where} is of image {key!r}, which is not listed{_other_type(key, annotations)}.")
        annotation["iscrowd"] = flag(annotation, "iscrowd", where)
        annotations[key].append(annotation)
    return Records(path, content["images"], annotations, content["categories"])


def _complete_image(image, where):
    """Brings height and width of an image to whole numbers, or None where nothing is stated; gives LVIS file names."""
    for key in ("height", "width"):
        value = image.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise UserError(f"{where}: {key} must be a whole number, not {reprlib.repr(value)}.")
        image[key] = value if value and value > 0 else None
    if image["height"] is None or image["width"] is None:
        image["height"] = image["width"] = None
    else:
        polygons.check_size(image["height"], image["width"], where)
    if "file_name" not in image and isinstance(image.get("coco_url"), str):
        image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
    require_keys(image, ("file_name",), where)


def flag(entry: Mapping[str, Any], key: str, where: str, default: int | None = 0) -> int:
    """Reads a flag of an entry, such as "iscrowd" or "isthing".

    Args:
        entry: annotation, segment or category.
        key: its key.
        where: file and position, for the message.
        default: value of a flag that is missing or null; None if it is required.

    Returns:
        1 or 0.

    Raises:
        UserError: the value is neither.

    Example:
        >>> flag({"iscrowd": True}, "iscrowd", "a.json: annotations[0]"), flag({}, "iscrowd", "a.json: annotations[1]")
        (1, 0)
    """
    value = entry.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or value not in (0, 1):
        raise UserError(f"{where}: {key} must be 0 or 1, not {reprlib.repr(value)}.")
    return int(value)


def _other_type(key, known):
    """Says that an id is known as a number instead of a text, or the other way round; "" if it is neither."""
    twin = next((each for each in known if each != key and str(each) == str(key)), None)
    if twin is None:
        return ""
    words = ("text", "number") if isinstance(key, str) else ("number", "text")
    return f": it is written as {words[0]}, but the listed {twin!r} as {words[1]}. Write both alike"


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
        raise UserError(f"{where} is {reprlib.repr(entry)}, not an object with {', '.join(keys)}.")
    if missing := [key for key in keys if key not in entry]:
        named = next((f" ({key} {entry[key]})" for key in ("id", "image_id") if key in entry), "")
        raise UserError(f"{where}{named} lacks {', '.join(map(repr, missing))}.")
    for key in keys:
        kind, word = KINDS.get(key, (object, ""))
        value = entry[key]
        if kind is _IDS[0] and isinstance(value, float) and value.is_integer():  # as pandas writes them
            value = entry[key] = int(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is _IDS[0]):
            raise UserError(f"{where}: {key} must be {word}, not {reprlib.repr(value)}.")


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
        differ = _other_type(key, known)
        advice = f"{differ}." if differ else "; add it there."
        raise UserError(f"{where} has category_id {key!r}, which is not among the file's categories{advice}")
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
    if fault := polygons.fault(segmentation := polygons.one_form(segmentation), shape):
        raise UserError(f"{where}: {fault}.")
    polygons.check_size(*shape, where)
    tools = rle.coco_tools().mask
    try:
        if isinstance(segmentation, list):
            for polygon in segmentation:
                polygons.check_outline(polygon, where)
            segmentation = tools.merge(tools.frPyObjects(segmentation, *shape))
        return rle.decode_mask(segmentation["counts"], shape)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: its segmentation cannot be decoded ({error}).") from error
