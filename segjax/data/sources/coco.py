"""Sources in COCO's panoptic format (PNGs of segment ids) and instance format (polygons and run lengths in JSON)."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Annotated

import numpy as np

from segjax.checks import Key, UserError, first_names
from segjax.data import files
from segjax.data import reading as reader
from segjax.data.coco import check, colours, read
from segjax.data.formats.opening import DEFAULT, Reading
from segjax.data.ids import make_spec
from segjax.data.instances import ObjectMask, from_segments, rasterise_masks, without_data
from segjax.rle import coco_tools
from segjax.spec import DatasetSpec

log = logging.getLogger("segjax")


@dataclasses.dataclass(frozen=True, eq=False)
class Coco:
    """Images and their annotations in a JSON file; made by `coco_panoptic` and `coco_instances`.

    Attributes:
        spec: facts about the labels.
        records: contents of the file.
        known: class index of each category; None for stuff in `coco_instances`.
        folder: folder of the images.
        images: file of each image.
        masks: PNG of segment ids of each image; None if the JSON file holds the masks.
        channels: number of image channels.
        reading: what is made of orientation, transparency and so on.
        warnings: which annotations were left out.
    """

    spec: DatasetSpec
    records: read.Records
    known: dict[int | str, int | None]
    folder: Path
    images: tuple[Path, ...]
    masks: tuple[Path, ...] | None
    channels: int
    reading: Reading
    warnings: tuple[str, ...] = ()

    def __len__(self):
        return len(self.records.images)

    def name(self, i: int) -> str:
        """The path of image i in the folder of the images, without its extension."""
        path = self.images[i]
        if path.is_relative_to(self.folder):
            path = path.relative_to(self.folder)
        else:  # another folder of the data set
            path = Path(os.path.relpath(path, self.folder).replace("../", "").lstrip("/"))
        return os.path.splitext(path.as_posix())[0]

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of image i as stated in the JSON file, else from its header; `read` checks them."""
        return self._stated_size(i) or reader.read_size(self.images[i], reading=self.reading)

    def _stated_size(self, i):
        image = self.records.images[i]
        return None if image["height"] is None else (image["height"], image["width"])

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
        path, listed = self.images[i], f"{self.records.path} (image {entry['id']})"
        image, empty = reader.read_image(
            path,
            self.channels,
            self.spec.image_dtype,
            reading=self.reading,
            size=self._stated_size(i),
            stated_by=listed,
        )
        size = image.shape[:2]
        annotations = self.records.annotations[entry["id"]]
        if self.masks is None:
            label, instance = self._objects(annotations, size, listed)
        else:
            label, instance = self._segments(annotations, self.masks[i], size, listed)
        return without_data({"image": image, "label": label, "instance": instance}, empty, self.spec)

    def _objects(self, annotations, size, listed):
        masks = []
        for annotation in annotations:
            where = f"{self.records.path}: annotation {annotation['id']}"
            label = read.class_of_category(annotation, self.known, where)
            inside = read.rasterise(annotation["segmentation"], size, where)
            masks.append(ObjectMask.of(inside, label, bool(annotation["iscrowd"])))
        return rasterise_masks(masks, size, self.spec, listed)

    def _segments(self, annotations, path, size, listed):
        (annotation,) = annotations
        segments = {}
        for place, segment in enumerate(annotation["segments_info"]):
            read.require_keys(segment, ("id", "category_id"), f"{listed}: segments_info[{place}]")
            if isinstance(segment["id"], str):
                raise UserError(f"{listed}: segment id {segment['id']!r} is a text; the ids of a PNG are numbers.")
            label = read.class_of_category(segment, self.known, f"{listed}: segment {segment['id']}")
            if segment["id"] in segments:
                raise UserError(f"{listed}: segment {segment['id']} is listed twice.")
            segments[segment["id"]] = label, bool(read.flag(segment, "iscrowd", f"{listed}: segment {segment['id']}"))
        ids = reader.read_instances(path, colours=True, reading=self.reading)
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
    Pixels of no segment (id 0) are unlabelled; segments with iscrowd 1 are crowds. Files must lie in `root`.

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
    folder = base / files.fill_split(images, "images", split)
    places = _files("images", base, folder, records.path, _image_names(records))
    names = {key: (annotation["file_name"],) for key, (annotation,) in records.annotations.items()}
    ground_truth = _files("masks", base, base / files.fill_split(masks, "masks", split), records.path, names)
    things = [k for k, category in enumerate(records.categories) if category["isthing"]]
    _check_names(records.path, records.categories)
    names = [category["name"] for category in records.categories]
    palette, unread = colours.palette_of(records.categories, records.path)
    spec = make_spec(names, palette, things, channels=channels, dtype=reader.common_dtype(places))
    known = {category["id"]: k for k, category in enumerate(records.categories)}
    _log([unread])
    return Coco(spec, records, known, folder, places, ground_truth, channels, reading)


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
    without objects are all background. Files must lie in `root`.

    Files of third parties: sizes that are missing are those of the pictures, `iscrowd` is then 0; objects without an
    outline are left out and counted; a root category, which is the supercategory of others, has none itself and
    no objects (Roboflow), is no class.

    LVIS: images are found by their `coco_url` under `images`, with or without its folder (set images = "."). LVIS
    outlines the objects of some categories in each image only: those of its annotations are outlined fully unless they
    are among `not_exhaustive_category_ids`, those of `neg_category_ids` are surely absent, all others may be there
    without an outline. Such pixels are background here: a right prediction there counts as wrong, so that scores are
    lower than those of LVIS, which leaves these categories of the image out.

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
    places = _files("images", base, folder, records.path, _image_names(records))
    categories = [category for category in _without_root(records) if category["isthing"]]
    _check_names(records.path, categories, taken=("background",))
    known = {category["id"]: None for category in records.categories}
    known |= {category["id"]: k for k, category in enumerate(categories, 1)}
    records, left_out = check.check_objects(records, known)
    names = ["background", *(category["name"] for category in categories)]
    palette, unread = colours.palette_of(categories, records.path, first=1)
    palette = palette and [(0, 0, 0), *palette]
    spec = make_spec(names, palette, range(1, len(names)), channels=channels, dtype=reader.common_dtype(places))
    _log([*left_out, unread])
    return Coco(spec, records, known, folder, places, None, channels, reading, tuple(left_out))


def _without_root(records):
    """Categories without those that only group others: Roboflow's exports have one."""
    used = {annotation["category_id"] for each in records.annotations.values() for annotation in each}
    groups = [(category["name"], category.get("supercategory")) for category in records.categories]
    parents = [parent for name, parent in groups if name != parent]
    return [
        category
        for category in records.categories
        if category["id"] in used
        or category.get("supercategory") not in (None, "", "none")
        or category["name"] not in parents
    ]


def _log(warnings):
    for warning in filter(None, warnings):
        log.warning(warning)


def _image_names(records):
    """Names of the file of each image; LVIS tells its address only, whose folder may be that of the images."""
    names = {}
    for image in records.images:
        name = image["file_name"]
        names[image["id"]] = (name, name.rpartition("/")[2]) if "coco_url" in image else (name,)
    return names


def _files(key, base, folder, path, names):
    """Finds the file of each image, by the first of its names that exists; raises a UserError if some are missing."""
    found, missing = [], []
    for i, each in names.items():
        places = [files.inside(base, name, f"{path} (image {i})", folder) for name in each]
        place = next(filter(os.path.isfile, places), None)
        if place is None:
            missing.append(f"{each[0]} (image {i})")
        found.append(place)
    if missing:
        raise UserError(
            f"source.{key}: {len(missing)} of {len(names)} files that {path} names are not in {folder}: "
            f"{first_names(missing)}."
        )
    return tuple(found)


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
