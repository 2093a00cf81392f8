"""The contract every room shares: what a data set is, what a batch holds, what a model returns.

Axis letters: b batch, h w pixels of the network's input, y x pixels of the label, c image channels,
k classes. Images are NHWC; coordinates and sizes are always (y, x).

A batch is a dict of arrays:

    image     uint8  [b, h, w, c]   pixels as read, 0..255, after the one geometric warp
    label     uint8  [b, y, x]      class index; `spec.ignore` (255) where there is no truth
              uint8  [b, y, x, k]   multi-label: 0 or 1 per class, 255 where there is no truth
              (uint16 in both forms when a class index or the ignore value does not fit 8 bits)
    instance  uint16 [b, y, x]      (instance and panoptic tasks) number of the object, 1 .. n in each image whatever
                                    the class; 0 for stuff, for pixels without truth, and for crowds: regions of a
                                    thing class whose objects are not told apart
    index     int32  [b]            position in the source; -1 marks a padded row
    position  int32  [b]            global sample number since step 0 (training only): the key of every draw
    content   int32  [b, 4]         (evaluation only) rows and columns of the input and of the label that hold the
                                    image; the rest is padding

h, w equal y, x in training; with `Preprocess.context` = m the image is larger than its label by m
pixels on each side.

A model maps (images, train) to a dict of outputs, each covering the label's area at its own stride:

    logits    float32 [b, h', w', k]   one channel a class; a single channel in binary mode
    centre    float32 [b, h', w']      how much a pixel is the centre of an object: 1 there, falling to 0
    offset    float32 [b, h', w', 2]   (dy, dx) from a pixel to its object's centre, in pixels of this map

A panoptic map holds class and object of each pixel in one number, `class * divisor + instance`: see `encode`.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from segjax.checks import UserError

Mode = Literal["multiclass", "binary", "multilabel"]
Colour = tuple[int, int, int]


def voc_colours(count: int) -> tuple[Colour, ...]:
    """The PASCAL VOC colour map: the bits of the index spread over the high bits of red, green and blue.

    Args:
        count: number of colours.

    Returns:
        `count` RGB triples, 0..255; the first is black.

    Example:
        >>> voc_colours(3)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """

    def channel(index, shift):
        return sum((index >> (3 * bit + shift) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))


def encode(label: Any, instance: Any, divisor: int) -> Any:
    """Panoptic map of class and object: `class * divisor + instance`.

    Args:
        label: class indices [...], of numpy or JAX.
        instance: numbers of the objects [...], 0 .. divisor - 1.
        divisor: more than there are objects in an image.

    Returns:
        int32 [...].

    Example:
        >>> encode(np.array([3, 3, 255]), np.array([0, 12, 0]), 1000).tolist()
        [3000, 3012, 255000]
    """
    return label.astype(np.int32) * np.int32(divisor) + instance.astype(np.int32)


def decode(panoptic: Any, divisor: int) -> tuple[Any, Any]:
    """Class and object of a panoptic map.

    Args:
        panoptic: `class * divisor + instance`, integers [...], of numpy or JAX.
        divisor: that of the map.

    Returns:
        Class indices and numbers of the objects, of the map's dtype and shape.

    Example:
        >>> [x.tolist() for x in decode(np.array([3000, 3012]), 1000)]
        [[3, 3], [0, 12]]
    """
    return panoptic // divisor, panoptic % divisor


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Facts about a data set's labels, shared by source, task, model and pictures.

    Args:
        classes: class names; the index in this tuple is the class index of the label maps.
        colours: an RGB triple (0..255) for each class; the PASCAL VOC map when left out.
        things: indices of the classes that are countable objects.
        ignore: label value of pixels without truth.
        mode: how labels are read: "multiclass" (one class a pixel), "binary" (two classes, one logit)
            or "multilabel" (any number of classes a pixel).

    Raises:
        UserError: no class, a name twice, colours that do not fit, or binary without exactly two classes.

    Example:
        >>> DatasetSpec(("background", "vessel"), mode="binary").channels
        1
    """

    classes: tuple[str, ...]
    colours: tuple[Colour, ...] = ()
    things: tuple[int, ...] = ()
    ignore: int = 255
    mode: Mode = "multiclass"

    def __post_init__(self):
        """Fills in the colours and checks that the fields agree."""
        if not self.colours:
            object.__setattr__(self, "colours", voc_colours(len(self.classes)))
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise UserError(f"Class names must be non-empty and unique, got {list(self.classes)}.")
        if len(self.colours) != len(self.classes):
            raise UserError(f"{len(self.classes)} classes but {len(self.colours)} colours: give one colour each.")
        if self.mode == "binary" and len(self.classes) != 2:
            raise UserError(
                f"task.mode='binary' needs exactly two classes (background, foreground), but the data set has "
                f"{len(self.classes)}: {', '.join(self.classes)}. Use task.mode='multiclass', or map to two classes."
            )
        if not all(0 <= t < len(self.classes) for t in self.things):
            raise UserError(f"Thing ids {list(self.things)} are not all indices of the {len(self.classes)} classes.")
        if self.mode != "multilabel" and 0 <= self.ignore < len(self.classes):
            raise UserError(f"The ignore value {self.ignore} is also the index of class {self.classes[self.ignore]!r}.")

    @property
    def channels(self) -> int:
        """Number of logits a pixel: one in binary mode, one a class otherwise."""
        return 1 if self.mode == "binary" else len(self.classes)

    @property
    def layers(self) -> tuple[int, ...]:
        """Axes of a label beyond its rows and columns: one for the classes in multi-label mode."""
        return (len(self.classes),) if self.mode == "multilabel" else ()

    @property
    def label_dtype(self) -> type[np.unsignedinteger]:
        """Smallest unsigned dtype that holds every class index and the ignore value."""
        return np.uint8 if max(len(self.classes) - 1, self.ignore) < 256 else np.uint16


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """What stands between an image on disk and a network's input; the same in training, scoring and use.

    Args:
        mean: mean of each image channel, in grey levels 0..255; its length is the number of channels.
        std: standard deviation of each channel, in grey levels.
        resize: network pixels per image pixel (a factor), or a (height, width) that images are fitted into with
            their aspect ratio kept; None leaves images as they are.
        context: pixels of image beyond each side of the label (92 for the original U-Net's 572 -> 388).
        outside: what lies beyond the image: its "mean" pixel, or its "mirror" image.

    Raises:
        UserError: values that do not fit.
    """

    mean: tuple[float, ...] = (127.5, 127.5, 127.5)
    std: tuple[float, ...] = (64.0, 64.0, 64.0)
    resize: float | tuple[int, int] | None = None
    context: int = 0
    outside: str = "mean"

    def __post_init__(self):
        """Checks the values."""
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise UserError(
                f"preprocess.mean={self.mean} and preprocess.std={self.std} must both have 1 value (grey) or 3 (RGB), "
                f"and std must be positive."
            )
        sizes = self.resize if isinstance(self.resize, tuple) else (self.resize or 1,) * 2
        if len(sizes) != 2 or min(sizes) <= 0 or self.context < 0:
            raise UserError(
                f"preprocess.resize={self.resize} must be a positive factor or (rows, columns), and "
                f"preprocess.context={self.context} must not be negative."
            )
        if self.outside not in ("mean", "mirror"):
            raise UserError(f"preprocess.outside={self.outside!r} is not one of mean, mirror.")
