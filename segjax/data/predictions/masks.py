"""Predictions in mask files: one of classes per image, or one per image and class."""

import collections
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segjax.checks import UserError
from segjax.data import files, reading
from segjax.data.formats.opening import DEFAULT, Reading
from segjax.data.ids import Ids, make_id_map, map_mask
from segjax.data.predictions.names import SampleNames, warn_of_extra
from segjax.data.sources.coco import Coco
from segjax.spec import Colour, DatasetSpec, Segments, file_name


class Masks(NamedTuple):
    """Mask files of a split.

    source: the split to score against.
    spec: its data set, in the mode of the task.
    files: mask files of each sample: one, or in multi-label mode one per class.
    values: what values mean.
    """

    source: Any
    spec: DatasetSpec
    files: list[list[Path]]
    values: "Values"

    def read(self, i: int, sample: dict[str, np.ndarray]) -> Segments:
        """Reads the prediction of sample i, which has the size of the sample's label.

        Raises:
            UserError: a file cannot be read, or holds a value without a class; SizeMismatch: sizes differ.
        """
        labels = [self._label(path, sample["label"].shape[:2], i) for path in self.files[i]]
        return Segments(np.stack(labels, -1) > 0 if self.spec.mode == "multilabel" else labels[0])

    def _label(self, path, size, i):
        table, colours, threshold, how, listed = self.values
        mask = reading.read_mask(path, colours, reading=how, threshold=threshold)
        reading.check_sizes(size, mask.ids.shape, f"The ground truth of {self.source.name(i)}", str(path))
        label = map_mask(table, mask, self.spec, str(path), listed)
        return np.where(label == self.spec.ignore, 0, label) if self.spec.mode == "multilabel" else label


class Values(NamedTuple):
    """What the values of masks mean.

    table: label of each value, see `segjax.data.ids`.
    colours: value of each colour, of masks that are drawn in colours; otherwise None.
    threshold: grey value from which a pixel is of the second class; otherwise None.
    reading: what is made of orientation, transparency and so on.
    listed: values that the configuration maps itself.
    """

    table: Ids
    colours: dict[Colour, int] | None = None
    threshold: int | None = None
    reading: Reading = DEFAULT
    listed: frozenset[int] = frozenset()


def open_masks(folder: Path, source: Any, spec: DatasetSpec, ids: str) -> Masks:
    """Finds the mask of each sample in a folder and its subfolders, but for `overlays`.

    Args:
        folder: holds `<name>.png`, or another suffix of an image; multi-label: `<name>.<class>.png`.
        source: the split.
        spec: the data set, in the mode of its task.
        ids: "classes" if values are class indices; "source" if they are the data set's own, as in its mask files.

    Returns:
        The masks.

    Raises:
        UserError: a sample has no mask or two, or the source has no ids of its own.
    """
    values = _own_values(source) if ids == "source" else Values(make_id_map(spec))
    names, found, extra = SampleNames(source), collections.defaultdict(dict), []
    parts = [file_name(f".{name}") for name in spec.classes] if spec.mode == "multilabel" else [""]
    walked = files.walk(folder, folder / "overlays")
    for path in sorted(path for path in walked if path.suffix.lower() in files.SUFFIXES):
        stem = os.path.splitext(path.relative_to(folder).as_posix())[0]
        # The longest class name that fits: "a.red.car" is of class "red.car" if there is one.
        part = max((part for part in parts if stem.endswith(part)), key=len, default=None)
        sample = None if part is None else names.find(stem.removesuffix(part) + ".png")
        if sample is None:
            extra.append(str(path.relative_to(folder)))
        elif part in found[sample]:
            raise UserError(f"Both {found[sample][part]} and {path} are predictions of {names.names[sample]}.")
        else:
            found[sample][part] = path
    for part in parts:
        names.check_complete([i for i in found if part in found[i]], folder, f"mask <name>{part}.png")
    warn_of_extra(extra, folder, "files")
    return Masks(source, spec, [[found[i][part] for part in parts] for i in range(len(source))], values)


def _own_values(source):
    """Returns what values mean in a source's own masks."""
    if isinstance(source, Coco):
        return Values(make_id_map(source.spec, {key: k for key, k in source.known.items() if k is not None}))
    if not hasattr(source, "table"):
        raise UserError(f"The source {type(source).__name__} has no ids of its own: use --predictions_ids=classes.")
    colours, threshold = getattr(source, "colours", None), getattr(source, "threshold", None)
    return Values(source.table, colours, threshold, getattr(source, "reading", DEFAULT), source.listed)
