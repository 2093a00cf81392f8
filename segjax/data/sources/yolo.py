"""Source in Ultralytics' segmentation format: images and text files of polygons."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from segjax.checks import Key, UserError
from segjax.data import files, ultralytics
from segjax.data import reading as reader
from segjax.data.coco.read import rasterise
from segjax.data.formats.opening import DEFAULT, Reading
from segjax.data.ids import DictLike, class_list, make_spec
from segjax.data.instances import ObjectMask, rasterise_masks, without_data
from segjax.rle import coco_tools
from segjax.spec import DatasetSpec

# How far outside the image a point may lie, as a fraction of its side: tools round points.
TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Yolo:
    """Images and their text files; made by `yolo`.

    Attributes:
        spec: facts about the labels.
        stems: name of each image.
        images: file of each image.
        labels: text file of each image; None if it has none.
        channels: number of image channels.
        reading: what is made of orientation, transparency and so on.
    """

    spec: DatasetSpec
    stems: tuple[str, ...]
    images: tuple[Path, ...]
    labels: tuple[Path | None, ...]
    channels: int
    reading: Reading

    def __len__(self):
        return len(self.stems)

    def name(self, i: int) -> str:
        """The stem of image i: the part of its path that differs from image to image."""
        return self.stems[i]

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of image i, from the header of its file."""
        return reader.read_size(self.images[i], reading=self.reading)

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Reads sample i.

        Args:
            i: sample.

        Returns:
            "image": `spec.image_dtype` [y, x, c]; "label": `spec.label_dtype` [y, x]; "instance": uint16 [y, x].

        Raises:
            CorruptImage: the image cannot be decoded.
            UserError: a line of the text file is invalid; the message names the file and the line.
        """
        image, empty = reader.read_image(self.images[i], self.channels, self.spec.image_dtype, reading=self.reading)
        size, path = image.shape[:2], self.labels[i]
        lines = [] if path is None else files.read_text(path).splitlines()
        masks = [_mask(text, size, self.spec, f"{path}, line {n}") for n, text in enumerate(lines, 1) if text.strip()]
        label, instance = rasterise_masks(masks, size, self.spec, str(path))
        return without_data({"image": image, "label": label, "instance": instance}, empty, self.spec)


def yolo(
    split: str,
    *,
    channels: int = 3,
    reading: Reading = DEFAULT,
    root: Annotated[str, Key("folder of the data set; ~, $VARIABLES and, here and below, {split} are expanded")],
    images: Annotated[str, Key("folder under root, or a path template with {stem}")] = "images/{split}",
    labels: Annotated[str, Key("path template of the text files")] = "labels/{split}/{stem}.txt",
    yaml: Annotated[
        str | None, Key("data.yaml of Ultralytics under root, which has the classes and the images of each split")
    ] = None,
    classes: Annotated[
        Sequence[str] | DictLike | None,
        Key("class names in the order of the class numbers, without the background; None: those of the yaml"),
    ] = None,
    palette: Annotated[
        Sequence[Sequence[int]] | None,
        Key("a colour per class, the background first, for pictures; None: the PASCAL VOC colours"),
    ] = None,
) -> Yolo:
    """Opens a data set in Ultralytics' format, with a text file of polygons per image.

    A line is an object: its class, counted from 0, and the corners x y x y .. of its outline as fractions of the image
    width and height. Class 0 of the source is "background", a stuff class; class c of the files becomes class c + 1.
    Smaller objects lie on top of larger ones; hidden objects are left out. An image without a text file is all
    background; a text file without an image is an error, unless it is called classes.txt.

    With `yaml`, the split is a key of that file: a folder, a text file that lists images, or a list of both. The text
    file of an image is where the last folder called images is called labels. All must lie in `root`.

    Args:
        split: name of the split, such as "train2017"; with `yaml`, a key of that file, such as "val".
        channels: number of image channels, see `reading.read_image`.
        reading: what is made of orientation, transparency and so on.

    Returns:
        The source, in natural order of the stems.

    Raises:
        UserError: pycocotools is not installed, there are no images or no text files, or a text file has no image.

    Example:
        >>> source = yolo("train2017", root="coco128-seg", classes=("person", "bicycle"))  # doctest: +SKIP
    """
    coco_tools()
    base = files.dataset_root(root, split)
    if (yaml is None) == (classes is None):
        raise UserError("source: give either source.classes or source.yaml, the data.yaml that names the classes.")
    if yaml is None:
        names, found = class_list(classes), _find(base, images, labels, split)
    else:
        path = base / files.fill_split(yaml, "yaml", split)
        found = ultralytics.open_split(path, base, split)
        names = class_list(found.classes, f"{path}: names")
    things, dtype = range(1, len(names) + 1), reader.common_dtype(found.images)
    spec = make_spec(["background", *names], palette, things, channels=channels, dtype=dtype)
    return Yolo(spec, found.stems, found.images, found.labels, channels, reading)


def _find(base, images, labels, split):
    """Finds images and text files by their templates."""
    image_path, label_path = files.fill_split(images, "images", split), files.fill_split(labels, "labels", split)
    image_files, label_files = files.find_files(base, image_path), files.find_files(base, label_path)
    for key, path, found in (("images", image_path, image_files), ("labels", label_path, label_files)):
        if not image_files.keys() & found.keys():
            raise UserError(f"source.{key}: no matching file at {base / path} for split {split!r}.")
    alone = (label_files[stem] for stem in sorted(label_files.keys() - image_files.keys(), key=files.natural_key))
    if orphans := [path for path in alone if path.name != "classes.txt"]:
        raise UserError(
            f"source.labels: {len(orphans)} of {len(label_files)} text files match no image at {base / image_path}, "
            f"such as {orphans[0]}. Remove them, or fix the names or source.images."
        )
    stems = tuple(sorted(image_files, key=files.natural_key))
    return ultralytics.Images(
        None, stems, tuple(image_files[stem] for stem in stems), tuple(label_files.get(stem) for stem in stems)
    )


def _mask(text, size, spec, where):
    """Draws the object of a line; `where` has its file and number."""
    try:
        first, *points = (float(word) for word in text.split())
    except ValueError as error:
        raise UserError(f"{where}: {error}; a line must be a class and numbers x y x y ...") from error
    if first not in range(len(spec.classes) - 1):
        raise UserError(f"{where}: class {first:g} is not one of 0 to {len(spec.classes) - 2}; check source.classes.")
    if len(points) % 2:
        raise UserError(f"{where}: {len(points)} coordinates; they must be pairs x y.")
    if len(points) < 6:
        raise UserError(f"{where}: an outline needs three points, but has {len(points) // 2}. Boxes are not outlines.")
    if invalid := [value for value in points if not -TOLERANCE <= value <= 1 + TOLERANCE or math.isnan(value)]:
        raise UserError(f"{where}: the coordinate {invalid[0]:g} is not a fraction of the image's side, 0 to 1.")
    rows, columns = size
    corners = np.clip(np.reshape(points, (-1, 2)), 0, 1) * (columns, rows)
    return ObjectMask.of(rasterise([corners.ravel().tolist()], size, where), int(first) + 1)
