"""Objects of COCO's annotations as its scores count them: every object, also hidden ones, with its own area and box."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from segjax.checks import UserError
from segjax.data.coco import read
from segjax.metrics.instance import Objects
from segjax.rle import coco_tools


def annotated_objects(source: Any, i: int) -> Objects:
    """Returns the true objects of an image, before they are painted over each other.

    Args:
        source: from `data.sources.coco.coco_instances`.
        i: image.

    Returns:
        The objects and crowds in file order. Area and box are those of the annotation, or those of its mask if it has
        none; classes are indices of the source.

    Raises:
        UserError: an annotation is invalid; the message names the file and the id.
    """
    entry, size = source.records.images[i], source.size(i)
    annotations = source.records.annotations[entry["id"]]
    tools, rles, classes, areas, boxes = coco_tools().mask, [], [], [], []
    for annotation in annotations:
        where = f"{source.records.path}: annotation {annotation['id']}"
        classes.append(read.class_of_category(annotation, source.known, where))
        rles.append(encode_mask(read.rasterise(annotation["segmentation"], size, where)))
        areas.append(
            number(annotation, "area", where) if annotation.get("area") is not None else float(tools.area(rles[-1]))
        )
        boxes.append(box_of(annotation, where) if annotation.get("bbox") else tools.toBbox(rles[-1]).tolist())
    return Objects(
        rles,
        np.array(classes, np.int64),
        np.ones(len(rles)),
        np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], bool),
        size,
        np.array(areas, np.float64),
        np.array(boxes, np.float64).reshape(-1, 4),
        [annotation["id"] for annotation in annotations],
    )


def encode_mask(inside: Bool[np.ndarray, "y x"]) -> dict[str, Any]:
    """Encodes a mask as pycocotools' run lengths."""
    return coco_tools().mask.encode(np.asfortranarray(inside.astype(np.uint8)))


def number(entry: Mapping[str, Any], key: str, where: str) -> float:
    """Returns a finite number of an entry of a COCO file.

    Args:
        entry: annotation or result.
        key: its key.
        where: file and id, for the message.

    Returns:
        The number.

    Raises:
        UserError: it is missing or is no finite number.

    Example:
        >>> number({"score": 1}, "score", "results.json: entry 0")
        1.0
    """
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise UserError(f"{where}: {key} must be a finite number, not {value!r:.40}.")
    return float(value)


def box_of(entry: Mapping[str, Any], where: str) -> list[float]:
    """Returns the box of an entry of a COCO file: left, top, width and height in pixels.

    Args:
        entry: annotation or result.
        where: file and id, for the message.

    Returns:
        Four numbers.

    Raises:
        UserError: the box is missing, or is not four finite numbers.

    Example:
        >>> box_of({"bbox": [1, 2, 3, 4]}, "results.json: entry 0")
        [1.0, 2.0, 3.0, 4.0]
    """
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise UserError(f"{where}: bbox must be four numbers, left, top, width and height, not {box!r:.60}.")
    return [number({"bbox": value}, "bbox", where) for value in box]
