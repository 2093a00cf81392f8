"""Turns (seed, step) into a batch: the same pixels for any number of hosts, from any step on.

No iterator has state: the samples of batch t are the global positions t * batch_size .. (t + 1) * batch_size - 1,
a position gives a sample and an augmentation, and each host makes its own share of the rows.
"""

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import numpy as np

from segjax.checks import Key, UserError
from segjax.data import copy_paste, geometry, loader
from segjax.data.loader import Batch, Layout, Loading, Sample, Scene
from segjax.data.reading import SAMPLE, CorruptImage
from segjax.spec import DatasetSpec, Preprocess

log = logging.getLogger("segjax")

MOST_OBJECTS = 2**16 - 1  # that a uint16 map numbers


class Arrangement(NamedTuple):
    """How the samples of a split lie in batches.

    count: batches in one pass over the split; a fraction in training, where batches run across epochs.
    layouts: (first batch, layout) of each stretch of batches that share a shape.
    rows: (evaluation) index in the source of each row of all batches, -1 for padding.
    """

    count: int | float
    layouts: list[tuple[int, Layout]]
    rows: Sequence[int] = ()


@dataclasses.dataclass
class Batches:
    """Batches of one split; a batch is a pure function of its number.

    Attributes:
        sample: global position -> Sample.
        arrange: () -> Arrangement, called when it is first needed: in evaluation it reads the sizes of all images.
        process: index of this host, number of hosts.
        corrupt: name -> reason of the unreadable samples met so far.
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
        """Facts about labels and images."""
        return self.source.spec

    @property
    def count(self) -> int | float:
        """Batches in one pass over the split."""
        return self.arrange().count

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of each array of the largest batch, the last, over all hosts."""
        arrays = self.arrange().layouts[-1][1].arrays
        return {key: ((self.batch_size, *shape), dtype) for key, (shape, dtype) in arrays.items()}

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yields this host's rows of the batches start .. stop - 1, dicts of arrays as in `segjax.spec`.

        Opening at `start` takes no longer than at 0. A UserError says what is wrong with a sample, or that too many
        images cannot be read.
        """
        host, hosts = self.process
        rows, layouts = self.batch_size // hosts, self.arrange().layouts
        ends = [first for first, _ in layouts[1:]] + [math.inf]
        for (begin, layout), end in zip(layouts, ends, strict=True):
            first, last = max(start, begin), min(stop, end)

            def sample(i, first=first):
                return self.sample((first + i // rows) * self.batch_size + host * rows + i % rows)

            for batch in loader.run(self.loading, sample, max(0, last - first) * rows, rows, layout):
                self._check_corrupt()
                yield batch

    def _check_corrupt(self):
        # A host counts what it met itself: in training, in time, every sample, in evaluation its share of them.
        met = len(self.source) / (self.process[1] if self.arrange().rows else 1)
        if len(self.corrupt) > self.loading.max_corrupt * met:
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
    batch_size: Annotated[int, Key("images a step, over all devices and hosts", "[1, inf)")] = 8,
    crop: Annotated[tuple[int, int], Key("rows, columns of a crop, in network pixels", "[1, inf)")] = (128, 128),
    scale: Annotated[tuple[float, float], Key("range of the zoom, drawn log-uniformly", "(0, inf)")] = (1.0, 1.0),
    rotate: Annotated[float, Key("largest rotation to either side, in degrees")] = 0.0,
    flip_horizontal: Annotated[bool, Key("mirror left and right in half of the samples")] = True,
    flip_vertical: Annotated[bool, Key("mirror top and bottom in half of the samples")] = False,
    elastic: Annotated[float, Key("deviation of displacements in network pixels (U-Net paper: 10)", "[0, inf)")] = 0.0,
    elastic_grid: Annotated[int, Key("displacements a side, bicubic in between (U-Net paper: 3)", "[2, inf)")] = 3,
    rare: Annotated[float, Key("share of crops around a pixel of a random class of the image", "[0, 1]")] = 0.0,
    paste: Annotated[float, Key("share of crops into which objects of another image are pasted", "[0, 1]")] = 0.0,
) -> Batches:
    """Batches of random crops, without end.

    The keyword arguments are the keys of the section `data`. `rare` draws the class evenly from those in the image;
    `paste` takes half of the objects of another image's crop (Ghiasi et al. 2021, "Simple Copy-Paste",
    arXiv:2012.07177, which takes a random subset of them too).

    Args:
        source: samples by index.
        preprocess: how images become inputs.
        loading: how samples are read.
        seed: sample order and augmentation are functions of (seed, position).
        process: (index of this host, number of hosts).
        max_objects: give instance maps, with at most so many objects an image; 0 gives none.

    Returns:
        The batches.

    Raises:
        UserError: settings that do not fit the images or the hosts.
    """
    drawing = geometry.Geometry(
        tuple(crop), tuple(scale), rotate, flip_horizontal, flip_vertical, elastic, elastic_grid, rare
    )
    _check_crop(drawing, source, preprocess)
    if paste:
        copy_paste.check(paste, max_objects, preprocess)
    corrupt: dict[str, str] = {}
    if max_objects:
        _read(source, 0, max_objects, corrupt)  # a source without instance maps is known before a network is made

    def scene(index: int, key: int) -> Scene:
        image, label, instance = _read(source, index, max_objects, corrupt)
        warp = geometry.draw(drawing, label, source.spec.ignore, preprocess, (seed, key))
        return Scene(image, label, instance, warp)

    def sample(position: int) -> Sample:
        index = shuffled(position, len(source), seed)
        # Positions wrap after 2^31 samples: int32 is what every accelerator folds into a key.
        made = Sample(scene(index, position), np.int32(index), np.int32(position % 2**31))
        if paste:
            random, key = copy_paste.generator(seed, position)
            if random.random() < paste:
                other = scene(int(random.integers(len(source))), key)
                numbers = copy_paste.draw_numbers(random, made.scene.instance, other.instance, max_objects)
                return made._replace(pasted=other, numbers=numbers)
        return made

    layout = Layout(drawing.crop, drawing.crop, source.spec, preprocess, whole=False, instances=max_objects > 0)
    arrangement = Arrangement(len(source) / batch_size, [(0, layout)])
    _check_hosts(batch_size, process, "data.batch_size")
    return Batches(source, preprocess, batch_size, sample, lambda: arrangement, process, loading, corrupt)


def _check_crop(drawing, source, preprocess):
    """Checks the crop against a sample spread over the set, and against all of it before a crop is refused."""
    every = range(len(source))
    try:
        geometry.check(drawing, {_size(source, i) for i in every[:: len(every) // SAMPLE + 1]}, preprocess)
    except UserError:
        geometry.check(drawing, {_size(source, i) for i in every}, preprocess)


def eval_batches(
    source: Any,
    preprocess: Preprocess,
    loading: Loading,
    process: tuple[int, int] = (0, 1),
    instances: bool = False,
    *,
    batch_size: Annotated[int, Key("images a step, over all devices and hosts", "[1, inf)")] = 8,
    buckets: Annotated[
        int, Key("groups of like-sized images; each is padded to its own largest and compiled once", "[1, inf)")
    ] = 1,
) -> Batches:
    """Batches of whole images, each once, labels at their own size.

    Images are sorted by size into `buckets` groups of equal number; a group is padded to its largest image, so that a
    step is compiled once a group. Padded pixels and rows are labelled `ignore`, and weigh nothing; what a network makes
    of the pixels beside them depends a little on the padding, so that predictions of single images may differ there.
    Sizes are read from the heads of the files, in the readers' threads, before the first batch. The keyword arguments
    are the keys of the section `eval`.

    Args:
        source: samples by index.
        preprocess: how images become inputs.
        loading: how samples are read.
        process: (index of this host, number of hosts).
        instances: give instance maps.

    Returns:
        The batches; `count` of them are one pass.

    Raises:
        UserError: a batch size that the hosts cannot share.
    """
    _check_hosts(batch_size, process, "eval.batch_size")
    spec = source.spec

    @functools.cache
    def arrange() -> Arrangement:
        with ThreadPoolExecutor(loading.workers or os.cpu_count() or 1) as pool:
            sizes = np.array(list(pool.map(functools.partial(_size, source), range(len(source)))))
        order = np.lexsort((np.arange(len(source)), sizes[:, 1], sizes.prod(1)))
        rows: list[int] = []
        layouts: list[tuple[int, Layout]] = []
        for group in np.array_split(order, min(buckets, len(source))):
            labels = tuple(sizes[group].max(0).tolist())
            inputs = np.max([geometry.resized((y, x), preprocess.resize) for y, x in sizes[group].tolist()], axis=0)
            layout = Layout(tuple(inputs.tolist()), labels, spec, preprocess, True, instances)
            if not layouts or layouts[-1][1] != layout:
                rows += [-1] * (-len(rows) % batch_size)
                layouts.append((len(rows) // batch_size, layout))
            rows += group.tolist()
        rows += [-1] * (-len(rows) % batch_size)
        return Arrangement(len(rows) // batch_size, layouts, rows)

    corrupt: dict[str, str] = {}

    def sample(position: int) -> Sample:
        index = arrange().rows[position]
        read = _nothing(spec) if index < 0 else _read(source, index, MOST_OBJECTS * instances, corrupt)
        y, x = read[1].shape[:2]
        content = np.array([*geometry.resized((y, x), preprocess.resize), y, x], np.int32)
        scene = Scene(*read, geometry.whole((y, x), preprocess))
        return Sample(scene, np.int32(index), np.int32(position), content)

    return Batches(source, preprocess, batch_size, sample, arrange, process, loading, corrupt)


def _check_hosts(batch_size, process, key):
    if batch_size < 1 or batch_size % process[1]:
        raise UserError(f"{key}={batch_size} cannot be divided over {process[1]} hosts.")


def _read(source, index, max_objects, corrupt):
    """Image, label and instance map of a sample; an unreadable one is noted and becomes one unlabelled pixel."""
    try:
        sample = source.read(index)
    except CorruptImage as error:
        if source.name(index) not in corrupt:
            corrupt[source.name(index)] = str(error)
            log.warning("Unreadable, and counted as unlabelled: %s", error)
        return _nothing(source.spec)
    given = sample["image"].shape[2], sample["image"].dtype.name
    if given != (said := (len(source.spec.image_channels), source.spec.image_dtype)):
        raise UserError(f"{source.name(index)} has (channels, dtype) {given}, but the spec of its source says {said}.")
    if not max_objects:
        return sample["image"], sample["label"], None
    if "instance" not in sample:
        raise UserError(
            f"{source.name(index)} comes without an instance map, which this task needs: set source.instances, or use "
            "a source of objects, such as coco_panoptic."
        )
    if (most := int(sample["instance"].max())) > max_objects:
        raise UserError(
            f"{source.name(index)} holds {most} objects, more than objective.max_objects={max_objects}: raise it."
        )
    return sample["image"], sample["label"], sample["instance"]


def _size(source, index):
    """Rows and columns of a sample; of an unreadable one, those of `_nothing`."""
    try:
        return source.size(index)
    except CorruptImage:
        return 1, 1


def _nothing(spec):
    """One black unlabelled pixel: image, label and instance map."""
    image = np.zeros((1, 1, len(spec.image_channels)), spec.image_dtype)
    label = np.full((1, 1, *spec.layers), spec.ignore, spec.label_dtype)
    return image, label, np.zeros((1, 1), np.uint16)


def shuffled(position: int, count: int, seed: int) -> int:
    """Index of the sample that stands at a global position; each epoch of `count` positions is a permutation.

    A Feistel network over the next power of four, walked until it lands below `count`: constant time and memory for any
    position, and the same numbers on every version of every library.
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
