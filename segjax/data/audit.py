"""Looks at a data set before a run does: what it holds, how its classes are balanced, and everything wrong with it."""

import collections
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Integer

from segjax.checks import UserError
from segjax.data.reading import CorruptImage, SizeMismatch

Counts = Integer[np.ndarray, "k"] | Sequence[int]


class Audit(NamedTuple):
    """What an audit found.

    Attributes:
        samples: number of samples looked at.
        classes: class names.
        sizes: number of images of each "rows x columns".
        pixels: pixels of each class.
        images: number of images that hold each class.
        image_pixels: pixels with truth in the images that hold each class.
        labelled: pixels with truth; multi-label: summed over the classes.
        ignored: pixels without truth; multi-label: summed over the classes.
        objects: objects of each class; None where the source does not tell them apart.
        most_objects: the greatest number of objects in an image.
        ids: pixels of each id as stored in the mask files, known or not; None where the source cannot tell.
        unreadable: name of a sample and what is wrong, for files that cannot be decoded.
        mismatched: the same, for images and masks that differ in size.
        invalid: the same, for every other fault, such as ids without a class.
    """

    samples: int
    classes: tuple[str, ...]
    sizes: dict[str, int]
    pixels: tuple[int, ...]
    images: tuple[int, ...]
    image_pixels: tuple[int, ...]
    labelled: int
    ignored: int
    objects: tuple[int, ...] | None
    most_objects: int
    ids: dict[int, int] | None
    unreadable: dict[str, str]
    mismatched: dict[str, str]
    invalid: dict[str, str]

    @property
    def ignored_share(self) -> float:
        """Pixels without truth as a share of all, 0..1."""
        return self.ignored / max(self.labelled + self.ignored, 1)

    @property
    def errors(self) -> dict[str, str]:
        """Name of every faulty sample and what is wrong with it."""
        return self.unreadable | self.mismatched | self.invalid

    def as_dict(self) -> dict[str, Any]:
        """The findings as plain values that JSON can hold."""
        ids = self.ids and {str(value): count for value, count in self.ids.items()}
        return self._asdict() | {"ids": ids, "ignored_share": self.ignored_share}


def audit(source: Any, limit: int | None = None, workers: int = 4) -> Audit:
    """Reads the samples of a source and counts what they hold; goes on after faults and reports them all.

    Args:
        source: data source (`spec`, `len`, `name`, `read`; `ids` where it has it).
        limit: how many samples to look at, spread evenly over the source; None for all.
        workers: threads that read.

    Returns:
        The findings; faulty samples count in `samples` and, where their mask can be decoded, in `ids` only.

    Example:
        >>> from segjax.data.sources.shapes import shapes
        >>> audit(shapes("test", count=2, size=(32, 48))).sizes
        {'32 x 48': 2}
    """
    count = len(source) if limit is None else min(limit, len(source))
    chosen = [i * len(source) // count for i in range(count)]
    k = len(source.spec.classes)
    sizes, ids = collections.Counter(), collections.Counter()
    pixels, images, image_pixels, objects = np.zeros((4, k), np.int64)
    labelled = ignored = most = 0
    told = False
    faults = {CorruptImage: {}, SizeMismatch: {}, UserError: {}}
    with ThreadPoolExecutor(workers) as pool:
        for name, found in pool.map(lambda i: (source.name(i), _look(source, i)), chosen):
            ids.update(found.ids)
            if found.fault is not None:
                kind = next(kind for kind in faults if isinstance(found.fault, kind))
                faults[kind][name] = str(found.fault)
                continue
            sizes[f"{found.size[0]} x {found.size[1]}"] += 1
            pixels += found.pixels
            images += found.pixels > 0
            image_pixels += np.where(found.pixels > 0, found.valid, 0)
            labelled += found.labelled
            ignored += found.ignored
            if found.objects is not None:
                told = True
                objects += found.objects
                most = max(most, int(found.objects.sum()))
    return Audit(
        samples=count,
        classes=source.spec.classes,
        sizes=dict(sizes.most_common()),
        pixels=tuple(pixels.tolist()),
        images=tuple(images.tolist()),
        image_pixels=tuple(image_pixels.tolist()),
        labelled=labelled,
        ignored=ignored,
        objects=tuple(objects.tolist()) if told else None,
        most_objects=most,
        ids=dict(sorted(ids.items())) if hasattr(source, "ids") else None,
        unreadable=faults[CorruptImage],
        mismatched=faults[SizeMismatch],
        invalid=faults[UserError],
    )


class _Found(NamedTuple):
    """One sample: pixels, valid and objects are int64 [k]."""

    ids: dict[int, int]
    fault: UserError | None = None
    size: tuple[int, int] = (0, 0)
    pixels: Any = None
    valid: Any = None
    labelled: int = 0
    ignored: int = 0
    objects: Any = None


def _look(source, i):
    ids = {}
    try:
        ids = source.ids(i) if hasattr(source, "ids") else {}
        sample = source.read(i)
        found = _count(source.spec, sample["image"].shape[:2], sample["label"], ids, source.name(i))
        if "instance" in sample:
            found = found._replace(objects=_objects(source.spec, sample["label"], sample["instance"], source.name(i)))
        return found
    except UserError as fault:
        return _Found(ids, fault)


def _count(spec, size, label, ids, name):
    k, multilabel = len(spec.classes), spec.mode == "multilabel"
    if label.shape[:2] != size:
        raise SizeMismatch(f"{name}: the image is {size}, the label {label.shape[:2]} (rows, columns).")
    histogram = np.bincount(label.ravel(), minlength=spec.ignore + 1)
    known = np.zeros(len(histogram), bool)
    known[[*range(2 if multilabel else k), spec.ignore]] = True
    if strange := {int(v): int(histogram[v]) for v in np.flatnonzero(histogram * ~known)}:
        raise UserError(f"{name}: the label holds values that are no class (value: pixels): {strange}.")
    ignored = int(histogram[spec.ignore])
    labelled = label.size - ignored
    if multilabel:
        pixels, valid = (label == 1).sum((0, 1)), (label != spec.ignore).sum((0, 1))
    else:
        pixels, valid = histogram[:k], labelled
    return _Found(ids, None, size, pixels, valid, labelled, ignored)


def _objects(spec, label, instance, name):
    """Number of objects of each class, int64 [k]; checks that they are numbered as every source must."""
    if label.shape != instance.shape:
        raise SizeMismatch(f"{name}: the label is {label.shape}, the instance map {instance.shape} (rows, columns).")
    numbers, first = np.unique(instance, return_index=True)
    first, numbers = first[numbers > 0], numbers[numbers > 0]
    classes = label.ravel()[first]
    own = np.zeros(int(numbers.max(initial=0)) + 1, np.int64)
    own[numbers] = classes
    if len(own) - 1 != len(numbers) or (label != own[instance])[instance > 0].any() or set(classes) - set(spec.things):
        raise UserError(f"{name}: objects are not numbered 1 .. n, or lie on no thing class, or on several.")
    return np.bincount(classes, minlength=len(spec.classes))


def median_frequency(pixels: Counts, image_pixels: Counts) -> Float64[np.ndarray, "k"]:
    """Class weights by median frequency balancing: `median(f) / f_c`.

    `f_c` is the number of pixels of class c over the number of pixels in images that hold c (Eigen and Fergus
    2015; used by SegNet, Badrinarayanan et al. 2017). The median is over the classes that occur.

    Args:
        pixels: pixels of each class, [k].
        image_pixels: pixels with truth in the images that hold each class, [k].

    Returns:
        Weights, float64 [k]; 0 for a class that does not occur.

    Raises:
        UserError: no class occurs.

    Example:
        >>> median_frequency([100, 200, 400], [1000, 1000, 1000])
        array([2. , 1. , 0.5])
    """
    pixels, present = _counts(pixels)
    weights = np.zeros(len(pixels))
    frequency = pixels[present] / np.asarray(image_pixels, np.float64)[present]
    weights[present] = np.median(frequency) / frequency
    return weights


def inverse_frequency(pixels: Counts) -> Float64[np.ndarray, "k"]:
    """Class weights by inverse frequency: `N / (K n_c)`, so that the weights of all pixels average 1.

    `N` is the number of pixels, `K` of the classes that occur, `n_c` of the pixels of class c (King and Zeng 2001; the
    "balanced" weights of scikit-learn).

    Args:
        pixels: pixels of each class, [k].

    Returns:
        Weights, float64 [k]; 0 for a class that does not occur.

    Raises:
        UserError: no class occurs.

    Example:
        >>> inverse_frequency([100, 300])
        array([2.        , 0.66666667])
    """
    pixels, present = _counts(pixels)
    weights = np.zeros(len(pixels))
    weights[present] = pixels.sum() / (present.sum() * pixels[present])
    return weights


def effective_number(pixels: Counts, beta: float | None = None) -> Float64[np.ndarray, "k"]:
    """Class weights by the effective number of samples: `(1 - beta) / (1 - beta^n_c)`, scaled to a mean of 1.

    Cui et al. 2019, proposition 1 and section 4. Their beta of 0.9 to 0.9999 is for counts of images; where counts are
    in millions of pixels it gives all classes the same weight. `beta = (N - 1) / N`, with N the number of samples
    beyond which more add nothing new; here the median pixel count of the classes. So frequent classes have nearly one
    weight (they differ by a factor of 1.6 at most) and rare ones nearly that of inverse frequency.

    Args:
        pixels: pixels of each class, [k].
        beta: 0 gives equal weights, towards 1 inverse frequency; None for (N - 1) / N with N as above.

    Returns:
        Weights, float64 [k], with a mean of 1 over the classes that occur; 0 for one that does not.

    Raises:
        UserError: no class occurs, or beta is not in [0, 1).

    Example:
        >>> effective_number([10, 10, 0])
        array([1., 1., 0.])
    """
    pixels, present = _counts(pixels)
    if beta is not None and not 0 <= beta < 1:
        raise UserError(f"beta must be at least 0 and less than 1, got {beta}.")
    small = 1 / np.median(pixels[present]) if beta is None else 1 - beta
    weights = np.zeros(len(pixels))
    with np.errstate(divide="ignore"):  # beta = 0: log 0 = -inf, and exp(-inf) = 0 is right
        weights[present] = -1 / np.expm1(pixels[present] * np.log1p(-small))
    return weights / weights[present].mean()


def _counts(pixels):
    pixels = np.asarray(pixels, np.float64)
    if not pixels.any():
        raise UserError("Class weights need pixels: no class occurs in what was counted.")
    return pixels, pixels > 0
