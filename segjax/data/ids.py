"""From the ids that a mask holds to class indices: one table, and an error that counts what it leaves out."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32, Integer, UInt8, UInt16

from segjax.spec import DatasetSpec, UserError

IDS = 1 << 16


def make_map(
    spec: DatasetSpec, ids: Mapping[int | str, int | str] | None = None, ignore_ids: Sequence[int] = ()
) -> Int32[np.ndarray, "ids"]:
    """Builds the table from ids to labels.

    Args:
        spec: classes and ignore value of the labels.
        ids: class (name or index) of each id; the word "ignore" for no truth. Keys may be strings, as in JSON.
            When left out an id is a class index, and `spec.ignore` is ignored.
        ignore_ids: further ids without truth.

    Returns:
        Label of each id 0..65535, -1 where it has none; the last place stands for all numbers beyond.

    Raises:
        UserError: a key that is no id, a class that does not exist, or an id with two meanings.

    Example:
        >>> make_map(DatasetSpec(("cat", "dog")), {"1": "cat", "2": "dog"}, ignore_ids=[3])[:5].tolist()
        [-1, 0, 1, 255, -1]
    """
    if ids is None:
        ids = {**{k: k for k in range(len(spec.classes))}, spec.ignore: "ignore"}
    table = np.full(IDS + 1, -1, np.int32)
    pairs = [(key, _index(value, spec)) for key, value in ids.items()]
    for key, index in [*pairs, *((key, spec.ignore) for key in ignore_ids)]:
        if not str(key).isdecimal() or int(key) >= IDS:
            raise UserError(f"source.ids: {key!r} is not a number from 0 to {IDS - 1}.")
        if table[int(key)] not in (-1, index):
            raise UserError(f"source: id {key} is given two meanings; compare source.ids and source.ignore_ids.")
        table[int(key)] = index
    return table


def apply(
    table: Int32[np.ndarray, "ids"], raw: Integer[np.ndarray, "y x"], spec: DatasetSpec, name: str
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
    label = table[np.where((raw >= 0) & (raw < IDS), raw, IDS)]
    if (label < 0).any():
        values, counts = np.unique(raw[label < 0], return_counts=True)
        found = ", ".join(f"{v} ({n} pixels)" for v, n in list(zip(values, counts, strict=True))[:5])
        more = f" and {len(values) - 5} more" if len(values) > 5 else ""
        raise UserError(
            f"{name} holds ids that belong to no class: {found}{more}. "
            "Map them to a class in source.ids, or list them in source.ignore_ids."
        )
    return label.astype(spec.label_dtype)


def _index(value, spec):
    """Index of a class given by name or index; the ignore value for the word "ignore"."""
    if value in spec.classes:
        return spec.classes.index(value)
    if value == "ignore":
        return spec.ignore
    if isinstance(value, int) and 0 <= value < len(spec.classes):
        return value
    raise UserError(f"source.ids: {value!r} is none of the classes {', '.join(spec.classes)}.")
