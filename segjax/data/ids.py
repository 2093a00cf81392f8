"""Class indices: the spec of named classes, and the lookup table from raw ids of mask files."""

import collections
import dataclasses
import re
import reprlib
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Integer, UInt8, UInt16

from segjax.checks import UserError
from segjax.spec import DatasetSpec, channel_names

IDS = 1 << 16
LOWEST = -(1 << 15)  # a table has an entry for each id from LOWEST to IDS - 1

Ids = Int32[np.ndarray, "ids"]


class Mask(NamedTuple):
    """The ids of a mask file.

    Attributes:
        ids: int32 [y, x].
        empty: pixels that the file marks as without data, bool [y, x]; None if there are none.
        nodata: value of pixels without data; None if the file declares none.
    """

    ids: Int32[np.ndarray, "y x"]
    empty: Bool[np.ndarray, "y x"] | None = None
    nodata: int | None = None

    @classmethod
    def of(cls, ids: Integer[np.ndarray, "y x"] | Bool[np.ndarray, "y x"]) -> "Mask":
        """Makes a mask from an array of ids of any width; those beyond 16 bits stay ids without a class."""
        return cls(np.clip(ids, LOWEST - 1, IDS).astype(np.int32))


@runtime_checkable
class DictLike(Protocol):
    """A dict or an `ml_collections.ConfigDict`."""

    def items(self) -> Iterable:
        """Returns the pairs of key and value."""


def class_list(classes: Sequence[Any] | DictLike, key: str = "source.classes") -> list[str]:
    """Brings class names to a list.

    Args:
        classes: the names, in the order of their index; or a mapping from the indices 0 .. n - 1, numbers or text, to
            the names, as in the data.yaml of Ultralytics.
        key: configuration key or file of the names, for the message.

    Returns:
        The names.

    Raises:
        UserError: they are one text, an index is missing or given twice, or a name is no text.

    Example:
        >>> class_list({"1": "car", "0": "person"})
        ['person', 'car']
        >>> class_list({0: "person", 2: "car"})
        Traceback (most recent call last):
        segjax.checks.UserError: source.classes: the mapping has no class 1; it must have 0 to 1.
    """
    if isinstance(classes, DictLike):
        names: dict[int, str] = {}
        for index, name in classes.items():
            if isinstance(index, bool) or not re.fullmatch(r"[0-9]{1,9}", str(index)):
                raise UserError(f"{key}: {index!r} is not the index of a class, a number from 0 on.")
            if int(index) in names:
                both = f"{reprlib.repr(names[int(index)])} and {reprlib.repr(name)}"
                raise UserError(f"{key}: the mapping has class {int(index)} twice: {both}.")
            names[int(index)] = name
        if missing := [k for k in range(len(names)) if k not in names]:
            raise UserError(f"{key}: the mapping has no class {missing[0]}; it must have 0 to {len(names) - 1}.")
        classes = [names[k] for k in range(len(names))]
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise UserError(
            f"{key}={reprlib.repr(classes)} must be a list of names, or a mapping from 0 .. n - 1 to names."
        )
    for name in classes:
        if not isinstance(name, str):
            raise UserError(f"{key}: the class name {reprlib.repr(name)} must be text; write it in quotes.")
    if twice := [name for name, count in collections.Counter(classes).items() if count > 1]:
        raise UserError(f"{key}: class names must be unique, but two are {twice[0]!r}.")
    return list(classes)


def make_spec(
    classes: Sequence[str] | DictLike,
    palette: Sequence[Sequence[int]] | None = None,
    things: Sequence[int | str] = (),
    mode: Literal["multiclass", "multilabel"] = "multiclass",
    channels: int = 3,
    dtype: str = "uint8",
) -> DatasetSpec:
    """Makes a spec whose ignore value is 255, or 65535 from 256 classes on.

    Args:
        classes: class names in the order of their index, see `class_list`.
        palette: (red, green, blue) of each class; by default the PASCAL VOC colours.
        things: names or indices of the classes that are countable objects.
        mode: "multilabel" for any number of classes per pixel.
        channels: number of image channels.
        dtype: dtype of the stored images.

    Returns:
        The spec.

    Raises:
        UserError: the arguments contradict each other.

    Example:
        >>> spec = make_spec(["cat", "dog"], palette=[[9, 9, 9], [0, 0, 0]], things=["dog"])
        >>> spec.colours, spec.things
        (((9, 9, 9), (0, 0, 0)), (1,))
    """
    names = class_list(classes)
    spec = DatasetSpec(
        classes=tuple(names),
        colours=tuple((int(r), int(g), int(b)) for r, g, b in palette or ()),
        ignore=255 if len(names) < 256 else IDS - 1,
        mode=mode,
        image_channels=channel_names(channels),
        image_dtype=dtype,
    )
    return dataclasses.replace(
        spec, things=tuple(sorted({class_index(thing, spec, "source.things") for thing in things}))
    )


def class_index(value: str | int, spec: DatasetSpec, key: str) -> int:
    """Looks up the index of a class.

    Args:
        value: name or index of the class, or "ignore".
        spec: the classes.
        key: configuration key of the value, for the message.

    Returns:
        The index; `spec.ignore` for "ignore".

    Raises:
        UserError: there is no such class.

    Example:
        >>> [class_index(value, DatasetSpec(("cat", "dog")), "source.ids") for value in ("dog", 0, "ignore")]
        [1, 0, 255]
    """
    if value in spec.classes:
        return spec.classes.index(value)
    if value == "ignore":
        return spec.ignore
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(spec.classes):
        return value
    raise UserError(f"{key}: {value!r} is not one of the classes {', '.join(spec.classes)}.")


def make_id_map(spec: DatasetSpec, ids: DictLike | None = None, ignore_ids: Sequence[int] = ()) -> Ids:
    """Builds the lookup table from raw ids to labels.

    Without `ids`, an id is a class index, and `spec.ignore` is unlabelled. With one or two classes, however, 255 has no
    label unless `ids` or `ignore_ids` lists it: many tools write the second of two classes as 255, and ignoring that
    would lose all of its pixels. Multi-label masks have one file per class: 0 means absent, any other id present.

    Args:
        spec: classes and ignore value of the labels.
        ids: class (name or index) of each id, or "ignore" for unlabelled pixels. Keys may be strings, as in JSON.
        ignore_ids: further ids of unlabelled pixels.

    Returns:
        Label of each id, -1 if it has none: ids 0 .. 65535 are followed by an entry for all numbers out of range, and
        that by ids -32768 .. -1, so that `table[-1]` is the label of id -1.

    Raises:
        UserError: a key is not an id, a class does not exist, or an id has two labels.

    Example:
        >>> make_id_map(DatasetSpec(("cat", "dog")), {"1": "cat", "2": "dog"}, ignore_ids=[3])[:5].tolist()
        [-1, 0, 1, 255, -1]
        >>> make_id_map(DatasetSpec(("no", "yes")))[[0, 1, 2, 255]].tolist()
        [0, 1, -1, -1]
    """
    k, multilabel = len(spec.classes), spec.mode == "multilabel"
    if ids:
        pairs = list(ids.items())
    elif multilabel:
        pairs = [(0, 0)]
    else:
        pairs = [*zip(range(k), range(k), strict=True), *([(spec.ignore, "ignore")] if k > 2 else [])]
    table = np.full(IDS + 1 - LOWEST, -1, np.int32)
    for key, value in [*pairs, *((key, "ignore") for key in ignore_ids)]:
        label = class_index(value, spec, "source.ids")
        if not re.fullmatch(r"-?\d+", str(key)) or not LOWEST <= int(key) < IDS:
            raise UserError(f"source.ids: {key!r} is not a number from {LOWEST} to {IDS - 1}.")
        if table[int(key)] not in (-1, label):
            raise UserError(f"source: id {key} has two labels; check source.ids and source.ignore_ids.")
        table[int(key)] = label
    if multilabel:
        table[:IDS][table[:IDS] < 0] = 1
    return table


def map_ids(
    table: Ids, raw: Integer[np.ndarray, "y x"], spec: DatasetSpec, name: str, nodata: int | None = None
) -> UInt8[np.ndarray, "y x"] | UInt16[np.ndarray, "y x"]:
    """Maps the ids of one mask to labels.

    Args:
        table: from `make_id_map`.
        raw: raw ids.
        spec: gives the dtype of the label.
        name: name of the mask, for messages.
        nodata: a further raw id of unlabelled pixels.

    Returns:
        The label, `spec.label_dtype`.

    Raises:
        UserError: an id has no label; the message counts its pixels.

    Example:
        >>> spec = DatasetSpec(("cat", "dog"))
        >>> map_ids(make_id_map(spec, {"7": "dog"}), np.array([[7, 7]]), spec, "pets/7.png")
        array([[1, 1]], dtype=uint8)
    """
    known = raw.size == 0 or (raw.min() >= LOWEST and raw.max() < IDS)
    label = table[raw if known else np.where((raw >= LOWEST) & (raw < IDS), raw, IDS)]
    if nodata is not None:
        label = np.where(raw == nodata, spec.ignore, label)
    if (label < 0).any():
        example = {"0": spec.classes[0], "255": spec.classes[-1]}
        raise UserError(
            f"{name} holds ids without a class: {format_counts(count_values(raw[label < 0]))}. Map every id to "
            f"a class, as in source.ids = {example}, or list ids of unlabelled pixels in source.ignore_ids."
        )
    return label.astype(spec.label_dtype)


def map_mask(
    table: Ids, mask: Mask, spec: DatasetSpec, name: str, listed: Container[int] = ()
) -> UInt8[np.ndarray, "y x"] | UInt16[np.ndarray, "y x"]:
    """Maps a mask file to labels: its ids, and what it marks as without data.

    Args:
        table: from `make_id_map`.
        mask: as read.
        spec: gives the dtype of the label.
        name: name of the mask, for messages.
        listed: ids that the configuration maps itself, whatever the file declares.

    Returns:
        The label, `spec.label_dtype`; `spec.ignore` where there is no data.

    Raises:
        UserError: an id has no label, or the value of pixels without data is the index of a class.

    Example:
        >>> spec = DatasetSpec(("cat", "dog"))
        >>> map_mask(make_id_map(spec), Mask(np.array([[0, 7]], np.int32), nodata=7), spec, "a.tif")
        array([[  0, 255]], dtype=uint8)
    """
    nodata = None if mask.nodata in listed else mask.nodata
    known = table[nodata] if nodata is not None and LOWEST <= nodata < IDS else -1
    if known not in (-1, spec.ignore) and spec.mode != "multilabel":
        raise UserError(
            f"{name} declares the value {nodata} as no data, but {nodata} is the class {spec.classes[known]!r}: list "
            "it in source.ignore_ids if it is unlabelled, or map it in source.ids if it is not."
        )
    label = map_ids(table, mask.ids, spec, name, nodata)
    if mask.empty is not None:
        label[mask.empty] = spec.ignore
    return label


def listed_ids(ids: DictLike | None, ignore_ids: Sequence[int]) -> frozenset[int]:
    """Returns the ids that a configuration maps itself.

    Example:
        >>> sorted(listed_ids({"7": "cat"}, (3,)))
        [3, 7]
    """
    return frozenset(int(key) for key in [*(dict(ids.items()) if ids else ()), *ignore_ids])


def source_ids(
    spec: DatasetSpec, ids: DictLike | None = None, ignore_ids: Sequence[int] = ()
) -> Int32[np.ndarray, "labels"]:
    """Builds the lookup table from labels to the raw ids of a data set, the reverse of `make_id_map`.

    Args:
        spec: classes and ignore value of the labels.
        ids: class of each id, as for `make_id_map`; None if ids are class indices.
        ignore_ids: further ids of unlabelled pixels.

    Returns:
        Id of each label 0 .. `spec.ignore`; unlabelled pixels get the smallest of their ids.

    Raises:
        UserError: a class has no id, or several.

    Example:
        >>> source_ids(DatasetSpec(("cat", "dog")), {"7": "cat", "3": "dog"}, ignore_ids=[0])[[0, 1, 255]].tolist()
        [7, 3, 0]
    """
    found = collections.defaultdict(list)
    for key, value in dict(ids.items()).items() if ids else ((k, k) for k in range(len(spec.classes))):
        found[class_index(value, spec, "source.ids")].append(int(key))
    for k, name in enumerate(spec.classes):
        if len(found[k]) != 1:
            listed = ", ".join(map(str, sorted(found[k]))) or "none"
            raise UserError(f"source.ids: class {name!r} must have one id to be written with it, but has {listed}.")
    table = np.full(spec.ignore + 1, min([*found[spec.ignore], *ignore_ids], default=spec.ignore), np.int32)
    table[: len(spec.classes)] = [found[k][0] for k in range(len(spec.classes))]
    return table


def count_values(raw: Integer[np.ndarray, "..."] | Bool[np.ndarray, "..."]) -> dict[int, int]:
    """Counts the values of an array.

    Args:
        raw: whole numbers of any shape.

    Returns:
        Count of each value, in ascending order of the values.

    Example:
        >>> count_values(np.array([[0, 255], [255, 255]]))
        {0: 1, 255: 3}
    """
    values, counts = np.unique(raw, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts, strict=True)}


def format_counts(counts: Mapping[int, int]) -> str:
    """Formats counted values for a message.

    Args:
        counts: pixels of each value, from `count_values`.

    Returns:
        The first five, and the number of the others.

    Example:
        >>> format_counts({3: 10, 4: 1})
        '3 (10 pixels), 4 (1 pixels)'
    """
    words = [f"{value} ({pixels} pixels)" for value, pixels in counts.items()]
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")
