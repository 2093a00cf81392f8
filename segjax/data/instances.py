"""Numbers the objects of an image 1 .. n, from id maps, object masks or lists of segments."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt8, UInt16

from segjax.checks import UserError
from segjax.spec import DatasetSpec

Labels = UInt8[np.ndarray, "y x"] | UInt16[np.ndarray, "y x"]
Instances = UInt16[np.ndarray, "y x"]

MAX_OBJECTS = np.iinfo(np.uint16).max


class ObjectMask(NamedTuple):
    """One object of an image.

    Attributes:
        inside: bool [y, x], its pixels within a window of the image.
        label: index of its class.
        crowd: whether it is a region of several objects without separate masks.
        corner: first row and column of the window.
    """

    inside: Bool[np.ndarray, "y x"]
    label: int
    crowd: bool = False
    corner: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, inside: Bool[np.ndarray, "y x"], label: int, crowd: bool = False) -> "ObjectMask":
        """Keeps only the window of a mask that the object fills: an image may have thousands of objects.

        Example:
            >>> ObjectMask.of(np.array([[False, False], [False, True]]), 2).corner
            (1, 1)
        """
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if not len(rows):
            return cls(inside[:0, :0].copy(), label, crowd)
        top, left = int(rows[0]), int(columns[0])
        return cls(inside[top : rows[-1] + 1, left : columns[-1] + 1].copy(), label, crowd, (top, left))


def number_instances(
    ids: Integer[np.ndarray, "y x"],
    label: Labels,
    spec: DatasetSpec,
    name: str,
    allow_crowds: bool = False,
) -> Instances:
    """Numbers the objects of an image 1 .. n, in ascending order of their ids.

    Each id is one object; its class is the thing class of most of its pixels (the lowest index in a tie). Label and
    instance maps that were drawn separately differ along borders, so its other pixels get number 0: on stuff and
    unlabelled pixels they belong to no object, on another thing class they are a crowd.

    Args:
        ids: above 0 for objects; 0 and below for none.
        label: class of each pixel, `spec.ignore` where unlabelled.
        spec: its `things` are the classes that have objects.
        name: name of the id file, for messages.
        allow_crowds: whether thing pixels without an object are crowds; otherwise they are an error.

    Returns:
        Numbers, uint16; 0 for stuff, for unlabelled pixels and for crowds.

    Raises:
        UserError: thing pixels belong to no object without `allow_crowds`, or there are more than 65,535 objects.

    Example:
        >>> spec = DatasetSpec(("road", "car"), things=(1,))
        >>> number_instances(np.array([[26007, 26002, 7]]), np.array([[1, 1, 0]], np.uint8), spec, "a.png")
        array([[2, 1, 0]], dtype=uint16)
    """
    is_thing = np.zeros(spec.ignore + 1, bool)
    is_thing[list(spec.things)] = True
    thing = is_thing[label]
    k = len(spec.classes)
    pairs = np.where(thing & (ids > 0), ids.astype(np.int64) * k + label, -1).ravel()
    # Neighbours mostly belong to one object: sorting runs of equal pixels is faster than sorting pixels.
    starts = np.flatnonzero(np.diff(pairs, prepend=-2))
    lengths = np.diff(starts, append=len(pairs))
    values, run = np.unique(pairs[starts], return_inverse=True)
    pixels = np.bincount(run, lengths, len(values))
    objects, classes = values // k, values % k
    order = np.lexsort((classes, -pixels, objects))
    chosen = order[np.unique(objects[order], return_index=True)[1]]
    chosen = chosen[values[chosen] >= 0]
    if len(chosen) > MAX_OBJECTS:
        raise UserError(
            f"{name} holds {len(chosen)} objects; an image can have at most {MAX_OBJECTS}. Cut it into tiles."
        )
    numbers = np.zeros(len(values), np.uint16)
    numbers[chosen] = np.arange(1, len(chosen) + 1)
    instance = np.repeat(numbers[run], lengths).reshape(label.shape)
    if not allow_crowds:
        _check_no_crowds(label[thing & (instance == 0)], spec, name)
    return instance


def _check_no_crowds(unassigned, spec, name):
    if unassigned.size:
        counts = np.bincount(unassigned)
        listed = ", ".join(f"{counts[c]} pixels of {spec.classes[c]!r}" for c in np.flatnonzero(counts))
        raise UserError(
            f"{name}: {listed} belong to no object. If they are groups of objects without separate ids, set "
            "source.allow_crowds=True; otherwise fix the file, or remove the class from source.things."
        )


def rasterise_masks(
    masks: Sequence[ObjectMask], shape: tuple[int, int], spec: DatasetSpec, name: str
) -> tuple[Labels, Instances]:
    """Paints possibly overlapping masks over class 0: small ones on top of large ones, objects on top of crowds.

    Args:
        masks: objects and crowds, in any order.
        shape: rows and columns.
        spec: the classes; class 0 is the background.
        name: name of the image, for messages.

    Returns:
        Label and instance maps. Visible objects are numbered in the given order; hidden objects have no number.

    Raises:
        UserError: more than 65,535 objects.

    Example:
        >>> spec = DatasetSpec(("background", "cup", "table"), things=(1, 2))
        >>> table, cup = ObjectMask(np.ones((1, 3), bool), 2), ObjectMask(np.array([[False, True, False]]), 1)
        >>> rasterise_masks([cup, table], (1, 3), spec, "a.jpg")
        (array([[2, 1, 2]], dtype=uint8), array([[2, 1, 2]], dtype=uint16))
    """
    label, ids = np.zeros(shape, spec.label_dtype), np.zeros(shape, np.int32)
    areas = [np.count_nonzero(mask.inside) for mask in masks]
    for i in sorted(range(len(masks)), key=lambda i: (not masks[i].crowd, -areas[i])):
        inside, (top, left) = masks[i].inside, masks[i].corner
        window = slice(top, top + inside.shape[0]), slice(left, left + inside.shape[1])
        label[window][inside] = masks[i].label
        ids[window][inside] = 0 if masks[i].crowd else i + 1
    return label, number_instances(ids, label, spec, name, allow_crowds=True)


def from_segments(
    ids: Integer[np.ndarray, "y x"],
    segments: Mapping[int, tuple[int, bool]],
    spec: DatasetSpec,
    name: str,
    listed: str,
) -> tuple[Labels, Instances]:
    """Converts the segment ids of an image to its label and instance maps.

    Args:
        ids: id of each pixel; 0 is void.
        segments: class index of each id, and whether it is a crowd.
        spec: the classes.
        name: name of the id file, for messages.
        listed: name of the list of segments, for messages.

    Returns:
        Label map, `spec.ignore` where void, and instance map.

    Raises:
        UserError: an id is only in the map or only in the list.

    Example:
        >>> spec = DatasetSpec(("sky", "bird"), things=(1,))
        >>> from_segments(np.array([[0, 9, 4]]), {9: (1, False), 4: (0, False)}, spec, "a.png", "a.json")
        (array([[255,   1,   0]], dtype=uint8), array([[0, 1, 0]], dtype=uint16))
    """
    present = set(np.unique(ids).tolist()) - {0}
    if absent := sorted(segments.keys() - present):
        raise UserError(
            f"{listed}: segment {absent[0]} has no pixel in {name} ({len(absent)} such). The two files do not match."
        )
    if unlisted := sorted(present - segments.keys()):
        pixels = np.count_nonzero(ids == unlisted[0])
        raise UserError(f"{name}: id {unlisted[0]} ({pixels} pixels) is not in {listed} ({len(unlisted)} such).")
    known = sorted(segments)
    place = np.searchsorted([0, *known], ids)
    label = np.array([spec.ignore, *(segments[i][0] for i in known)], spec.label_dtype)[place]
    objects = np.array([0, *(0 if segments[i][1] else i for i in known)])[place]
    return label, number_instances(objects, label, spec, name, allow_crowds=True)


def without_data(sample: dict[str, Any], empty: Bool[np.ndarray, "y x"] | None, spec: DatasetSpec) -> dict[str, Any]:
    """Makes the pixels of a sample without data unlabelled, and takes them from its objects.

    Args:
        sample: "label" and maybe "instance".
        empty: pixels without data; None if there are none.
        spec: gives the ignore value.

    Returns:
        The sample; objects that lie in these pixels alone leave no gap in the numbers.

    Example:
        >>> spec = DatasetSpec(("sky", "bird"), things=(1,))
        >>> sample = {"label": np.array([[1, 1]], np.uint8), "instance": np.array([[1, 2]], np.uint16)}
        >>> without_data(sample, np.array([[True, False]]), spec)["instance"].tolist()
        [[0, 1]]
    """
    if empty is None:
        return sample
    changed = {"label": sample["label"].copy()}
    changed["label"][empty] = spec.ignore
    if "instance" in sample:
        numbers = np.where(empty, 0, sample["instance"])
        kept = np.unique(np.append(numbers, 0))
        changed["instance"] = np.searchsorted(kept, numbers).astype(np.uint16)
    return sample | changed
