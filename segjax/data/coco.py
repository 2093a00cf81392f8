"""The COCO formats, pixels and JSON: panoptic (PNGs of segment ids and a JSON) and instances (JSON alone).

See cocodataset.org/#format-data. Of segments and objects the JSON tells `iscrowd`: 1 for a region of many objects that
are not told apart, which has no number in an instance map.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Integer, UInt8, UInt16
from scipy import ndimage

from segjax import rle
from segjax.checks import UserError
from segjax.spec import DatasetSpec


def rgb_to_id(rgb: UInt8[np.ndarray, "y x 3"]) -> Int32[np.ndarray, "y x"]:
    """Segment ids of a panoptic PNG: `R + 256 G + 65536 B`.

    Args:
        rgb: its pixels.

    Returns:
        Ids, 0 .. 2^24 - 1.

    Example:
        >>> rgb_to_id(np.array([[[3, 2, 1]]], np.uint8))
        array([[66051]], dtype=int32)
    """
    return rgb.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)


def id_to_rgb(ids: Integer[np.ndarray, "y x"]) -> UInt8[np.ndarray, "y x 3"]:
    """Pixels of a panoptic PNG; the inverse of `rgb_to_id`.

    Args:
        ids: segment ids, 0 .. 2^24 - 1.

    Returns:
        Red, green and blue.

    Example:
        >>> id_to_rgb(np.array([[66051]]))
        array([[[3, 2, 1]]], dtype=uint8)
    """
    return (ids[..., None] >> np.array([0, 8, 16], ids.dtype) & 255).astype(np.uint8)


def decode(segmentation: Any, shape: tuple[int, int], where: str) -> Bool[np.ndarray, "y x"]:
    """Draws an object of COCO's instance format, as pycocotools does.

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...] in pixels, or a run-length encoding, compressed or not.
        shape: rows and columns of the image.
        where: file and id, for the message.

    Returns:
        Where the object is.

    Raises:
        UserError: pycocotools is not installed, or the segmentation makes no sense.

    Example:
        >>> decode([[1, 0, 3, 0, 3, 1, 1, 1]], (2, 4), "a.json: annotation 5").astype(int)
        array([[0, 1, 1, 0],
               [0, 0, 0, 0]])
    """
    rows, columns = shape
    encoded = isinstance(segmentation, Mapping)
    if encoded and segmentation.get("size") != [rows, columns]:
        raise UserError(f"{where}: its mask has the size {segmentation.get('size')}, its image {[rows, columns]}.")
    if not encoded and not _are_polygons(segmentation):
        raise UserError(
            f"{where}: a polygon needs pairs x, y of three points or more, and an object a polygon: [[x, y, ...], ...]."
        )
    tools = rle.coco_tools().mask
    try:
        if not encoded:
            if not np.isfinite(np.concatenate(segmentation)).all():
                raise ValueError("a coordinate is not finite")
            segmentation = tools.merge(tools.frPyObjects(segmentation, rows, columns))
        return rle.decode(segmentation["counts"], shape)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{where}: its segmentation cannot be decoded ({error}).") from error


def _are_polygons(value):
    """Whether polygons are what they are in COCO; pycocotools would take four numbers for a box."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in value)
    )


def categories(spec: DatasetSpec) -> list[dict[str, Any]]:
    """Categories of a COCO file; ids are class indices.

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
    """Writes a panoptic map in COCO's panoptic format.

    Args:
        panoptic: `class * divisor + instance`; `spec.ignore * divisor` where void.
        spec: the classes. Pixels of a thing class without a number become one segment with iscrowd 1.
        divisor: that of the map.
        image_id: id of the image in the JSON.
        file_name: of the PNG, which the caller saves.

    Returns:
        Pixels of the PNG, whose ids are those of the map plus 1 since COCO's 0 is void; and the annotation.

    Raises:
        UserError: an id does not fit three bytes.

    Example:
        >>> spec = DatasetSpec(("sky", "bird"), things=(1,))
        >>> pixels, annotation = panoptic_annotation(np.array([[255000, 1002]]), spec, 1000, 7, "7.png")
        >>> rgb_to_id(pixels)
        array([[   0, 1003]], dtype=int32)
        >>> annotation["segments_info"]
        [{'id': 1003, 'category_id': 1, 'area': 1, 'bbox': [1, 0, 1, 1], 'iscrowd': 0}]
    """
    ids = np.where(panoptic // divisor == spec.ignore, 0, panoptic + 1)
    if ids.max(initial=0) >= 1 << 24:
        raise UserError(f"{file_name}: segment id {ids.max()} needs more than three bytes; take a smaller divisor.")
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
    """Writes the objects of an image in COCO's instance format.

    The format has no stuff and no void: what is neither an object nor a crowd is background in it.

    Args:
        label: class of each pixel.
        instance: number of each object, 1 .. n.
        spec: the classes. Pixels of a thing class without a number become one annotation with iscrowd 1.
        image_id: id of the image in the JSON.
        scores: of detections: how sure object 1, 2, .. n is. There are no crowds then.

    Returns:
        An annotation each, with masks as compressed run lengths; ids count from 1 in the image, see `dump`.

    Raises:
        UserError: pycocotools is not installed.

    Example:
        >>> label, instance = np.array([[0, 1]], np.uint8), np.array([[0, 1]], np.uint16)
        >>> (found,) = instance_annotations(label, instance, DatasetSpec(("sky", "bird"), things=(1,)), 7)
        >>> found["segmentation"], found["bbox"]
        ({'size': [1, 2], 'counts': '11'}, [1.0, 0.0, 1.0, 1.0])
    """
    tools = rle.coco_tools().mask
    found = zip(*rle.encode(label, instance, spec.things), strict=True)
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


def dump(
    path: str | os.PathLike,
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    spec: DatasetSpec,
) -> None:
    """Writes a COCO file.

    Args:
        path: JSON file.
        images: "id", "file_name", "height" and "width" of each.
        annotations: from `panoptic_annotation` or `instance_annotations`, of all images; the ids of objects are
            counted anew, since they must differ over the whole file.
        spec: the classes.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     dump(file.name, [], [], DatasetSpec(("sky",)))
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
        "categories": categories(spec),
    }
    Path(path).write_text(json.dumps(content), encoding="utf-8")
