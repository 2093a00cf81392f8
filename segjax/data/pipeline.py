"""Turns (seed, step) into a batch: the same pixels for any number of hosts, from any step on.

No iterator has state: the samples of batch t are the global positions t * batch_size .. (t + 1) * batch_size - 1,
a position gives a sample and an augmentation, and each host makes its own share of the rows.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from segjax.checks import UserError
from segjax.data import geometry, loader
from segjax.data.loader import Canvas, Layout, Loading, Sample, Scene
from segjax.data.order import shuffled
from segjax.data.reading import CorruptImage
from segjax.spec import DatasetSpec, Preprocess

log = logging.getLogger("segjax")


@dataclasses.dataclass
class Batches:
    """Batches of one split; a batch is a pure function of its number.

    Attributes:
        source: where samples come from.
        batch_size: rows of a batch over all hosts.
        count: batches in one pass over the split; a fraction in training, where batches run across epochs.
        sample: global position -> Sample.
        layouts: (first batch, layout) of each stretch of batches that share a shape.
        process: index of this host, number of hosts.
        loading: how samples are read.
        corrupt: name -> reason of the unreadable samples met so far.
    """

    source: Any
    batch_size: int
    count: int | float
    sample: Callable[[int], Sample]
    layouts: list[tuple[int, Layout]]
    process: tuple[int, int]
    loading: Loading
    corrupt: dict[str, str]

    @property
    def spec(self) -> DatasetSpec:
        """Facts about the labels."""
        return self.source.spec

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of each array of the largest batch, the last, over all hosts."""
        layout = self.layouts[-1][1]
        canvas, spec, preprocess = layout.canvas, layout.spec, layout.preprocess
        height, width = (n + 2 * preprocess.context for n in canvas.inputs)
        shapes = {
            "image": ((height, width, len(preprocess.mean)), np.uint8),
            "label": ((*canvas.labels, *spec.layers), spec.label_dtype),
            "index": ((), np.int32),
            "position": ((), np.int32),
        }
        if layout.instances:
            shapes["instance"] = (canvas.labels, np.uint16)
        if layout.whole:
            shapes["content"] = ((4,), np.int32)
        return {key: ((self.batch_size, *shape), dtype) for key, (shape, dtype) in shapes.items()}

    def batches(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this host's rows of the batches start .. stop - 1.

        Args:
            start: number of the first batch; opening there takes no longer than at 0.
            stop: number after the last.

        Yields:
            A dict of arrays, see `segjax.spec`, with the rows of this host.

        Raises:
            UserError: whatever is wrong with a sample, or too many unreadable images.
        """
        host, hosts = self.process
        rows = self.batch_size // hosts
        ends = [first for first, _ in self.layouts[1:]] + [math.inf]
        for (begin, layout), end in zip(self.layouts, ends, strict=True):
            first, last = max(start, begin), min(stop, end)

            def sample(i, first=first):
                return self.sample((first + i // rows) * self.batch_size + host * rows + i % rows)

            for batch in loader.run(self.loading, sample, max(0, last - first) * rows, rows, layout):
                self._check_corrupt()
                yield batch

    def _check_corrupt(self):
        # A host counts what it met itself: in training, in time, every sample, in evaluation its share of them.
        met = len(self.source) / (self.process[1] if self.layouts[0][1].whole else 1)
        if len(self.corrupt) > self.loading.max_corrupt * met:
            named = " ".join(list(self.corrupt.values())[:5])
            raise UserError(
                f"{len(self.corrupt)} of {len(self.source)} samples cannot be read, more than "
                f"loading.max_corrupt={self.loading.max_corrupt:g} allows. Mend or remove them; `segjax inspect` "
                f"lists them all. The first: {named}"
            )


def train_batches(
    source: Any,
    preprocess: Preprocess,
    loading: Loading,
    seed: int = 0,
    process: tuple[int, int] = (0, 1),
    divisor: int = 0,
    *,
    batch_size: int = 8,
    crop: tuple[int, ...] = (128, 128),
    scale: tuple[float, ...] = (1.0, 1.0),
    rotate: float = 0.0,
    flip_horizontal: bool = True,
    flip_vertical: bool = False,
    elastic: float = 0.0,
    elastic_grid: int = 3,
    rare: float = 0.0,
    paste: float = 0.0,
) -> Batches:
    """Batches of random crops, without end.

    Args:
        source: samples by index.
        preprocess: how images become inputs.
        loading: how samples are read.
        seed: sample order and augmentation are functions of (seed, position).
        process: (index of this host, number of hosts).
        divisor: give instance maps, with fewer objects an image than this; 0 gives none.
        batch_size: rows of a batch over all hosts.
        crop: rows and columns of a training image, in network pixels.
        scale: range of the random zoom, drawn log-uniformly.
        rotate: largest rotation, in degrees to either side.
        flip_horizontal: mirror left and right in half of the samples.
        flip_vertical: mirror top and bottom in half of the samples.
        elastic: standard deviation of random displacements, in network pixels (U-Net paper, section 3.1: 10).
        elastic_grid: displacements a side, interpolated bicubically (U-Net paper, section 3.1: 3).
        rare: share of crops placed around a pixel of a class drawn evenly from those in the image.
        paste: share of crops into which half of the objects of another image's crop are pasted (Ghiasi et al. 2021,
            "Simple Copy-Paste", arXiv:2012.07177, which takes a random subset of them too).

    Returns:
        The batches.

    Raises:
        UserError: settings that do not fit the images or the hosts.
    """
    drawing = geometry.Geometry(
        tuple(crop), tuple(scale), rotate, flip_horizontal, flip_vertical, elastic, elastic_grid, rare
    )
    if seed < 0:
        raise UserError(f"seed={seed} must not be negative.")
    geometry.check(drawing, {_size(source, i) for i in range(len(source))}, preprocess)
    if not 0 <= paste <= 1 or (paste and (not divisor or preprocess.context)):
        raise UserError(
            f"data.paste={paste} is a share of crops, 0..1, that objects are moved into: it needs task.name='panoptic' "
            "or 'instance', and no preprocess.context."
        )
    corrupt: dict[str, str] = {}
    channels = len(preprocess.mean)
    if divisor:
        _read(source, 0, channels, divisor, corrupt)  # a source without instance maps is known before a network is made

    def scene(index: int, key: int) -> Scene:
        image, label, instance = _read(source, index, channels, divisor, corrupt)
        warp = geometry.draw(drawing, label, source.spec.ignore, preprocess, (seed, key))
        return Scene(image, label, instance, warp)

    def sample(position: int) -> Sample:
        index = shuffled(position, len(source), seed)
        first, pasted, numbers = scene(index, position), nothing, np.zeros(1, np.uint16)
        if paste:
            key = 2**64 - 1 - position  # no position: another draw than that of any image
            random = np.random.Generator(np.random.Philox(key=np.array((seed, key), np.uint64)).jumped())
            if random.random() < paste:
                pasted = scene(int(random.integers(len(source))), key)
                numbers = _pasted_numbers(random, first.instance, pasted.instance, divisor)
        # Positions wrap after 2^31 samples: int32 is what every accelerator folds into a key.
        return Sample(first, pasted, numbers, np.int32(index), np.int32(position % 2**31), np.zeros(4, np.int32))

    nothing = Scene(*_nothing(source.spec, channels), geometry.draw(drawing, np.zeros((1, 1)), 1, preprocess, (0, 0)))
    layout = Layout(Canvas(drawing.crop, drawing.crop, True), source.spec, preprocess, False, divisor > 0, paste > 0)
    _check_hosts(batch_size, process, "data.batch_size")
    return Batches(source, batch_size, len(source) / batch_size, sample, [(0, layout)], process, loading, corrupt)


def eval_batches(
    source: Any,
    preprocess: Preprocess,
    loading: Loading,
    process: tuple[int, int] = (0, 1),
    divisor: int = 0,
    *,
    batch_size: int = 8,
    buckets: int = 1,
) -> Batches:
    """Batches of whole images, each once, labels at their own size.

    Images are sorted by size into `buckets` groups of equal number; a group is padded to its largest image, so
    that a step is compiled once a group. Padded pixels and rows are labelled `ignore`, and weigh nothing; what a
    network makes of the pixels beside them depends a little on the padding, so that predictions of single images
    may differ there.

    Args:
        source: samples by index.
        preprocess: how images become inputs.
        loading: how samples are read.
        process: (index of this host, number of hosts).
        divisor: give instance maps, with fewer objects an image than this; 0 gives none.
        batch_size: rows of a batch over all hosts.
        buckets: number of groups.

    Returns:
        The batches; `count` of them are one pass.

    Raises:
        UserError: a batch size that the hosts cannot share.
    """
    _check_hosts(batch_size, process, "eval.batch_size")
    sizes = np.array([_size(source, i) for i in range(len(source))])
    order = np.lexsort((np.arange(len(source)), sizes[:, 1], sizes.prod(1)))
    rows: list[int] = []
    layouts: list[tuple[int, Layout]] = []
    for group in np.array_split(order, max(1, min(buckets, len(source)))):
        labels = sizes[group].max(0).tolist()
        inputs = np.max([geometry.resized((y, x), preprocess.resize) for y, x in sizes[group].tolist()], axis=0)
        canvas = Canvas(tuple(inputs.tolist()), tuple(labels), preprocess.resize is None)
        if not layouts or layouts[-1][1].canvas != canvas:
            rows += [-1] * (-len(rows) % batch_size)
            layout = Layout(canvas, source.spec, preprocess, True, divisor > 0, False)
            layouts.append((len(rows) // batch_size, layout))
        rows += group.tolist()
    rows += [-1] * (-len(rows) % batch_size)
    corrupt: dict[str, str] = {}
    nothing = Scene(*_nothing(source.spec, len(preprocess.mean)), geometry.whole((1, 1), preprocess))

    def sample(position: int) -> Sample:
        index, channels = rows[position], len(preprocess.mean)
        read = _nothing(source.spec, channels) if index < 0 else _read(source, index, channels, divisor, corrupt)
        y, x = read[1].shape[:2]
        content = np.array([*geometry.resized((y, x), preprocess.resize), y, x], np.int32)
        scene = Scene(*read, geometry.whole((y, x), preprocess))
        return Sample(scene, nothing, np.zeros(1, np.uint16), np.int32(index), np.int32(position), content)

    return Batches(source, batch_size, len(rows) // batch_size, sample, layouts, process, loading, corrupt)


def _check_hosts(batch_size, process, key):
    if batch_size < 1 or batch_size % process[1]:
        raise UserError(f"{key}={batch_size} cannot be divided over {process[1]} hosts.")


def _read(source, index, channels, divisor, corrupt):
    """Image, label and instance map of a sample; an unreadable one is noted and becomes one pixel without truth."""
    try:
        sample = source.read(index)
    except CorruptImage as error:
        if source.name(index) not in corrupt:
            corrupt[source.name(index)] = str(error)
            log.warning("Unreadable, and counted as unlabelled: %s", error)
        return _nothing(source.spec, channels)
    if not divisor:
        return sample["image"], sample["label"], np.zeros((1, 1), np.uint16)
    if "instance" not in sample:
        raise UserError(
            f"{source.name(index)} comes without an instance map, which this task needs: set source.instances, or use "
            "a source of objects, such as coco_panoptic."
        )
    if (most := int(sample["instance"].max())) >= divisor:
        raise UserError(f"{source.name(index)} holds {most} objects: task.divisor={divisor} must be more than that.")
    return sample["image"], sample["label"], sample["instance"]


def _pasted_numbers(random, instance, other, divisor):
    """New number of each object of another image, 0 for those that are left out; uint16 [n + 1]."""
    used = int(instance.max())
    numbers = np.zeros(int(other.max()) + 1, np.uint16)
    chosen = np.flatnonzero(random.random(len(numbers) - 1) < 0.5)[: divisor - 1 - used] + 1
    numbers[chosen] = used + 1 + np.arange(len(chosen))
    return numbers


def _size(source, index):
    """Rows and columns of a sample; of an unreadable one, those of `_nothing`."""
    try:
        return source.size(index)
    except CorruptImage:
        return 1, 1


def _nothing(spec, channels):
    """One black pixel without truth: image, label and instance map."""
    label = np.full((1, 1, *spec.layers), spec.ignore, spec.label_dtype)
    return np.zeros((1, 1, channels), np.uint8), label, np.zeros((1, 1), np.uint16)
