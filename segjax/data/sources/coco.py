"""Sources in COCO's panoptic format (PNGs of segment ids) and instance format (polygons and run lengths in JSON)."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import numpy as np

from segjax.checks import Key, UserError
from segjax.data import files
from segjax.data import reading as reader
from segjax.data.coco import read
from segjax.data.formats.opening import DEFAULT, Reading
from segjax.data.ids import make_spec
from segjax.data.instances import ObjectMask, from_segments, rasterise_masks, without_data
from segjax.rle import coco_tools
from segjax.spec import DatasetSpec


@dataclasses.dataclass(frozen=True, eq=False)
class Coco:
    """Images and their annotations in a JSON file; made by `coco_panoptic` and `coco_instances`.

    Attributes:
        spec: facts about the labels.
        records: contents of the file.
        known: class index of each category; None for stuff in `coco_instances`.
        images: folder of the images.
        masks: folder of the PNGs of segment ids; None if the JSON file holds the masks.
        channels: number of image channels.
        reading: what is made of orientation, transparency and so on.
    """

    spec: DatasetSpec
    records: read.Records
    known: dict[int | str, int | None]
    images: Path
    masks: Path | None
    channels: int
    reading: Reading

    def __len__(self):
        return len(self.records.images)

    def name(self, i: int) -> str:
        """The file name of image i without its extension."""
        return os.path.splitext(self.records.images[i]["file_name"])[0]

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of image i as stated in the JSON file; `read` checks them against the image."""
        return self.records.images[i]["height"], self.records.images[i]["width"]

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Reads sample i.

        Args:
            i: sample.

        Returns:
            "image": `spec.image_dtype` [y, x, c]; "label": `spec.label_dtype` [y, x]; "instance": uint16 [y, x].

        Raises:
            CorruptImage: a file cannot be decoded.
            UserError: sizes differ, or an annotation is invalid; the message names the file and the id.
        """
        entry = self.records.images[i]
        path, listed = self.images / entry["file_name"], f"{self.records.path} (image {entry['id']})"
        size = self.size(i)
        image, empty = reader.read_image(path, self.channels, self.spec.image_dtype, reading=self.reading, size=size)
        reader.check_sizes(image.shape[:2], size, str(path), listed)
        annotations = self.records.annotations[entry["id"]]
        ground_truth = self._objects if self.masks is None else self._segments
        label, instance = ground_truth(annotations, size, listed)
        return without_data({"image": image, "label": label, "instance": instance}, empty, self.spec)

    def _objects(self, annotations, size, listed):
        masks = []
        for annotation in annotations:
            where = f"{self.records.path}: annotation {annotation['id']}"
            label = read.class_of_category(annotation, self.known, where)
            masks.append(
                ObjectMask(read.rasterise(annotation["segmentation"], size, where), label, bool(annotation["iscrowd"]))
            )
        return rasterise_masks(masks, size, self.spec, listed)

    def _segments(self, annotations, size, listed):
        (annotation,) = annotations
        segments = {}
        for place, segment in enumerate(annotation["segments_info"]):
            read.require_keys(segment, ("id", "category_id", "iscrowd"), f"{listed}: segments_info[{place}]")
            label = read.class_of_category(segment, self.known, f"{listed}: segment {segment['id']}")
            if segment["id"] in segments:
                raise UserError(f"{listed}: segment {segment['id']} is listed twice.")
            segments[segment["id"]] = label, bool(segment["iscrowd"])
        path = self.masks / annotation["file_name"]
        ids = reader.read_instances(path, colours=True)
        reader.check_sizes(size, ids.shape, listed, str(path))
        return from_segments(ids, segments, self.spec, str(path), listed)


def coco_panoptic(
    split: str,
    *,
    channels: int = 3,
    reading: Reading = DEFAULT,
    root: Annotated[str, Key("folder of the data set; ~, $VARIABLES and, here and below, {split} are expanded")],
    images: Annotated[str, Key("folder of the images, under root")] = "{split}",
    annotations: Annotated[str, Key("JSON file under root")] = "annotations/panoptic_{split}.json",
    masks: Annotated[str, Key("folder of the PNGs of segment ids, under root")] = "annotations/panoptic_{split}",
) -> Coco:
    """Opens a data set in COCO's panoptic format: a PNG of segment ids per image, and a JSON file about the segments.

    Classes are the categories in file order, things those with isthing 1, and colours those of the file if it has any.
    Pixels of no segment (id 0) are unlabelled; segments with iscrowd 1 are crowds.

    Args:
        split: name of the split, such as "val2017".
        channels: number of image channels, see `reading.read_image`.
        reading: what is made of orientation, transparency and so on.

    Returns:
        The source, in file order.

    Raises:
        UserError: a file is missing, the JSON file is incomplete, or an image has no PNG or several; the message
            names the file and the id.

    Example:
        >>> source = coco_panoptic("val2017", root="$SEGJAX_DATA/coco")  # doctest: +SKIP
    """
    base = files.dataset_root(root, split)
    records = read.read_json(base / files.fill_split(annotations, "annotations", split), read.PANOPTIC)
    for key, found in records.annotations.items():
        if len(found) != 1:
            raise UserError(f"{records.path}: image {key} has {len(found)} annotations; it must have exactly one.")
    folder, ground_truth = (
        base / files.fill_split(images, "images", split),
        base / files.fill_split(masks, "masks", split),
    )
    _check_there("images", folder, records.path, {image["id"]: image["file_name"] for image in records.images})
    _check_there(
        "masks", ground_truth, records.path, {key: a["file_name"] for key, (a,) in records.annotations.items()}
    )
    things = [k for k, category in enumerate(records.categories) if category["isthing"]]
    _check_names(records.path, records.categories)
    names = [category["name"] for category in records.categories]
    dtype = _dtype(folder, records)
    spec = make_spec(names, _colours(records.categories), things, channels=channels, dtype=dtype)
    known = {category["id"]: k for k, category in enumerate(records.categories)}
    return Coco(spec, records, known, folder, ground_truth, channels, reading)


def coco_instances(
    split: str,
    *,
    channels: int = 3,
    reading: Reading = DEFAULT,
    root: Annotated[str, Key("folder of the data set; ~, $VARIABLES and, here and below, {split} are expanded")],
    images: Annotated[str, Key("folder of the images, under root")] = "{split}",
    annotations: Annotated[str, Key("JSON file under root")] = "annotations/instances_{split}.json",
) -> Coco:
    """Opens a data set in COCO's instance format: a JSON file of objects, as polygons or run lengths.

    Class 0 is "background", a stuff class; the categories follow in file order as things, except those with isthing 0.
    Smaller objects lie on top of larger ones, and all objects on top of crowds; hidden objects are left out. Images
    without objects are all background.

    Args:
        split: name of the split, such as "val2017".
        channels: number of image channels, see `reading.read_image`.
        reading: what is made of orientation, transparency and so on.

    Returns:
        The source, in file order.

    Raises:
        UserError: pycocotools is not installed, a file is missing, or the JSON file is incomplete; the message
            names the file and the id.

    Example:
        >>> source = coco_instances("val2017", root="$SEGJAX_DATA/coco")  # doctest: +SKIP
    """
    coco_tools()
    base = files.dataset_root(root, split)
    records = read.read_json(base / files.fill_split(annotations, "annotations", split), read.INSTANCES)
    folder = base / files.fill_split(images, "images", split)
    _check_there("images", folder, records.path, {image["id"]: image["file_name"] for image in records.images})
    categories = [category for category in records.categories if category.get("isthing", 1)]
    colours = _colours(categories)
    _check_names(records.path, categories, taken=("background",))
    names = ["background", *(category["name"] for category in categories)]
    palette, dtype = colours and [(0, 0, 0), *colours], _dtype(folder, records)
    spec = make_spec(names, palette, range(1, len(names)), channels=channels, dtype=dtype)
    known = {category["id"]: None for category in records.categories}
    known |= {category["id"]: k for k, category in enumerate(categories, 1)}
    return Coco(spec, records, known, folder, None, channels, reading)


def _dtype(folder, records):
    return reader.common_dtype([folder / image["file_name"] for image in records.images])


def _colours(categories):
    return [category["color"] for category in categories] if all("color" in c for c in categories) else None


def _check_names(path, categories, taken=()):
    """Raises a UserError unless the names of categories are unique and not among those taken."""
    if not categories:
        raise UserError(f"{path}: there are no categories{' of things (isthing 1)' if taken else ''}; add them.")
    seen = set()
    for category in categories:
        if category["name"] in taken:
            raise UserError(
                f"{path}: category {category['id']} is called {category['name']!r}, as are pixels of no object. Rename "
                "it or, if it has no annotations, remove it or set its isthing to 0."
            )
        if category["name"] in seen:
            raise UserError(f"{path}: two categories are called {category['name']!r}; rename {category['id']}.")
        seen.add(category["name"])


def _check_there(key, folder, path, names):
    """Raises a UserError if a file that the JSON file names is missing."""
    if missing := [(i, name) for i, name in names.items() if not (folder / name).is_file()]:
        raise UserError(
            f"source.{key}: {len(missing)} of {len(names)} files that {path} names are not in {folder}: "
            f"{files.first_names([f'{name} (image {i})' for i, name in missing])}."
        )
