"""Types that all of segjax shares: what a data set is, what a batch contains, what a model returns.

Axis letters: b batch, h w pixels of the network's input, y x pixels of the label, c image channels, k classes. Images
are NHWC; coordinates and sizes are always (y, x).

A batch is a dict of arrays:

    image     uint8  [b, h, w, c]   pixels in stored units, after the geometric warp; dtype `spec.image_dtype`, which
                                    may also be uint16 or float32; channels `spec.image_channels`
    label     uint8  [b, y, x]      class index; `spec.ignore` (255) where unlabelled
              uint8  [b, y, x, k]   multi-label: 0 or 1 per class, 255 where unlabelled
              (uint16 in both forms when a class index or the ignore value does not fit 8 bits)
    instance  uint16 [b, y, x]      (instance and panoptic tasks) object number, 1 .. n in each image over all classes;
                                    0 for stuff, unlabelled pixels and crowds: regions of a thing class without separate
                                    objects
    index     int32  [b]            position in the source; -1 marks a padded row
    position  int32  [b]            global sample number since step 0 (training only): the key of all random draws
    valid_size   int32 [b, 2]       (evaluation only) rows and columns of the input that the image covers; the rest is
                                    padding
    native_size  int32 [b, 2]       (evaluation only) the same for the label

h, w equal y, x in training; with `Preprocess.context` = m the image is larger than its label by m pixels on each side.

A model maps (images, train) to a dict of outputs, each covering the label's area at its own stride:

    logits    float32 [b, h', w', k]   one channel per class; a single channel in binary mode
    centre    float32 [b, h', w']      heatmap of object centres: 1 at a centre, falling to 0
    offset    float32 [b, h', w', 2]   (dy, dx) from a pixel to its object's centre, in pixels of this map
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool

from segjax import checks
from segjax.checks import Key, UserError, check_choice

Mode = Literal["multiclass", "binary", "multilabel"]
Colour = tuple[int, int, int]


def voc_colours(count: int) -> tuple[Colour, ...]:
    """Returns the PASCAL VOC colour map: the bits of the index spread over the high bits of red, green and blue.

    Example:
        >>> voc_colours(3)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """

    def channel(index, shift):
        return sum((index >> (3 * bit + shift) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Describes a data set's labels and images for source, task, model and pictures.

    Args:
        classes: class names; the index in this tuple is the class index of the label maps.
        colours: an RGB triple (0..255) for each class; by default the PASCAL VOC colours.
        things: indices of the classes that are countable objects.
        ignore: label value of unlabelled pixels.
        mode: label mode: "multiclass" (one class per pixel), "binary" (two classes, one logit) or "multilabel" (any
            number of classes per pixel).
        image_channels: names of the image channels.
        image_dtype: dtype of the stored images: "uint8", "uint16" or "float32".

    Raises:
        UserError: no classes, one class for all pixels, duplicate names, a wrong number of colours, binary without two
            classes, or another dtype.

    Example:
        >>> DatasetSpec(("background", "vessel"), mode="binary").num_logits
        1
    """

    classes: tuple[str, ...]
    colours: tuple[Colour, ...] = ()
    things: tuple[int, ...] = ()
    ignore: int = 255
    mode: Mode = "multiclass"
    image_channels: tuple[str, ...] = ("red", "green", "blue")
    image_dtype: str = "uint8"

    def __post_init__(self):
        """Fills in the colours and checks that the fields agree."""
        if not self.colours:
            object.__setattr__(self, "colours", voc_colours(len(self.classes)))
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise UserError(f"Class names must be non-empty and unique, got {list(self.classes)}.")
        if len(self.classes) == 1 and self.mode != "multilabel":
            raise UserError(
                f"There is one class, {self.classes[0]!r}, so every prediction is right and nothing learned: name the "
                f"background as well, as in classes = ('background', {self.classes[0]!r})."
            )
        if len(self.colours) != len(self.classes):
            raise UserError(f"{len(self.classes)} classes but {len(self.colours)} colours: give one colour per class.")
        if self.mode == "binary" and len(self.classes) != 2:
            raise UserError(
                f"task.mode='binary' needs exactly two classes (background, foreground), but the data set has "
                f"{len(self.classes)}: {', '.join(self.classes)}. Use task.mode='multiclass', or map to two classes."
            )
        if not all(0 <= t < len(self.classes) for t in self.things):
            raise UserError(f"Thing ids must be indices of the {len(self.classes)} classes, got {list(self.things)}.")
        if self.mode != "multilabel" and 0 <= self.ignore < len(self.classes):
            raise UserError(f"The ignore value {self.ignore} is also the index of class {self.classes[self.ignore]!r}.")
        check_choice("image_dtype", self.image_dtype, ("uint8", "uint16", "float32"))

    def in_mode(self, mode: Mode) -> "DatasetSpec":
        """Returns the spec in the mode of a semantic task; model and objective are made for it.

        Raises:
            UserError: the labels have another form, or mode is binary without exactly two classes.

        Example:
            >>> DatasetSpec(("background", "vessel")).in_mode("binary").num_logits
            1
        """
        if (self.mode == "multilabel") != (mode == "multilabel"):
            problem = f"task.mode={mode!r} does not fit the data set, whose labels are {self.mode}"
            raise UserError(f"{problem}: set task.mode={self.mode!r}.")
        return dataclasses.replace(self, mode=mode)

    @property
    def num_logits(self) -> int:
        """Number of logits per pixel: one in binary mode, one per class otherwise."""
        return 1 if self.mode == "binary" else len(self.classes)

    @property
    def label_axes(self) -> tuple[int, ...]:
        """Axes of a label beyond its rows and columns: one for the classes in multi-label mode."""
        return (len(self.classes),) if self.mode == "multilabel" else ()

    @property
    def label_dtype(self) -> type[np.unsignedinteger]:
        """Smallest unsigned dtype that holds every class index and the ignore value."""
        return np.uint8 if max(len(self.classes) - 1, self.ignore) < 256 else np.uint16


def class_names(count: int) -> tuple[str, ...]:
    """Names classes that are known by their number only."""
    return tuple(f"class {k}" for k in range(count))


def file_name(text: str) -> str:
    """Makes a name safe for file names and relative URLs: other characters become "_".

    Example:
        >>> file_name("seq 01/0016:E5")
        'seq_01_0016_E5'
    """
    return re.sub(r"[^\w.-]", "_", text)[-100:]


def channel_names(count: int) -> tuple[str, ...]:
    """Returns names of image channels, for `DatasetSpec.image_channels`.

    Example:
        >>> channel_names(1), channel_names(2)
        (('grey',), ('channel 0', 'channel 1'))
    """
    known = {1: ("grey",), 3: ("red", "green", "blue")}
    return known.get(count) or tuple(f"channel {i}" for i in range(count))


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How an image becomes network input: identical in training, evaluation and prediction.

    The input is (clip(pixel, *window) - mean) / std in each channel. The fields are the keys of section `preprocess`.

    Raises:
        UserError: values that contradict each other.
    """

    mean: Annotated[tuple[float, ...], Key("channel means, in stored units; one value: grey images")] = (127.5,) * 3
    std: Annotated[tuple[float, ...], Key("channel standard deviations, in stored units", "(0, inf)")] = (64.0,) * 3
    window: Annotated[
        tuple[float, float] | None,
        Key("(low, high) in stored units: limits of pixels and of colour augmentation; None: 0..255 for uint8"),
    ] = None
    resize: Annotated[
        float | tuple[int, int] | None,
        Key("network pixels per image pixel, or (rows, columns) to fit into; None: no resizing", "(0, inf)"),
    ] = None
    context: Annotated[int, Key("image pixels around the label (92: the U-Net paper's 572 -> 388)", "[0, inf)")] = 0
    outside: Annotated[str, Key("padding of the image: mean pixel or mirror image", ("mean", "mirror"))] = "mean"

    def __post_init__(self):
        """Checks the values."""
        checks.check_section("preprocess", Preprocess, dataclasses.asdict(self))
        if not self.mean or len(self.mean) != len(self.std):
            raise UserError(
                f"preprocess.mean={self.mean} and preprocess.std={self.std} must have one value per channel: 1 (grey), "
                "3 (RGB), or as many as the images have."
            )
        if self.window and not self.window[0] < self.window[1]:
            raise UserError(f"preprocess.window={self.window} must be (low, high) with low < high.")


@struct.dataclass
class Geometry:
    """Sizes of a batch's images in the padded input and in the output.

    Attributes:
        valid_size: rows and columns of the padded input that each image covers, at the top left, int32 [b, 2].
        native_size: rows and columns of each image at its native size, that of its label, int32 [b, 2].
        padded_size: rows and columns of the padded input, without context.
        output_size: rows and columns of the output; each image covers `native_size` of them.
        resized: False if one pixel of the input is one pixel of the output.
    """

    valid_size: Any
    native_size: Any
    padded_size: tuple[int, int] = struct.field(pytree_node=False)
    output_size: tuple[int, int] = struct.field(pytree_node=False)
    resized: bool = struct.field(pytree_node=False, default=True)


def valid_pixels(geometry: Geometry) -> Bool[Array, "b y x"]:
    """Marks the pixels of the output that belong to an image."""
    height, width = geometry.output_size
    _, y, x = jnp.ogrid[:1, :height, :width]
    rows, columns = geometry.native_size.T[..., None, None]
    return (y < rows) & (x < columns)


@struct.dataclass
class Segments:
    """Predictions for a batch; fields are None if the task or objective does not have them.

    Attributes:
        label: class of each pixel, integers [b, y, x], `spec.ignore` where nothing is predicted; multi-label: presence
            of each class, bool [b, y, x, k].
        instance: number of the object of each pixel, 1 .. n, 0 for none, integers [b, y, x].
        score: confidence of objects 1 .. n, float32 [b, n].
        masks: pixels of each object where objects may overlap, bool [b, n, y, x].
        classes: class of each mask, -1 for unused slots, int32 [b, n].
        probability: of each class, float32 [b, y, x, k]; binary: of the foreground [b, y, x, 1].
        maps: other maps to display, by name, float32 [b, y, x, ...].
    """

    label: Any
    instance: Any = None
    score: Any = None
    masks: Any = None
    classes: Any = None
    probability: Any = None
    maps: Any = None

    def crop(self, i: int, size: Sequence[int]) -> "Segments":
        """Image i of the batch, cropped to its own rows and columns: the same fields without the axis b."""
        rows, columns = size
        one = jax.tree.map(lambda x: x[i], self)  # None is a tree without leaves
        pixels = [one.label, one.instance, one.probability, one.maps]
        label, instance, probability, maps = jax.tree.map(lambda x: x[:rows, :columns], pixels)
        masks = None if one.masks is None else one.masks[:, :rows, :columns]
        return one.replace(label=label, instance=instance, probability=probability, maps=maps, masks=masks)
