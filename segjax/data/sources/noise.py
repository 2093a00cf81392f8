"""Source of noise images with random blocks of labels, for compiling and timing without data."""

import dataclasses
import zlib
from typing import Annotated

import numpy as np

from segjax.checks import Key, UserError, check_section
from segjax.spec import DatasetSpec, channel_names, class_names

BLOCK = 32  # rows and columns of a block of one class, in pixels


@dataclasses.dataclass(frozen=True)
class Noise:
    """Images that are generated on read; made by `noise`, whose arguments are the fields."""

    spec: DatasetSpec
    split: str
    channels: int
    count: int
    shape: tuple[int, int]

    def __len__(self):
        return self.count

    def name(self, i: int) -> str:
        """The split and the number of image i."""
        return f"{self.split}_{i:05d}"

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of every image."""
        return self.shape

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Draws image i, a function of (split, i).

        Args:
            i: image; raises an IndexError if out of range.

        Returns:
            "image": uint8 [y, x, c]; "label": uint8 [y, x]; "instance": uint16 [y, x], one object per thing block.
        """
        if not 0 <= i < self.count:
            raise IndexError(f"Image {i} of {self.count}.")
        rng = np.random.Generator(np.random.Philox(key=np.array((zlib.crc32(self.split.encode()), i), np.uint64)))
        image = rng.integers(0, 256, (*self.shape, self.channels), np.uint8)
        blocks = tuple(-(-n // BLOCK) for n in self.shape)
        label = rng.integers(0, len(self.spec.classes), blocks, np.uint8)
        thing = np.isin(label, self.spec.things)
        instance = np.where(thing, np.cumsum(thing).reshape(blocks), 0).astype(np.uint16)

        def full(a):
            return a.repeat(BLOCK, 0).repeat(BLOCK, 1)[: self.shape[0], : self.shape[1]]

        return {"image": image, "label": full(label), "instance": full(instance)}


def noise(
    split: str,
    *,
    channels: int = 3,
    count: Annotated[int, Key("images in the split", "[1, inf)")] = 64,
    size: Annotated[tuple[int, int], Key("rows, columns", "[1, inf)")] = (512, 512),
    classes: Annotated[int, Key("number of classes", "[1, 255]")] = 19,
    things: Annotated[int, Key("number of them, the last ones, that are countable objects", "[0, 255]")] = 0,
) -> Noise:
    """Generates noise images with random blocks of labels; nothing to download and nothing to learn.

    Args:
        split: name of the split; splits share no image.
        channels: 3 for RGB, 1 for grey.

    Returns:
        The source.

    Raises:
        UserError: no images, no pixels, or invalid numbers of classes.

    Example:
        >>> source = noise("train", count=2, size=(40, 64), classes=3)
        >>> source.read(1)["label"].shape, source.spec.classes
        ((40, 64), ('class 0', 'class 1', 'class 2'))
    """
    check_section("source", noise, {"count": count, "size": size, "classes": classes, "things": things})
    if things > classes:
        raise UserError(f"source.things={things} must not be more than source.classes={classes}.")
    last = tuple(range(classes - things, classes))
    spec = DatasetSpec(class_names(classes), things=last, image_channels=channel_names(channels))
    return Noise(spec, split, channels, count, (int(size[0]), int(size[1])))
