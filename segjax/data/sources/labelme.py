"""Source of LabelMe's JSON files: an image and its shapes each."""

import base64
import binascii
import dataclasses
import logging
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageDraw

from segjax.checks import Key, UserError, spread
from segjax.data import files, json_files, splits
from segjax.data import reading as reader
from segjax.data.coco import polygons
from segjax.data.formats.opening import DEFAULT, Reading
from segjax.data.ids import DictLike, class_list, make_spec
from segjax.data.instances import number_instances, without_data
from segjax.spec import DatasetSpec

log = logging.getLogger("segjax")

# Shapes without an area, and the number of points of those that have one.
THIN = ("line", "linestrip", "point", "points")
POINTS = {"rectangle": (2, 2), "circle": (2, 2), "mask": (2, 2), "oriented_rectangle": (4, 4), "polygon": (3, None)}
# Labels that labelme's own converters know.
BACKGROUND, IGNORE = "_background_", "__ignore__"


@dataclasses.dataclass(frozen=True, eq=False)
class LabelMe:
    """JSON files and the images that they name; made by `labelme`.

    Attributes:
        spec: facts about the labels.
        root: folder of the data set, which holds all files.
        stems: name of each sample.
        annotations: JSON file of each sample.
        channels: number of image channels.
        reading: what is made of orientation, transparency and so on.
        said: kinds of shapes that are left out, and have been warned of.
    """

    spec: DatasetSpec
    root: Path
    stems: tuple[str, ...]
    annotations: tuple[Path, ...]
    channels: int
    reading: Reading
    said: set[str] = dataclasses.field(default_factory=set)

    def __len__(self):
        return len(self.stems)

    def name(self, i: int) -> str:
        """The stem of sample i: the part of its path that differs from sample to sample."""
        return self.stems[i]

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of image i as stated in its JSON file, else from its header; `read` checks them."""
        content = _read(self.annotations[i])
        file, name = _image(content, self.annotations[i], self.root)
        return _stated_size(content, self.annotations[i]) or reader.read_size(file, name, reading=self.reading)

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Reads sample i.

        Args:
            i: sample.

        Returns:
            "image": `spec.image_dtype` [y, x, c]; "label": `spec.label_dtype` [y, x]; "instance": uint16 [y, x].

        Raises:
            CorruptImage: the image cannot be decoded.
            UserError: sizes differ, or a shape is invalid; the message names the file and the shape.
        """
        path = self.annotations[i]
        content = _read(path)
        file, name = _image(content, path, self.root)
        image, empty = reader.read_image(
            file,
            self.channels,
            self.spec.image_dtype,
            name,
            reading=self.reading,
            size=_stated_size(content, path),
            stated_by=str(path),
        )
        label, instance = self._draw(content["shapes"], image.shape[:2], path)
        return without_data({"image": image, "label": label, "instance": instance}, empty, self.spec)

    def _draw(self, shapes, size, path):
        """Draws shapes in their order, as labelme does: later ones on top."""
        label, ids = np.zeros(size, self.spec.label_dtype), np.zeros(size, np.int32)
        groups: dict[tuple, int] = {}
        for place, shape in enumerate(shapes):
            where = f"{path}: shapes[{place}]"
            k, kind = self._class(shape, where), shape.get("shape_type") or "polygon"
            if kind in THIN:
                if kind not in self.said:
                    self.said.add(kind)
                    log.warning("%s: a %s has no area and is left out, like all others of the data set.", where, kind)
                continue
            inside = _mask(shape, kind, size, where)
            group = shape.get("group_id")
            if not isinstance(group, int | str | None):
                raise UserError(f"{where}: group_id must be a number, not {reprlib.repr(group)}.")
            key = (k, None, place) if group is None else (k, group)
            label[inside] = k
            ids[inside] = groups.setdefault(key, len(groups) + 1) if k in self.spec.things else 0
        return label, number_instances(ids, label, self.spec, str(path), allow_crowds=True)

    def _class(self, shape, where):
        """Class index of a shape, `spec.ignore` for __ignore__."""
        name = shape.get("label") if isinstance(shape, Mapping) else None
        if name in (BACKGROUND, IGNORE):
            return 0 if name == BACKGROUND else self.spec.ignore
        if not isinstance(name, str) or name not in self.spec.classes[1:]:
            raise UserError(
                f"{where} has the label {reprlib.repr(name)}, which is not one of source.classes: "
                f"{', '.join(self.spec.classes[1:])}."
            )
        return self.spec.classes.index(name)


def labelme(
    split: str,
    *,
    channels: int = 3,
    reading: Reading = DEFAULT,
    root: Annotated[str, Key("folder of the data set; ~, $VARIABLES and, here and below, {split} are expanded")],
    annotations: Annotated[str, Key("folder of the JSON files under root, or a path template with {stem}")] = "{split}",
    classes: Annotated[
        Sequence[str] | DictLike | str,
        Key("names of the labels, without the background, or a text file under root with one name per line"),
    ],
    palette: Annotated[
        Sequence[Sequence[int]] | None,
        Key("a colour per class, the background first, for pictures; None: the PASCAL VOC colours"),
    ] = None,
    lists: Annotated[
        str | None, Key('text file under root with the stems of a split, such as "splits/{split}.txt"')
    ] = None,
    fractions: Annotated[
        DictLike | None, Key("split -> (from, to): contiguous fractions of the sorted stems", "[0, 1]")
    ] = None,
) -> LabelMe:
    """Opens a data set of LabelMe's JSON files, each with an image: beside it, named by imagePath, or inside.

    Class 0 is "background", a stuff class; the labels follow as things. Shapes are drawn as labelme's own converters
    draw them, in file order, so that later ones lie on top: polygons, rectangles, circles and masks. Shapes with one
    label and group_id are one object. Points and lines have no area: they are left out with a warning. The label
    __ignore__ makes pixels unlabelled, _background_ background.

    A split is {split} in `annotations` or `root`, a list of stems, or fractions, as in the source `folder`. An image
    must lie in `root`. If there is no such file, the image inside of the JSON file is read.

    Args:
        split: name of the split, such as "train".
        channels: number of image channels, see `reading.read_image`.
        reading: what is made of orientation, transparency and so on.

    Returns:
        The source, in natural order of the stems.

    Raises:
        UserError: there are no JSON files, or the split is not defined in exactly one way.

    Example:
        >>> import json, tempfile
        >>> shape = {"label": "cat", "points": [[0, 0], [1, 1]], "shape_type": "rectangle"}
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "train").mkdir()
        ...     Image.new("RGB", (4, 3)).save(Path(root, "train", "1.png"))
        ...     text = json.dumps({"imagePath": "1.png", "shapes": [shape], "imageHeight": 3, "imageWidth": 4})
        ...     size = Path(root, "train", "1.json").write_text(text)
        ...     labelme("train", root=root, classes=("cat",)).read(0)["label"]
        array([[1, 1, 0, 0],
               [1, 1, 0, 0],
               [0, 0, 0, 0]], dtype=uint8)
    """
    wild = any("{split}" in text for text in (root, annotations))
    if (lists is not None) + (fractions is not None) + (wild and lists is None) != 1:
        raise UserError(
            f"source: define split {split!r} in exactly one way: with {{split}} in source.annotations, with "
            "source.lists (a file of stems), or with source.fractions."
        )
    base = files.dataset_root(root, split)
    template = files.fill_split(annotations, "annotations", split) or "."
    found = files.find_files(base, template if "{stem}" in template else f"{template}/{{stem}}.json")
    if not found:
        raise UserError(f"source.annotations: no JSON file at {base / template} for split {split!r}.")
    stems = sorted(found, key=files.natural_key)
    if lists is not None:
        stems = splits.select_listed(base / files.fill_split(lists, "lists", split), {key: found[key] for key in stems})
    if fractions is not None:
        stems = splits.select_fraction(stems, dict(fractions.items()), split)
    if isinstance(classes, str):
        names = files.read_lines(base / classes, "classes")
        names = [name for name in names if name not in (BACKGROUND, IGNORE)]  # as in labelme's labels.txt
    else:
        names = class_list(classes)
    paths = tuple(found[stem] for stem in stems)
    images = [_image(_read(path), path, base)[0] for path in spread(paths)]
    things, dtype = range(1, len(names) + 1), reader.common_dtype(images)
    spec = make_spec(["background", *names], palette, things, channels=channels, dtype=dtype)
    return LabelMe(spec, base, tuple(stems), paths, channels, reading)


def _read(path):
    content = json_files.read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError(f"{path} is not a file of LabelMe: it has no list of shapes.")
    return content


def _image(content, path, root):
    """The image of a JSON file, a path or its bytes, and its name in messages."""
    name, inner = content.get("imagePath"), content.get("imageData")
    if isinstance(name, str) and name:
        try:
            image = files.inside(root, name, str(path), path.parent)
        except UserError:
            if not inner:
                raise
        else:
            if os.path.isfile(image):
                return image, str(image)
    if not isinstance(inner, str) or not inner:
        raise UserError(f"{path} names the image {reprlib.repr(name)}, which is not there, and holds no image itself.")
    return _decoded(inner, f"{path}: imageData"), f"{path} (imageData)"


def _decoded(text, where):
    try:
        return base64.b64decode(text, validate=False)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{where} is not base64 ({error}).") from error


def _stated_size(content, path):
    """Rows and columns that a JSON file states; None if it states none."""
    size = content.get("imageHeight"), content.get("imageWidth")
    if size == (None, None):
        return None
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"{path}: imageHeight and imageWidth must be whole numbers, not {reprlib.repr(size)}.")
    polygons.check_size(*size, str(path))
    return size


def _mask(shape, kind, size, where):
    """Pixels of a shape, drawn as labelme's `shape_to_mask` does."""
    points = _points(shape.get("points"), kind, size, where)
    if kind == "mask":
        return _stored_mask(shape.get("mask"), points, size, where)
    picture = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(picture)
    if kind == "circle":
        (x, y), (other_x, other_y) = points
        radius = math.hypot(x - other_x, y - other_y)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    elif kind == "rectangle":
        xs, ys = zip(*points, strict=True)
        draw.rectangle((min(xs), min(ys), max(xs), max(ys)), outline=1, fill=1)
    else:
        polygons.check_outline(points, where)
        draw.polygon(points, outline=1, fill=1)
    return np.array(picture, bool)


def _points(points: Any, kind, size, where):
    """Points of a shape, checked and bounded before Pillow sees them."""
    if not isinstance(kind, str) or kind not in POINTS:
        raise UserError(f"{where} has the shape_type {reprlib.repr(kind)}; known are {', '.join([*POINTS, *THIN])}.")
    least, most = POINTS[kind]
    if not isinstance(points, list) or len(points) < least or (most and len(points) > most):
        raise UserError(f"{where}: a {kind} needs {least}{'' if most else ' or more'} points [x, y].")
    pairs = all(isinstance(point, list) and len(point) == 2 for point in points)
    flat = [value for point in points for value in point] if pairs else []
    # Of a polygon's rules those count that concern the numbers: repeat shapes of two points.
    if fault := polygons.fault([flat * 2], size) if pairs else "points must be pairs [x, y]":
        raise UserError(f"{where}: {fault}.")
    return [(float(x), float(y)) for x, y in points]


def _stored_mask(text, points, size, where):
    """Pixels of a mask shape: a PNG that lies at its first point."""
    if not isinstance(text, str):
        raise UserError(f"{where}: a mask needs its picture, a base64 PNG.")
    picture, name = _decoded(text, where), f"{where} (mask)"
    (left, top), (right, bottom) = [(int(x), int(y)) for x, y in points]
    rows, columns = size
    own, stated = reader.read_size(picture, name), (bottom - top + 1, right - left + 1)
    if own != stated:
        raise UserError(
            f"{where}: its mask has {own[0]} x {own[1]} pixels (rows x columns), but its points are those of "
            f"{stated[0]} x {stated[1]}."
        )
    if top < 0 or left < 0 or bottom >= rows or right >= columns:
        raise UserError(f"{where}: its mask reaches out of the image, which is {rows} x {columns} (rows x columns).")
    inside = np.zeros(size, bool)
    inside[top : bottom + 1, left : right + 1] = reader.read_mask(picture, name=name).ids != 0
    return inside
