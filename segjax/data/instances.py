"""The objects of an image, whatever format they came in: numbered 1 .. n, painted from masks, looked up in lists."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt8, UInt16

from segjax.checks import UserError
from segjax.spec import DatasetSpec

Labels = UInt8[np.ndarray, "y x"] | UInt16[np.ndarray, "y x"]
Instances = UInt16[np.ndarray, "y x"]

MOST = np.iinfo(np.uint16).max


class Mask(NamedTuple):
    """One object of an image.

    Attributes:
        inside: bool [y, x], where it is.
        label: index of its class.
        crowd: whether it is a region of many objects that are not told apart.
    """

    inside: Bool[np.ndarray, "y x"]
    label: int
    crowd: bool = False


def number(
    ids: Integer[np.ndarray, "y x"],
    label: Labels,
    spec: DatasetSpec,
    name: str,
    crowds: bool = False,
) -> Instances:
    """Numbers the objects of an image 1 .. n, in ascending order of their ids.

    An id is one object, of the thing class that most of its pixels have (the first of equals). Maps of classes and of
    objects that were drawn apart differ along borders, so the rest of its pixels is of no object: none on stuff and
    where there is no truth, a crowd on another thing class.

    Args:
        ids: any number above 0 for an object; 0 and below for none.
        label: class of each pixel, with `spec.ignore` where there is no truth.
        spec: its `things` say which classes have objects.
        name: what to call the ids' file in messages.
        crowds: whether pixels of a thing class without an object are crowds; otherwise they are an error.

    Returns:
        Numbers, uint16; 0 for stuff, for no truth and for crowds.

    Raises:
        UserError: pixels of a thing class are of no object and `crowds` is False; there are more than 65,535 objects.

    Example:
        >>> spec = DatasetSpec(("road", "car"), things=(1,))
        >>> number(np.array([[26007, 26002, 7]]), np.array([[1, 1, 0]], np.uint8), spec, "a.png")
        array([[2, 1, 0]], dtype=uint16)
    """
    is_thing = np.zeros(spec.ignore + 1, bool)
    is_thing[list(spec.things)] = True
    thing = is_thing[label]
    k = len(spec.classes)
    pairs = np.where(thing & (ids > 0), ids.astype(np.int64) * k + label, -1).ravel()
    # Neighbours are mostly of one object: sorting the runs of equal pixels is faster than sorting the pixels.
    starts = np.flatnonzero(np.diff(pairs, prepend=-2))
    lengths = np.diff(starts, append=len(pairs))
    values, run = np.unique(pairs[starts], return_inverse=True)
    pixels = np.bincount(run, lengths, len(values))
    objects, classes = values // k, values % k
    order = np.lexsort((classes, -pixels, objects))
    chosen = order[np.unique(objects[order], return_index=True)[1]]
    chosen = chosen[values[chosen] >= 0]
    if len(chosen) > MOST:
        raise UserError(f"{name} holds {len(chosen)} objects; no more than {MOST} fit an image. Cut it into tiles.")
    numbers = np.zeros(len(values), np.uint16)
    numbers[chosen] = np.arange(1, len(chosen) + 1)
    instance = np.repeat(numbers[run], lengths).reshape(label.shape)
    if not crowds:
        _check_no_crowds(label[thing & (instance == 0)], spec, name)
    return instance


def _check_no_crowds(lost, spec, name):
    if lost.size:
        counts = np.bincount(lost)
        listed = ", ".join(f"{counts[c]} pixels of {spec.classes[c]!r}" for c in np.flatnonzero(counts))
        raise UserError(
            f"{name}: {listed} belong to no object. Where such pixels are groups of objects that are not told apart "
            "set source.crowds=True; otherwise mend the file, or leave the class out of source.things."
        )


def paint(masks: Sequence[Mask], shape: tuple[int, int], spec: DatasetSpec, name: str) -> tuple[Labels, Instances]:
    """Paints masks that may overlap into one map over class 0: the smaller lies on top, and objects on crowds.

    Args:
        masks: objects and crowds, in any order.
        shape: rows and columns.
        spec: the classes, of which the first is the background.
        name: what to call the image in messages.

    Returns:
        Label and instance maps. Objects are numbered in the order given; those that nothing is seen of have no number.

    Raises:
        UserError: more than 65,535 objects.

    Example:
        >>> spec = DatasetSpec(("background", "cup", "table"), things=(1, 2))
        >>> table, cup = Mask(np.ones((1, 3), bool), 2), Mask(np.array([[False, True, False]]), 1)
        >>> paint([cup, table], (1, 3), spec, "a.jpg")
        (array([[2, 1, 2]], dtype=uint8), array([[2, 1, 2]], dtype=uint16))
    """
    label, ids = np.zeros(shape, spec.label_dtype), np.zeros(shape, np.int32)
    areas = [np.count_nonzero(mask.inside) for mask in masks]
    for i in sorted(range(len(masks)), key=lambda i: (not masks[i].crowd, -areas[i])):
        label[masks[i].inside] = masks[i].label
        ids[masks[i].inside] = 0 if masks[i].crowd else i + 1
    return label, number(ids, label, spec, name, crowds=True)


def from_segments(
    ids: Integer[np.ndarray, "y x"],
    segments: Mapping[int, tuple[int, bool]],
    spec: DatasetSpec,
    name: str,
    listed: str,
) -> tuple[Labels, Instances]:
    """Turns the segment ids of an image into its label and instance maps.

    Args:
        ids: id of each pixel; 0 is void.
        segments: class index of each id, and whether it is a crowd.
        spec: the classes.
        name: what to call the ids' file in messages.
        listed: what to call the list of segments.

    Returns:
        Label, `spec.ignore` where void, and instance.

    Raises:
        UserError: an id is on one side only.

    Example:
        >>> spec = DatasetSpec(("sky", "bird"), things=(1,))
        >>> from_segments(np.array([[0, 9, 4]]), {9: (1, False), 4: (0, False)}, spec, "a.png", "a.json")
        (array([[255,   1,   0]], dtype=uint8), array([[0, 1, 0]], dtype=uint16))
    """
    found = set(np.unique(ids).tolist()) - {0}
    if lost := sorted(segments.keys() - found):
        raise UserError(
            f"{listed}: segment {lost[0]} has no pixel in {name} ({len(lost)} such). The two do not belong."
        )
    if strange := sorted(found - segments.keys()):
        pixels = np.count_nonzero(ids == strange[0])
        raise UserError(f"{name}: id {strange[0]} ({pixels} pixels) is no segment of {listed} ({len(strange)} such).")
    known = sorted(segments)
    place = np.searchsorted([0, *known], ids)
    label = np.array([spec.ignore, *(segments[i][0] for i in known)], spec.label_dtype)[place]
    objects = np.array([0, *(0 if segments[i][1] else i for i in known)])[place]
    return label, number(objects, label, spec, name, crowds=True)
