"""Data sources with random access: `len`, `read(i)`, `name(i)`, `size(i)` and `spec`."""

import inspect
from collections.abc import Callable
from typing import Any

from segjax.checks import check_section, choose
from segjax.data.formats.opening import DEFAULT, Reading
from segjax.data.sources.arrays import arrays
from segjax.data.sources.brain import brain
from segjax.data.sources.coco import coco_instances, coco_panoptic
from segjax.data.sources.folder import folder
from segjax.data.sources.huggingface import huggingface
from segjax.data.sources.labelme import labelme
from segjax.data.sources.noise import noise
from segjax.data.sources.shapes import shapes
from segjax.data.sources.tfds import tfds
from segjax.data.sources.yolo import yolo

SOURCES: dict[str, Callable[..., Any]] = {
    "folder": folder,
    "coco_panoptic": coco_panoptic,
    "coco_instances": coco_instances,
    "yolo": yolo,
    "labelme": labelme,
    "huggingface": huggingface,
    "tfds": tfds,
    "shapes": shapes,
    "noise": noise,
    "brain": brain,
    "arrays": arrays,
}


def create(name: str, split: str, *, channels: int = 3, reading: Reading = DEFAULT, **settings) -> Any:
    """Opens a split of a data set.

    Args:
        name: a key of `SOURCES`.
        split: its name in the data set.
        channels: number of image channels, see `segjax.data.reading.read_image`.
        reading: what is made of orientation, pages, transparency and so on, for sources of image files.
        **settings: keys of that source.

    Returns:
        A source: `spec` (DatasetSpec); `len(source)`; `name(i)` for messages and file names; `size(i)`, rows and
        columns of the label; `read(i)`, a dict of "image" `spec.image_dtype` [y, x, c], "label" [y, x] or [y, x, k]
        and, if the data set has objects, "instance" uint16 [y, x], see `segjax.spec`.

    Raises:
        UserError: the source or a key is unknown, or the data set is invalid.

    Example:
        >>> create("shapes", "train", count=4).read(0)["image"].shape
        (128, 128, 3)
    """
    make = choose("source.name", name, SOURCES)
    check_section("source", make, settings, complete=True)
    of_files = {"reading": reading} if "reading" in inspect.signature(make).parameters else {}
    return make(split, channels=channels, **of_files, **settings)
