"""Audits a data set before training: its contents, its class balance and every invalid sample."""

import collections
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from segjax.checks import UserError, first_names
from segjax.data.reading import CorruptImage, SizeMismatch

GLANCE = 12  # samples of a split that are read before a run


class Audit(NamedTuple):
    """Result of an audit.

    Attributes:
        samples: number of samples read.
        classes: class names.
        sizes: number of images of each "rows x columns".
        pixels: pixels of each class.
        images: number of images that contain each class.
        image_pixels: labelled pixels in the images that contain each class.
        labelled: labelled pixels; multi-label: summed over the classes.
        ignored: unlabelled pixels; multi-label: summed over the classes.
        objects: objects of each class; None if the source has no instance maps.
        most_objects: largest number of objects in an image.
        ids: pixels of each raw id in the mask files, mapped or not; None if the source has no `ids`.
        unreadable: error by name of the sample, for files that cannot be decoded.
        mismatched: the same, for images and masks of different sizes.
        invalid: the same, for every other error, such as ids without a class.
        facts: number of samples by what their files say beside pixels, such as an orientation; of sources that have
            `facts(i)`. Masks of several encodings are suspicious.
        pictures: digest of the image of each sample, by name.
        warnings: what opening the source found.
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
    facts: dict[str, dict[str, int]]
    pictures: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def ignored_share(self) -> float:
        """Fraction of unlabelled pixels, 0..1."""
        return self.ignored / max(self.labelled + self.ignored, 1)

    @property
    def errors(self) -> dict[str, str]:
        """Error of every invalid sample, by name."""
        return self.unreadable | self.mismatched | self.invalid

    def as_dict(self) -> dict[str, Any]:
        """Converts the result to a dict that JSON can store."""
        ids = self.ids and {str(value): count for value, count in self.ids.items()}
        found = {key: value for key, value in self._asdict().items() if key != "pictures"}
        return found | {"ids": ids, "ignored_share": self.ignored_share}


def audit(source: Any, limit: int | None = None, workers: int = 4, raw_ids: bool = True) -> Audit:
    """Reads the samples of a source and collects statistics; reports all invalid samples instead of raising.

    Args:
        source: data source (`spec`, `len`, `name`, `read`; `ids`, `facts` and `warnings` are optional).
        limit: number of samples to read, spread evenly over the source; None for all.
        workers: number of reader threads.
        raw_ids: whether to count raw ids, for which masks are read twice.

    Returns:
        The result. Invalid samples count in `samples` only, and in `ids` if their mask can be decoded.

    Example:
        >>> from segjax.data.sources.shapes import shapes
        >>> audit(shapes("test", count=2, size=(32, 48))).sizes
        {'32 x 48': 2}
    """
    count = len(source) if limit is None else min(limit, len(source))
    chosen = [i * len(source) // count for i in range(count)]
    k = len(source.spec.classes)
    sizes, ids, facts, pictures = collections.Counter(), collections.Counter(), {}, {}
    pixels, images, image_pixels, objects = np.zeros((4, k), np.int64)
    labelled = ignored = most = 0
    has_objects = False
    errors = {CorruptImage: {}, SizeMismatch: {}, UserError: {}}
    raw_ids = raw_ids and hasattr(source, "ids")
    with ThreadPoolExecutor(workers) as pool:
        for name, counts in pool.map(lambda i: (source.name(i), _look(source, i, raw_ids)), chosen):
            ids.update(counts.ids)
            for fact, value in counts.facts.items():
                facts.setdefault(fact, collections.Counter())[value] += 1
            if counts.error is not None:
                kind = next(kind for kind in errors if isinstance(counts.error, kind))
                errors[kind][name] = str(counts.error)
                continue
            pictures[name] = counts.picture
            sizes[f"{counts.size[0]} x {counts.size[1]}"] += 1
            pixels += counts.pixels
            images += counts.pixels > 0
            image_pixels += np.where(counts.pixels > 0, counts.valid, 0)
            labelled += counts.labelled
            ignored += counts.ignored
            if counts.objects is not None:
                has_objects = True
                objects += counts.objects
                most = max(most, int(counts.objects.sum()))
    return Audit(
        samples=count,
        classes=source.spec.classes,
        sizes=dict(sizes.most_common()),
        pixels=tuple(pixels.tolist()),
        images=tuple(images.tolist()),
        image_pixels=tuple(image_pixels.tolist()),
        labelled=labelled,
        ignored=ignored,
        objects=tuple(objects.tolist()) if has_objects else None,
        most_objects=most,
        ids=dict(sorted(ids.items())) if raw_ids else None,
        unreadable=errors[CorruptImage],
        mismatched=errors[SizeMismatch],
        invalid=errors[UserError],
        facts={fact: dict(values.most_common()) for fact, values in sorted(facts.items())},
        pictures=pictures,
        warnings=tuple(getattr(source, "warnings", ())),
    )


class _Counts(NamedTuple):
    """Statistics of one sample; pixels, valid and objects are int64 [k]."""

    ids: dict[int, int]
    error: UserError | None = None
    size: tuple[int, int] = (0, 0)
    pixels: Any = None
    valid: Any = None
    labelled: int = 0
    ignored: int = 0
    objects: Any = None
    facts: dict[str, str] = {}  # noqa: RUF012
    picture: str = ""


def _look(source, i, raw_ids):
    ids, facts = {}, {}
    try:
        facts = source.facts(i) if hasattr(source, "facts") else {}
        ids = source.ids(i) if raw_ids else {}
        sample = source.read(i)
        counts = _count(source.spec, sample["image"].shape[:2], sample["label"], ids, source.name(i))
        if "instance" in sample:
            counts = counts._replace(objects=_objects(source.spec, sample["label"], sample["instance"], source.name(i)))
        image = np.ascontiguousarray(sample["image"])
        digest = hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).hexdigest()
        return counts._replace(facts=facts, picture=digest)
    except UserError as error:
        return _Counts(ids, error, facts=facts)


def problems(audits: Mapping[str, Audit], whole: bool = True) -> list[str]:
    """Lists what is suspicious in the splits of a data set, beside invalid samples.

    Args:
        audits: audit of each split.
        whole: whether every sample was read; if not, a class may well occur in the others. What the opening of a split
            found was logged then.

    Returns:
        Sentences that name splits, classes and samples: files that fit no image, masks of several encodings, classes
        without a pixel, and pictures that occur twice, in one split or in two.

    Example:
        >>> from segjax.data.sources.shapes import shapes
        >>> found = audit(shapes("test", count=2, size=(32, 48)))
        >>> problems({"train": found, "test": found})[-1][:44]
        "2 pictures are in both 'train' and 'test': t"
    """
    listed, places = [], collections.defaultdict(list)
    for split, found in audits.items():
        listed += [f"split {split!r}: {warning}" for warning in found.warnings if whole]
        masks = found.facts.get("masks", {})
        if len([a for a in masks if not any(b.startswith(a) and a != b for b in masks)]) > 1:
            counted = "; ".join(f"{count} as {value:.40}" for value, count in masks.items())
            listed.append(f"The masks of split {split!r} are encoded differently, so their ids may differ: {counted}.")
        present = [name for name, pixels in zip(found.classes, found.pixels, strict=True) if pixels]
        if found.labelled and (whole or len(present) < 2):
            absent = [name for name in found.classes if name not in present]
            if absent and len(found.classes) > 1:
                listed.append(
                    f"{len(absent)} of {len(found.classes)} classes occur in no sample of split {split!r}: "
                    f"{first_names(absent)}."
                )
        for name, digest in found.pictures.items():
            places[digest].append((split, name))
    twins = [each for each in places.values() if len(each) > 1]
    for a in audits:
        same = [[name for split, name in each if split == a] for each in twins]
        if same := [names for names in same if len(names) > 1]:
            shown = first_names([" = ".join(names[:3]) for names in same])
            listed.append(f"{len(same)} pictures occur more than once in split {a!r}: {shown}.")
    names = list(audits)
    for a, b in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :]):
        both = [dict(reversed(each)) for each in twins]
        if both := [each for each in both if a in each and b in each]:
            shown = first_names([f"{each[a]} = {each[b]}" for each in both])
            listed.append(f"{len(both)} pictures are in both {a!r} and {b!r}: {shown}.")
    return listed


def glance(sources: Mapping[str, Any]) -> list[str]:
    """Reads some samples of each split before a run, and lists what is suspicious in them.

    Args:
        sources: source of each split.

    Returns:
        As `problems`; what only all samples can tell is left to `segjax inspect`.

    Raises:
        UserError: a sample is invalid; unreadable files are counted later.
    """
    audits = {split: audit(source, GLANCE, raw_ids=False) for split, source in sources.items()}
    for found in audits.values():
        for error in (found.mismatched | found.invalid).values():
            raise UserError(error)
    return problems(audits, whole=False)


def _count(spec, size, label, ids, name):
    k, multilabel = len(spec.classes), spec.mode == "multilabel"
    if label.shape[:2] != size:
        raise SizeMismatch(f"{name}: the image is {size}, the label {label.shape[:2]} (rows, columns).")
    histogram = np.bincount(label.ravel(), minlength=spec.ignore + 1)
    known = np.zeros(len(histogram), bool)
    known[[*range(2 if multilabel else k), spec.ignore]] = True
    if invalid := {int(v): int(histogram[v]) for v in np.flatnonzero(histogram * ~known)}:
        raise UserError(f"{name}: the label holds values that are not class indices (value: pixels): {invalid}.")
    ignored = int(histogram[spec.ignore])
    labelled = label.size - ignored
    if multilabel:
        pixels, valid = (label == 1).sum((0, 1)), (label != spec.ignore).sum((0, 1))
    else:
        pixels, valid = histogram[:k], labelled
    return _Counts(ids, None, size, pixels, valid, labelled, ignored)


def _objects(spec, label, instance, name):
    """Counts the objects of each class, int64 [k]; checks that they are numbered 1 .. n."""
    if label.shape != instance.shape:
        raise SizeMismatch(f"{name}: the label is {label.shape}, the instance map {instance.shape} (rows, columns).")
    numbers, first = np.unique(instance, return_index=True)
    first, numbers = first[numbers > 0], numbers[numbers > 0]
    classes = label.ravel()[first]
    own = np.zeros(int(numbers.max(initial=0)) + 1, np.int64)
    own[numbers] = classes
    if len(own) - 1 != len(numbers) or (label != own[instance])[instance > 0].any() or set(classes) - set(spec.things):
        raise UserError(f"{name}: objects must be numbered 1 .. n, each on exactly one thing class.")
    return np.bincount(classes, minlength=len(spec.classes))
