"""From the ids that a mask holds to class indices: one table for every source, and errors that count what it misses."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Integer, UInt8, UInt16

from segjax.checks import UserError
from segjax.spec import DatasetSpec, channel_names

IDS = 1 << 16

Ids = Int32[np.ndarray, "ids"]


@runtime_checkable
class Table(Protocol):
    """A dict, or what stands for one in a configuration (`ml_collections.ConfigDict`)."""

    def items(self) -> Iterable:
        """The pairs of key and value."""


def make_spec(
    classes: Sequence[str],
    palette: Sequence[Sequence[int]] | None = None,
    things: Sequence[int | str] = (),
    mode: Literal["multiclass", "multilabel"] = "multiclass",
    channels: int = 3,
    dtype: str = "uint8",
) -> DatasetSpec:
    """Describes labels that ignore 255, or 65535 where 255 may be a class.

    Args:
        classes: class names in the order of their index.
        palette: (red, green, blue) of each class; the PASCAL VOC colours when left out.
        things: names or indices of the classes that are countable objects.
        mode: "multilabel" for any number of classes a pixel.
        channels: number of the images' channels.
        dtype: of the images as stored.

    Returns:
        The description.

    Raises:
        UserError: its parts do not fit.

    Example:
        >>> spec = make_spec(["cat", "dog"], palette=[[9, 9, 9], [0, 0, 0]], things=["dog"])
        >>> spec.colours, spec.things
        (((9, 9, 9), (0, 0, 0)), (1,))
    """
    spec = DatasetSpec(
        classes=tuple(classes),
        colours=tuple((int(r), int(g), int(b)) for r, g, b in palette or ()),
        ignore=255 if len(classes) < 256 else IDS - 1,
        mode=mode,
        image_channels=channel_names(channels),
        image_dtype=dtype,
    )
    return dataclasses.replace(spec, things=tuple(sorted({index(thing, spec, "source.things") for thing in things})))


def index(value: str | int, spec: DatasetSpec, key: str) -> int:
    """Looks up a class.

    Args:
        value: its name or index, or the word "ignore".
        spec: the classes.
        key: configuration key that it stands in, for the message.

    Returns:
        The index; `spec.ignore` for "ignore".

    Raises:
        UserError: there is no such class.

    Example:
        >>> [index(value, DatasetSpec(("cat", "dog")), "source.ids") for value in ("dog", 0, "ignore")]
        [1, 0, 255]
    """
    if value in spec.classes:
        return spec.classes.index(value)
    if value == "ignore":
        return spec.ignore
    if isinstance(value, int) and 0 <= value < len(spec.classes):
        return value
    raise UserError(f"{key}: {value!r} is none of the classes {', '.join(spec.classes)}.")


def make_map(spec: DatasetSpec, ids: Table | None = None, ignore_ids: Sequence[int] = ()) -> Ids:
    """Builds the table from ids to labels.

    Without `ids` an id is a class index, and `spec.ignore` has no truth. With one or two classes, though, 255 means
    nothing until `ids` or `ignore_ids` names it: many tools write the second of two classes as 255, and to ignore it
    would lose every pixel of that class. Multi-label masks are a file a class: 0 is not the class, any other id is.

    Args:
        spec: classes and ignore value of the labels.
        ids: class (name or index) of each id; the word "ignore" for no truth. Keys may be strings, as in JSON.
        ignore_ids: further ids without truth.

    Returns:
        Label of each id 0..65535, -1 where it has none; the last place stands for all numbers beyond.

    Raises:
        UserError: a key that is no id, a class that does not exist, or an id with two meanings.

    Example:
        >>> make_map(DatasetSpec(("cat", "dog")), {"1": "cat", "2": "dog"}, ignore_ids=[3])[:5].tolist()
        [-1, 0, 1, 255, -1]
        >>> make_map(DatasetSpec(("no", "yes")))[[0, 1, 2, 255]].tolist()
        [0, 1, -1, -1]
    """
    k, multilabel = len(spec.classes), spec.mode == "multilabel"
    if ids:
        pairs = list(ids.items())
    elif multilabel:
        pairs = [(0, 0)]
    else:
        pairs = [*zip(range(k), range(k), strict=True), *([(spec.ignore, "ignore")] if k > 2 else [])]
    table = np.full(IDS + 1, -1, np.int32)
    for key, value in [*pairs, *((key, "ignore") for key in ignore_ids)]:
        label = index(value, spec, "source.ids")
        if not str(key).isdecimal() or int(key) >= IDS:
            raise UserError(f"source.ids: {key!r} is not a number from 0 to {IDS - 1}.")
        if table[int(key)] not in (-1, label):
            raise UserError(f"source: id {key} is given two meanings; compare source.ids and source.ignore_ids.")
        table[int(key)] = label
    if multilabel:
        table[:IDS][table[:IDS] < 0] = 1
    return table


def apply(
    table: Ids, raw: Integer[np.ndarray, "y x"], spec: DatasetSpec, name: str
) -> UInt8[np.ndarray, "y x"] | UInt16[np.ndarray, "y x"]:
    """Maps the ids of one mask to labels.

    Args:
        table: from `make_map`.
        raw: ids.
        spec: gives the dtype of the label.
        name: the mask's name in messages.

    Returns:
        The label, `spec.label_dtype`.

    Raises:
        UserError: an id without a label; the message counts its pixels.

    Example:
        >>> spec = DatasetSpec(("cat", "dog"))
        >>> apply(make_map(spec, {"7": "dog"}), np.array([[7, 7]]), spec, "pets/7.png")
        array([[1, 1]], dtype=uint8)
    """
    known = raw.size == 0 or (raw.min() >= 0 and raw.max() < IDS)
    label = table.take(raw if known else np.where((raw >= 0) & (raw < IDS), raw, IDS))
    if (label < 0).any():
        example = {"0": spec.classes[0], "255": spec.classes[-1]}
        raise UserError(
            f"{name} holds ids that belong to no class: {listing(count(raw[label < 0]))}. Map every id to a class, as "
            f"in source.ids = {example}, or list ids without truth in source.ignore_ids."
        )
    return label.astype(spec.label_dtype)


def count(raw: Integer[np.ndarray, "..."] | Bool[np.ndarray, "..."]) -> dict[int, int]:
    """Counts the values of an array.

    Args:
        raw: whole numbers of any shape.

    Returns:
        Number of times each value occurs, in the order of the values.

    Example:
        >>> count(np.array([[0, 255], [255, 255]]))
        {0: 1, 255: 3}
    """
    values, counts = np.unique(raw, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts, strict=True)}


def listing(counts: Mapping[int, int]) -> str:
    """Puts counted values in words.

    Args:
        counts: pixels of each value, from `count`.

    Returns:
        The first five, and how many more there are.

    Example:
        >>> listing({3: 10, 4: 1})
        '3 (10 pixels), 4 (1 pixels)'
    """
    words = [f"{value} ({pixels} pixels)" for value, pixels in counts.items()]
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")
