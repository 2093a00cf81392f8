"""Writes the COCO formats: panoptic (a PNG of segment ids per image and a JSON file) and instances (a JSON file).

See cocodataset.org/#format-data. `iscrowd` is 1 for a region of several objects without separate masks; instance
maps do not number it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8, UInt16
from scipy import ndimage

from segjax import rle
from segjax.checks import UserError
from segjax.spec import DatasetSpec


def id_to_rgb(ids: Integer[np.ndarray, "y x"]) -> UInt8[np.ndarray, "y x 3"]:
    """Encodes segment ids as pixels of a panoptic PNG; the inverse of `rgb_to_id`.

    Args:
        ids: segment ids, 0 .. 2^24 - 1.

    Returns:
        Red, green and blue.

    Example:
        >>> id_to_rgb(np.array([[66051]]))
        array([[[3, 2, 1]]], dtype=uint8)
    """
    return (ids[..., None] >> np.array([0, 8, 16], ids.dtype) & 255).astype(np.uint8)


def categories(spec: DatasetSpec) -> list[dict[str, Any]]:
    """Returns the categories of a COCO file; ids are class indices.

    Args:
        spec: the classes.

    Returns:
        "id", "name", "supercategory" (the name again), "isthing" and "color" of each class.

    Example:
        >>> categories(DatasetSpec(("sky", "bird"), things=(1,)))[1]
        {'id': 1, 'name': 'bird', 'supercategory': 'bird', 'isthing': 1, 'color': [128, 0, 0]}
    """
    return [
        {"id": k, "name": name, "supercategory": name, "isthing": int(k in spec.things), "color": list(colour)}
        for k, (name, colour) in enumerate(zip(spec.classes, spec.colours, strict=True))
    ]


def panoptic_annotation(
    panoptic: Integer[np.ndarray, "y x"], spec: DatasetSpec, divisor: int, image_id: int | str, file_name: str
) -> tuple[UInt8[np.ndarray, "y x 3"], dict[str, Any]]:
    """Encodes a panoptic map in COCO's panoptic format.

    Args:
        panoptic: `class * divisor + instance`; `spec.ignore * divisor` where void.
        spec: the classes. Pixels of a thing class without a number become one segment with iscrowd 1.
        divisor: the map's divisor.
        image_id: id of the image in the JSON.
        file_name: of the PNG, which the caller saves.

    Returns:
        Pixels of the PNG, with the map's ids plus 1 since 0 is void in COCO; and the annotation.

    Raises:
        UserError: an id does not fit three bytes.

    Example:
        >>> spec = DatasetSpec(("sky", "bird"), things=(1,))
        >>> pixels, annotation = panoptic_annotation(np.array([[255000, 1002]]), spec, 1000, 7, "7.png")
        >>> pixels.tolist()
        [[[0, 0, 0], [235, 3, 0]]]
        >>> annotation["segments_info"]
        [{'id': 1003, 'category_id': 1, 'area': 1, 'bbox': [1, 0, 1, 1], 'iscrowd': 0}]
    """
    ids = np.where(panoptic // divisor == spec.ignore, 0, panoptic + 1)
    if ids.max(initial=0) >= 1 << 24:
        raise UserError(f"{file_name}: segment id {ids.max()} needs more than three bytes; use a smaller divisor.")
    values, place, areas = np.unique(ids, return_inverse=True, return_counts=True)
    segments = []
    for value, area, window in zip(values.tolist(), areas.tolist(), ndimage.find_objects(place + 1), strict=True):
        if value:
            k, instance = divmod(value - 1, divisor)
            (top, bottom), (left, right) = ((axis.start, axis.stop) for axis in window)
            box = [left, top, right - left, bottom - top]
            crowd = int(k in spec.things and instance == 0)
            segments.append({"id": value, "category_id": k, "area": area, "bbox": box, "iscrowd": crowd})
    return id_to_rgb(ids), {"image_id": image_id, "file_name": file_name, "segments_info": segments}


def instance_annotations(
    label: UInt8[np.ndarray, "y x"] | UInt16[np.ndarray, "y x"],
    instance: UInt16[np.ndarray, "y x"],
    spec: DatasetSpec,
    image_id: int | str,
    scores: Sequence[float] | np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Encodes the objects of an image in COCO's instance format.

    The format has no stuff and no void: pixels outside of objects and crowds are background.

    Args:
        label: class of each pixel.
        instance: number of each object, 1 .. n.
        spec: the classes. Pixels of a thing class without a number become one annotation with iscrowd 1.
        image_id: id of the image in the JSON.
        scores: confidence of detections 1 .. n; crowds are then left out.

    Returns:
        One annotation per object, with its mask as compressed run lengths; ids count from 1 per image.

    Raises:
        UserError: pycocotools is not installed.

    Example:
        >>> label, instance = np.array([[0, 1]], np.uint8), np.array([[0, 1]], np.uint16)
        >>> (found,) = instance_annotations(label, instance, DatasetSpec(("sky", "bird"), things=(1,)), 7)
        >>> found["segmentation"], found["bbox"]
        ({'size': [1, 2], 'counts': '11'}, [1.0, 0.0, 1.0, 1.0])
    """
    tools = rle.coco_tools().mask
    found = zip(*rle.encode_masks(label, instance, spec.things), strict=True)
    found = [(mask, k, n) for mask, k, n in found if n or scores is None]
    return [
        {
            "id": place,
            "image_id": image_id,
            "category_id": int(k),
            "segmentation": mask | {"counts": mask["counts"].decode()},
            "area": int(tools.area(mask)),
            "bbox": tools.toBbox(mask).tolist(),
            "iscrowd": int(n == 0),
        }
        | ({} if scores is None else {"score": float(scores[n - 1])})
        for place, (mask, k, n) in enumerate(sorted(found, key=lambda one: one[2] == 0), 1)  # crowds last
    ]


def write_json(
    path: str | os.PathLike,
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    spec: DatasetSpec,
    listed: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Writes a COCO file.

    Args:
        path: JSON file.
        images: "id", "file_name", "height" and "width" of each.
        annotations: from `panoptic_annotation` or `instance_annotations`, of all images; object ids are renumbered,
            since they must be unique in the whole file.
        spec: the classes.
        listed: categories to list in place of the classes.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     write_json(file.name, [], [], DatasetSpec(("sky", "bird")))
        ...     list(json.load(file))
        ['info', 'images', 'annotations', 'categories']
    """
    numbered = [
        dict(annotation) | ({"id": n} if "id" in annotation else {}) for n, annotation in enumerate(annotations, 1)
    ]
    content = {
        "info": {"software": "segjax"},
        "images": [dict(image) for image in images],
        "annotations": numbered,
        "categories": categories(spec) if listed is None else [dict(category) for category in listed],
    }
    Path(path).write_text(json.dumps(content), encoding="utf-8")
