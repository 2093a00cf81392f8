"""Maps (seed, step) to a batch: the same pixels for any number of hosts, starting at any step.

Iterators have no state. Batch t holds the global positions t * batch_size .. (t + 1) * batch_size - 1; a position
determines a sample and its augmentation, and each host makes its own rows.
"""

import collections
import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import numpy as np

from segjax.checks import Key, UserError, spread
from segjax.data import copy_paste, loader, size_groups, warping
from segjax.data.instances import MAX_OBJECTS
from segjax.data.loader import Batch, Layout, Loading, Sample, Scene
from segjax.data.reading import CorruptImage
from segjax.spec import DatasetSpec, Preprocess

log = logging.getLogger("segjax")


class Arrangement(NamedTuple):
    """How the samples of a split are arranged in batches.

    count: batches in one pass over the split; fractional in training, where batches span epochs.
    layouts: (first batch, layout) of each run of batches with the same shape.
    rows: (evaluation) index in the source of each row of all batches, -1 for padding.
    padding: (evaluation) pixels that are computed, over the images' own.
    """

    count: int | float
    layouts: list[tuple[int, Layout]]
    rows: Sequence[int] = ()
    padding: float = 1.0

    def batch_of(self, index: int) -> int:
        """Number of the batch (evaluation) that has an image of the source."""
        row = self.rows.index(index)
        for first, layout, start, rows in self.runs:
            if row < start + rows:
                return first + (row - start) // layout.batch_size
        raise IndexError(index)

    @property
    def runs(self) -> list[tuple[int, Layout, int, float]]:
        """First batch, layout, first position and number of positions of each run of batches with the same shape."""
        ends, found, start = [first for first, _ in self.layouts[1:]] + [math.inf], [], 0
        for (first, layout), end in zip(self.layouts, ends, strict=True):
            count = (end - first) * layout.batch_size
            found.append((first, layout, start, count))
            start += count
        return found


@dataclasses.dataclass
class Batches:
    """Batches of one split; a batch is a pure function of its number.

    Attributes:
        sample: global position -> Sample.
        arrange: () -> Arrangement, called on first use: in evaluation it reads the sizes of all images.
        process: index of this host, number of hosts.
        corrupt: error of each unreadable sample so far, by name.
    """

    source: Any
    preprocess: Preprocess
    batch_size: int
    sample: Callable[[int], Sample]
    arrange: Callable[[], Arrangement]
    process: tuple[int, int]
    loading: Loading
    corrupt: dict[str, str]

    @property
    def spec(self) -> DatasetSpec:
        """Describes labels and images."""
        return self.source.spec

    @property
    def count(self) -> int | float:
        """Batches in one pass over the split."""
        return self.arrange().count

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Global shape and dtype of each array of the last batch, which is the largest."""
        _, layout = self.arrange().layouts[-1]
        return {key: ((layout.batch_size, *shape), dtype) for key, (shape, dtype) in layout.arrays.items()}

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yields this host's rows of batches start .. stop - 1, dicts of arrays as in `segjax.spec`.

        Starting at `start` takes no longer than at 0. Raises a UserError if a sample is invalid, or too many images are
        unreadable.
        """
        host, hosts = self.process
        for begin, layout, position, count in self.arrange().runs:
            size, rows = layout.batch_size, layout.batch_size // hosts
            first, last = max(start, begin), min(stop, begin + count / size)

            def sample(i, base=position + (first - begin) * size, size=size, rows=rows):
                return self.sample(base + i // rows * size + host * rows + i % rows)

            for batch in loader.load_batches(self.loading, sample, int(max(0, last - first)) * rows, rows, layout):
                self._check_corrupt()
                yield batch

    def _check_corrupt(self):
        # Each host counts the samples it reads: eventually all of them in training, its share in evaluation.
        seen = len(self.source) / (self.process[1] if self.arrange().rows else 1)
        if len(self.corrupt) > self.loading.max_corrupt * seen:
            named = " ".join(list(self.corrupt.values())[:5])
            raise UserError(
                f"{len(self.corrupt)} of {len(self.source)} samples cannot be read, more than "
                f"loading.max_corrupt={self.loading.max_corrupt:g} allows. Fix or remove them; `segjax inspect` "
                f"lists them all. The first: {named}"
            )


def train_batches(
    source: Any,
    preprocess: Preprocess,
    loading: Loading,
    seed: int = 0,
    process: tuple[int, int] = (0, 1),
    max_objects: int = 0,
    *,
    batch_size: Annotated[int, Key("images per step, over all devices and hosts", "[1, inf)")] = 8,
    crop: Annotated[tuple[int, int], Key("rows, columns of a crop, in network pixels", "[1, inf)")] = (128, 128),
    scale: Annotated[tuple[float, float], Key("zoom range, drawn log-uniformly", "(0, inf)")] = (1.0, 1.0),
    rotate: Annotated[float, Key("largest rotation in either direction, in degrees")] = 0.0,
    flip_horizontal: Annotated[bool, Key("flip half of the samples left to right")] = True,
    flip_vertical: Annotated[bool, Key("flip half of the samples upside down")] = False,
    elastic: Annotated[float, Key("std of displacements, in network pixels (U-Net paper: 10)", "[0, inf)")] = 0.0,
    elastic_grid: Annotated[int, Key("grid points per side, bicubic in between (U-Net paper: 3)", "[2, inf)")] = 3,
    rare_class_fraction: Annotated[
        float, Key("fraction of crops around a pixel of a random class of the image", "[0, 1]")
    ] = 0.0,
    copy_paste_fraction: Annotated[
        float, Key("fraction of crops into which objects of another image are pasted", "[0, 1]")
    ] = 0.0,
) -> Batches:
    """Makes an endless stream of batches of random crops.

    The keyword arguments are the keys of the section `data`. `rare_class_fraction` draws the class uniformly from those
    in the image. `copy_paste_fraction` pastes half of the objects of another image's crop; Ghiasi et al. 2021, "Simple
    Copy-Paste", arXiv:2012.07177, also paste a random subset.

    Args:
        source: samples by index.
        preprocess: how images become inputs.
        loading: how samples are read.
        seed: sample order and augmentation are functions of (seed, position).
        process: (index of this host, number of hosts).
        max_objects: largest number of objects per image; 0 leaves out instance maps.

    Returns:
        The batches.

    Raises:
        UserError: the settings do not fit the images or the number of hosts.
    """
    drawing = warping.CropSettings(
        tuple(crop), tuple(scale), rotate, flip_horizontal, flip_vertical, elastic, elastic_grid, rare_class_fraction
    )
    _check_crop(drawing, source, preprocess)
    if copy_paste_fraction:
        copy_paste.check_copy_paste(copy_paste_fraction, max_objects, preprocess)
    corrupt: dict[str, str] = {}
    if max_objects:
        _read(source, 0, max_objects, corrupt)  # fails before a network is made if the source has no instance maps

    def scene(index: int, key: int) -> Scene:
        image, label, instance = _read(source, index, max_objects, corrupt)
        warp = warping.draw_warp(drawing, label, source.spec.ignore, preprocess, (seed, key))
        return Scene(image, label, instance, warp)

    def sample(position: int) -> Sample:
        index = shuffled_index(position, len(source), seed)
        # Positions wrap after 2^31 samples: every accelerator can fold an int32 into a key.
        made = Sample(scene(index, position), np.int32(index), np.int32(position % 2**31))
        if copy_paste_fraction:
            random, key = copy_paste.generator(seed, position)
            if random.random() < copy_paste_fraction:
                other = scene(int(random.integers(len(source))), key)
                numbers = copy_paste.draw_numbers(random, made.scene.instance, other.instance, max_objects)
                return made._replace(pasted=other, numbers=numbers)
        return made

    crop, instances = drawing.crop, max_objects > 0
    layout = Layout(batch_size, crop, crop, source.spec, preprocess, evaluation=False, instances=instances)
    arrangement = Arrangement(len(source) / batch_size, [(0, layout)])
    _check_hosts(batch_size, process, "data.batch_size")
    return Batches(source, preprocess, batch_size, sample, lambda: arrangement, process, loading, corrupt)


def _check_crop(drawing, source, preprocess):
    """Checks the crop against images spread over the split, and against all images before rejecting it."""
    every = range(len(source))
    try:
        warping.check_crop(drawing, _sizes(source, spread(every)), preprocess)
    except UserError:
        warping.check_crop(drawing, _sizes(source, every), preprocess)


def eval_batches(
    source: Any,
    preprocess: Preprocess,
    loading: Loading,
    process: tuple[int, int] = (0, 1),
    instances: bool = False,
    divisor: int = 1,
    *,
    batch_size: Annotated[int, Key("images per step, over all devices and hosts", "[1, inf)")] = 8,
    buckets: Annotated[
        int, Key("groups of similar-sized images; each is padded to its largest image and compiled once", "[1, inf)")
    ] = 4,
) -> Batches:
    """Makes batches of whole images, each image once, with labels at their native size.

    Images are divided by size into `buckets` groups, see `segjax.data.size_groups`; a set with few very large images
    has more. Each group is padded to its largest image and compiled once. Padded pixels and rows are labelled `ignore`
    and do not count. Outputs next to the padding depend slightly on it, so predictions of single images may differ
    there. Sizes are read from the file headers, in parallel, before the first batch. The keyword arguments are the keys
    of the section `eval`.

    Args:
        source: samples by index.
        preprocess: how images become inputs.
        loading: how samples are read.
        process: (index of this host, number of hosts).
        instances: whether to include instance maps.
        divisor: number that every batch size must be a multiple of, such as that of the devices.

    Returns:
        The batches; `count` of them make one pass.

    Raises:
        UserError: the batch size is not divisible by the number of hosts.
    """
    _check_hosts(batch_size, process, "eval.batch_size")
    spec = source.spec

    @functools.cache
    def arrange() -> Arrangement:
        with ThreadPoolExecutor(loading.workers or os.cpu_count() or 1) as pool:
            read = list(pool.map(functools.partial(_size, source), range(len(source))))
        usual, _ = collections.Counter(filter(None, read)).most_common(1)[0] if any(read) else ((1, 1), 0)
        sizes = np.array([size or usual for size in read])
        groups, padding = size_groups.group_sizes(sizes, buckets, batch_size, math.lcm(divisor, process[1]))
        rows: list[int] = []
        layouts: list[tuple[int, Layout]] = []
        first = 0
        for members, size, rows_of, number in ((g.members, g.size, g.batch_size, g.batches) for g in groups):
            inputs = np.max([warping.resized_size((y, x), preprocess.resize) for y, x in sizes[members].tolist()], 0)
            layouts.append((first, Layout(rows_of, tuple(inputs.tolist()), size, spec, preprocess, True, instances)))
            rows += members + [-1] * (number * rows_of - len(members))
            first += number
        log.info(
            "evaluation computes %.2f times the pixels of its %d images, in batches of %d shapes",
            padding, len(source), len(groups),
        )  # fmt: skip
        return Arrangement(first, layouts, rows, padding)

    corrupt: dict[str, str] = {}

    def sample(position: int) -> Sample:
        index = arrange().rows[position]
        read = _nothing(spec) if index < 0 else _read(source, index, MAX_OBJECTS * instances, corrupt)
        y, x = read[1].shape[:2]
        sizes = {"valid_size": warping.resized_size((y, x), preprocess.resize), "native_size": (y, x)}
        sizes = {name: np.array(size, np.int32) for name, size in sizes.items()}
        scene = Scene(*read, warping.evaluation_warp((y, x), preprocess))
        return Sample(scene, np.int32(index), np.int32(position), sizes)

    return Batches(source, preprocess, batch_size, sample, arrange, process, loading, corrupt)


def _check_hosts(batch_size, process, key):
    if batch_size < 1 or batch_size % process[1]:
        raise UserError(f"{key}={batch_size} cannot be divided evenly over {process[1]} hosts.")


def _read(source, index, max_objects, corrupt):
    """Reads image, label and instance map; an unreadable sample is recorded and becomes one unlabelled pixel."""
    try:
        sample = source.read(index)
    except CorruptImage as error:
        if source.name(index) not in corrupt:
            corrupt[source.name(index)] = str(error)
            log.warning("Unreadable sample, treated as unlabelled: %s", error)
        return _nothing(source.spec)
    given = sample["image"].shape[2], sample["image"].dtype.name
    if given != (expected := (len(source.spec.image_channels), source.spec.image_dtype)):
        raise UserError(f"{source.name(index)} has (channels, dtype) {given}, but its source's spec has {expected}.")
    if not max_objects:
        return sample["image"], sample["label"], None
    if "instance" not in sample:
        raise UserError(
            f"{source.name(index)} has no instance map, which this task needs: set source.instances, or use "
            "a source with objects, such as coco_panoptic."
        )
    if (most := int(sample["instance"].max())) > max_objects:
        raise UserError(
            f"{source.name(index)} holds {most} objects, more than objective.max_objects={max_objects}: raise it."
        )
    return sample["image"], sample["label"], sample["instance"]


def _sizes(source, indices):
    """Reads the sizes of samples; that of one pixel if none can be read."""
    return {size for i in indices if (size := _size(source, i))} or {(1, 1)}


def _size(source, index):
    """Reads rows and columns of a sample; None if it is unreadable."""
    try:
        return source.size(index)
    except CorruptImage:
        return None


def _nothing(spec):
    """Makes one black unlabelled pixel: image, label and instance map."""
    image = np.zeros((1, 1, len(spec.image_channels)), spec.image_dtype)
    label = np.full((1, 1, *spec.label_axes), spec.ignore, spec.label_dtype)
    return image, label, np.zeros((1, 1), np.uint16)


def shuffled_index(position: int, count: int, seed: int) -> int:
    """Returns the sample index at a global position; each epoch of `count` positions is a permutation.

    Iterates a Feistel network over the next power of four until the result is below `count`: constant time and memory
    for any position, and the same numbers with all library versions.
    """
    epoch, index = divmod(position, count)
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(6):
            left, right = right, left ^ (_hash(right, turn, epoch, seed) & mask)
        index = left << half | right
        if index < count:
            return index


def _hash(*words):
    """Mixes integers to 32 bits with the finaliser of MurmurHash3 (Appleby, 2008)."""
    h, mask = 0x9E3779B9, 0xFFFFFFFF
    for word in words:
        h ^= word & mask
        h = (h ^ h >> 16) * 0x85EBCA6B & mask
        h = (h ^ h >> 13) * 0xC2B2AE35 & mask
        h ^= h >> 16
    return h
