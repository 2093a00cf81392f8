"""Compares data sets that are opened apart but must agree, and maps the labels of one to the classes of another."""

import dataclasses
import logging
from typing import Any

import numpy as np

from segjax.checks import UserError
from segjax.spec import DatasetSpec

log = logging.getLogger("segjax")


@dataclasses.dataclass(frozen=True, eq=False)
class Matched:
    """A source whose labels have the class indices of another data set; made by `match`.

    Attributes:
        source: the source as opened.
        spec: the classes and the ignore value of its labels.
        table: new label of each label of the source.
    """

    source: Any
    spec: DatasetSpec
    table: np.ndarray

    def __len__(self):
        return len(self.source)

    def __getattr__(self, name):
        """Everything else is that of the source, such as `name` and `size`."""
        return getattr(self.source, name)

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Reads sample i of the source, with mapped labels."""
        sample = self.source.read(i)
        label = sample["label"]
        if self.spec.mode == "multilabel":
            known = np.append(label, np.full((*label.shape[:2], 1), self.source.spec.ignore, label.dtype), -1)
            label = known[..., self.table]
            label = np.where(label == self.source.spec.ignore, self.spec.ignore, label)
        else:
            label = self.table[label]
        return sample | {"label": label.astype(self.spec.label_dtype)}


def match(source: Any, spec: DatasetSpec, opened: str, other: str) -> Any:
    """Maps the labels of a source to the classes of another data set, by their names.

    A class that the source lacks does not occur in it; with several labels per pixel it is unlabelled.

    Args:
        source: as opened.
        spec: the other data set, such as the one that a model was trained on.
        opened: name of the source in messages, such as "split 'test'".
        other: name of the other data set.

    Returns:
        The source itself if all agrees, else a source whose labels are mapped.

    Raises:
        UserError: the source has a class that the other data set lacks, other things, another mode, or other images.

    Example:
        >>> from segjax.data.sources.arrays import arrays
        >>> data = {"test": {"image": np.zeros((1, 1, 2, 3), np.uint8), "label": np.array([[[0, 1]]], np.uint8)}}
        >>> source = arrays("test", data=data, classes=("road", "sky"))
        >>> match(source, DatasetSpec(("sky", "road")), "split 'test'", "split 'train'").read(0)["label"]
        array([[1, 0]], dtype=uint8)
    """
    own = source.spec
    if (own.mode == "multilabel") != (spec.mode == "multilabel"):
        raise UserError(f"{opened} has {own.mode} labels, but {other} {spec.mode} ones.")
    for fact, what in (("image_channels", "image channels"), ("image_dtype", "pixels")):
        if getattr(own, fact) != getattr(spec, fact):
            raise UserError(f"{opened} has {what} {getattr(own, fact)}, but {other} {getattr(spec, fact)}.")
    if unknown := [name for name in own.classes if name not in spec.classes]:
        raise UserError(
            f"{opened} has classes that {other} lacks: {', '.join(unknown)}. {opened}: {', '.join(own.classes)}. "
            f"{other}: {', '.join(spec.classes)}."
        )
    things, others = ({each.classes[k] for k in each.things} for each in (own, spec))
    if things != others & set(own.classes):
        raise UserError(
            f"The classes of countable objects are {', '.join(sorted(things)) or 'none'} in {opened}, but "
            f"{', '.join(sorted(others)) or 'none'} in {other}."
        )
    if own.classes == spec.classes and own.ignore == spec.ignore:
        return source
    indices = [spec.classes.index(name) for name in own.classes]
    if spec.mode == "multilabel":
        table = np.full(len(spec.classes), len(own.classes))
        table[indices] = range(len(indices))
    else:
        table = np.full(max(own.ignore, len(indices)) + 1, spec.ignore)
        table[: len(indices)] = indices
    if own.classes != spec.classes:
        log.info("%s lists other classes, or in another order, than %s: they are matched by name.", opened, other)
    return Matched(source, dataclasses.replace(spec, mode=own.mode), table)
