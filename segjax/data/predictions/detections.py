"""Predictions in COCO's format of results: a JSON file of objects with masks or boxes, and scores."""

import collections
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segjax.checks import UserError, first_names
from segjax.data.coco import read
from segjax.data.coco.objects import annotated_objects, box_of, encode_mask, number
from segjax.data.predictions.entries import open_entries
from segjax.data.sources.coco import Coco
from segjax.metrics.instance import Objects
from segjax.rle import coco_tools
from segjax.spec import DatasetSpec

log = logging.getLogger("segjax")


class Detection(NamedTuple):
    """One entry of the file: its mask as it stands there, its class and score, and where it stands."""

    segmentation: Any
    label: int
    score: float
    area: float | None  # None: that of the mask
    box: list[float] | None  # None: that of the mask
    where: str


class Detections(NamedTuple):
    """Detected objects of a split.

    source: the split.
    spec: the data set.
    found: detections of each sample, in file order.
    """

    source: Any
    spec: DatasetSpec
    found: list[list[Detection]]

    def read(self, i: int, sample: dict[str, np.ndarray]) -> Objects:
        """Reads the objects of sample i as a model's own evaluation has them: their masks, on labelled pixels only."""
        labelled, found, rles = sample["label"] != self.spec.ignore, [], []
        for one in self.found[i]:
            inside = read.rasterise(one.segmentation, labelled.shape, one.where) & labelled
            if inside.any():
                found.append(one)
                rles.append(encode_mask(inside))
        return Objects(rles, *_classes_and_scores(found), np.zeros(len(found), bool), labelled.shape)


class CocoDetections(NamedTuple):
    """Detected objects of a split in COCO's instance format, scored as pycocotools scores the two files.

    The classes are the things in the order of their category ids, and the images come in the order of their ids, as in
    pycocotools: numbers are equal bit by bit.

    source: the split.
    spec: the background, and the things in that order.
    ranks: class in `spec` of each class of the source.
    found: detections of each sample, in file order.
    """

    source: Coco
    spec: DatasetSpec
    ranks: dict[int, int]
    found: list[list[Detection]]

    def order(self) -> list[int]:
        """Samples in the order of their image ids."""
        ids = [image["id"] for image in self.source.records.images]
        return sorted(range(len(ids)), key=lambda i: (isinstance(ids[i], str), ids[i]))

    def ground_truth(self, i: int) -> Objects:
        """Returns the annotated objects of sample i."""
        true = annotated_objects(self.source, i)
        return true._replace(classes=np.array([self.ranks[int(c)] for c in true.classes], np.int64))

    def read(self, i: int, sample: dict[str, Any]) -> Objects:
        """Reads the objects of sample i, with area and box as pycocotools takes them from the file."""
        found, size, tools = self.found[i], self.source.size(i), coco_tools().mask
        rles = [encode_mask(read.rasterise(one.segmentation, size, one.where)) for one in found]
        pairs = list(zip(rles, found, strict=True))
        areas = [float(tools.area(rle)) if one.area is None else one.area for rle, one in pairs]
        boxes = [tools.toBbox(rle).tolist() if one.box is None else one.box for rle, one in pairs]
        classes, scores = _classes_and_scores(found)
        classes = np.array([self.ranks[int(c)] for c in classes], np.int64)
        areas, boxes = np.array(areas, np.float64), np.array(boxes, np.float64).reshape(-1, 4)
        return Objects(rles, classes, scores, np.zeros(len(found), bool), size, areas, boxes)


def open_detections(path: Path, content: Any, source: Any, spec: DatasetSpec) -> Detections | CocoDetections:
    """Opens a JSON file of detections.

    Areas and boxes are those that pycocotools takes. In a list, `loadRes` decides by the first entry: if it has a box,
    each area is that of the box, otherwise that of the mask. In an object with "annotations", as `segjax predict`
    writes it, each area is the entry's own.

    Args:
        path: the file.
        content: its content: a list of results, or an object with "annotations".
        source: the split.
        spec: the data set.

    Returns:
        The detections. Images without any count as images in which nothing was found; a list that has no entry of an
        image is not an error, but is said.

    Raises:
        UserError: an entry is invalid, or the file lists images, but not all of the split.
    """
    entries = open_entries(path, content, source, ("image_id", "category_id", "score"))
    if entries.listed is not None:
        entries.names.check_complete(entries.listed, path)
    plain = isinstance(content, list)
    boxed = plain and bool(content) and bool(content[0].get("bbox"))
    found = collections.defaultdict(list)
    for sample, place, entry in entries.of_samples:
        where = f"{path}: {'' if plain else 'annotations'}[{place}]"
        label = entries.categories.find(entry, where)
        if label not in spec.things:
            raise UserError(
                f"{where} has category_id {entry['category_id']!r}, {spec.classes[label]}: that is no thing."
            )
        box = box_of(entry, where) if boxed or entry.get("bbox") else None
        area = box[2] * box[3] if boxed else None if plain or "area" not in entry else number(entry, "area", where)
        mask = entry["segmentation"] if "segmentation" in entry else _corners(box, source.size(sample), where)
        found[sample].append(Detection(mask, label, number(entry, "score", where), area, box, where))
    if entries.listed is None and (empty := [name for i, name in enumerate(entries.names.names) if i not in found]):
        text = "%s: nothing is detected in %d of %d images: %s"
        log.warning(text, path, len(empty), len(source), first_names(empty))
    found = [found[i] for i in range(len(source))]
    if not isinstance(source, Coco) or source.masks is not None:
        return Detections(source, spec, found)
    if any(one["id"] == 0 for annotations in source.records.annotations.values() for one in annotations):
        text = "%s: an annotation has id 0, which pycocotools never matches, and so is not matched; count ids from 1"
        log.warning(text, source.records.path)
    keys = {k: key for key, k in source.known.items() if k is not None}
    things = sorted(keys, key=lambda k: (isinstance(keys[k], str), keys[k]))
    ranked = DatasetSpec(("background", *(spec.classes[k] for k in things)), things=tuple(range(1, len(things) + 1)))
    return CocoDetections(source, ranked, {k: rank for rank, k in enumerate(things, 1)}, found)


def _corners(box, size, where):
    """Makes the polygon of a box, as pycocotools' loadRes does; what lies far outside of the image draws no pixel."""
    if box is None:
        raise UserError(f"{where} has neither a segmentation nor a bbox.")
    left, top, width, height = box
    left, right = np.clip([left, left + width], -1, size[1] + 1).tolist()
    top, bottom = np.clip([top, top + height], -1, size[0] + 1).tolist()
    return [[left, top, left, bottom, right, bottom, right, top]]


def _classes_and_scores(found):
    return np.array([one.label for one in found], np.int64), np.array([one.score for one in found], np.float64)
