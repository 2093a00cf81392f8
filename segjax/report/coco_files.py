"""Predicted objects as files of COCO's formats: panoptic.json with its PNGs, and instances.json."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segjax import rle
from segjax.checks import UserError
from segjax.data.coco import write
from segjax.data.json_files import read_json
from segjax.metrics.panoptic import encode_panoptic
from segjax.spec import DatasetSpec, Segments

log = logging.getLogger("segjax")


class CocoFiles:
    """Collects the objects of images, and writes both JSON files at the end.

    Category ids are class indices and image ids count from 1, unless another COCO file gives them. If that file has no
    categories of stuff, panoptic.json is not written.

    Args:
        spec: the classes.
        divisor: divisor of panoptic ids.
        like: a COCO file, whose ids of categories (by name) and images (by file name) are used.

    Raises:
        UserError: pycocotools is missing, or the file lacks a class.
    """

    NAMES = ("panoptic.json", "instances.json")

    def __init__(self, spec: DatasetSpec, divisor: int, like: str | None = None):
        rle.coco_tools()
        self._spec, self._divisor, self._like = spec, divisor, like
        self._images, self._panoptic, self._instances = [], [], []
        self._categories, self._ids, self._without = None, {}, ""
        self._known = dict(enumerate(range(len(spec.classes))))
        if like:
            content = _read(like)
            self._categories = content["categories"]
            by_name = {category["name"]: category["id"] for category in self._categories}
            self._known = {k: by_name[name] for k, name in enumerate(spec.classes) if name in by_name}
            if missing := [spec.classes[k] for k in spec.things if k not in self._known]:
                raise UserError(f"{like} has no category called {', '.join(missing)}.")
            self._without = ", ".join(name for k, name in enumerate(spec.classes) if k not in self._known)
            self._ids = {image["file_name"].replace("\\", "/"): image["id"] for image in content["images"]}

    def add(self, name: str, stem: str, segments: Segments) -> Image.Image:
        """Adds the objects of an image.

        Args:
            name: its file name, with the folders below the input.
            stem: name of its PNG without the extension.
            segments: its prediction.

        Returns:
            The panoptic PNG.

        Raises:
            UserError: more objects than the divisor allows, or an image that the other file does not list.
        """
        label, instance, score = segments.label, segments.instance, segments.score
        if len(score) >= self._divisor:
            raise UserError(
                f"task.divisor={self._divisor} must be larger than the {len(score)} objects that an image may have, "
                "for their ids to differ: change it in the workdir's config.json."
            )
        number, (height, width) = self._image_id(name), label.shape
        label, instance = label.astype(self._spec.label_dtype), instance.astype(np.uint16)
        ids = encode_panoptic(label.astype(np.int32), instance.astype(np.int32), self._divisor)
        pixels, annotation = write.panoptic_annotation(ids, self._spec, self._divisor, number, f"{stem}.png")
        objects = write.instance_annotations(label, instance, self._spec, number, score)
        for entry in (*annotation["segments_info"], *objects):
            entry["category_id"] = self._known.get(entry["category_id"])
        self._images.append({"id": number, "file_name": name, "height": height, "width": width})
        self._panoptic.append(annotation)
        self._instances += objects
        return Image.fromarray(pixels)

    def write(self, folder: Path) -> None:
        """Writes both files to a folder."""
        for name, annotations in zip(self.NAMES, (self._panoptic, self._instances), strict=True):
            if name == "panoptic.json" and self._without:
                log.warning("%s has no category for %s: panoptic.json is not written.", self._like, self._without)
                continue
            write.write_json(folder / name, self._images, annotations, self._spec, self._categories)

    def _image_id(self, name) -> Any:
        if not self._like:
            return len(self._images) + 1
        tails = [name.split("/", n)[-1] for n in range(name.count("/") + 1)]
        if found := [self._ids[tail] for tail in tails if tail in self._ids]:
            return found[0]
        raise UserError(f"{self._like} lists no image called {name}.")


def _read(path: str | os.PathLike) -> dict[str, Any]:
    content = read_json(Path(path))
    try:
        [(each["id"], each["name"]) for each in content["categories"]]
        [(each["id"], each["file_name"].replace("", "")) for each in content["images"]]
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a COCO file with images and categories ({error}).") from error
    return content
