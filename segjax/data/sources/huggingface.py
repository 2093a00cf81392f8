"""Source of data sets of the Hugging Face library `datasets`, saved to disk or as parquet files."""

import dataclasses
import functools
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np

from segjax.checks import Key, UserError, spread
from segjax.data import files
from segjax.data import reading as reader
from segjax.data.formats.opening import DEFAULT, Reading
from segjax.data.ids import (
    DictLike,
    Ids,
    class_list,
    count_values,
    listed_ids,
    make_id_map,
    make_spec,
    map_mask,
)
from segjax.data.instances import without_data
from segjax.spec import DatasetSpec


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFace:
    """Rows with an image and a mask; made by `huggingface`.

    Attributes:
        spec: facts about the labels.
        root: folder of the data set.
        split: name of the split.
        rows: the split, a `datasets.Dataset` whose images are not decoded.
        image: column of the images.
        mask: column of the masks.
        channels: number of image channels.
        reading: what is made of orientation, transparency and so on.
        table: label of each id, see `segjax.data.ids`.
        listed: ids that the configuration maps.
    """

    spec: DatasetSpec
    root: Path
    split: str
    rows: Any
    image: str
    mask: str
    channels: int
    reading: Reading
    table: Ids
    listed: frozenset[int]

    def __len__(self):
        return len(self.rows)

    def name(self, i: int) -> str:
        """The split and the row of sample i."""
        split = re.sub(r"[^\w-]", "_", self.split)
        return f"{split}_{i}"

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of the label of sample i, from the header of its mask."""
        mask = self._file(self.rows[i], self.mask, i)
        if isinstance(mask, np.ndarray):
            return mask.shape[:2]
        return reader.read_size(mask, self._where(i, self.mask), reading=self.reading)

    def ids(self, i: int) -> dict[int, int]:
        """Counts the raw ids in the mask of sample i, mapped or not.

        Args:
            i: sample.

        Returns:
            Pixel count of each raw id.
        """
        return count_values(self._mask(self.rows[i], i).ids)

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Reads sample i.

        Args:
            i: sample.

        Returns:
            "image": `spec.image_dtype` [y, x, c]; "label": `spec.label_dtype` [y, x].

        Raises:
            CorruptImage: an image cannot be decoded.
            UserError: a column is empty, sizes differ, or the mask holds an id without a class.
        """
        row, image_name, mask_name = self.rows[i], self._where(i, self.image), self._where(i, self.mask)
        mask = self._mask(row, i)
        image, empty = reader.read_image(
            self._file(row, self.image, i),
            self.channels,
            self.spec.image_dtype,
            image_name,
            reading=self.reading,
            size=mask.ids.shape,
            stated_by=mask_name,
        )
        label = map_mask(self.table, mask, self.spec, mask_name, self.listed)
        return without_data({"image": image, "label": label}, empty, self.spec)

    def _where(self, i, column):
        return f"{self.root}, row {i} of {self.split!r} ({column})"

    def _mask(self, row, i):
        mask = self._file(row, self.mask, i)
        if isinstance(mask, np.ndarray):
            return reader.Mask.of(mask)
        return reader.read_mask(mask, name=self._where(i, self.mask), reading=self.reading)

    def _file(self, row, column, i):
        return _file(row[column], self._where(i, column), self.root)


def huggingface(
    split: str,
    *,
    channels: int = 3,
    reading: Reading = DEFAULT,
    root: Annotated[
        str,
        Key("folder that save_to_disk wrote, or one of parquet files; ~, $VARIABLES and {split} are expanded"),
    ],
    image: Annotated[str, Key("column of the images")] = "image",
    mask: Annotated[str, Key("column of the masks: image files or arrays of ids")] = "mask",
    classes: Annotated[Sequence[str] | DictLike, Key("class names in the order of their index")],
    ids: Annotated[
        DictLike | None,
        Key("raw mask value -> class; None: values are indices, and with 3 or more classes 255 is unlabelled"),
    ] = None,
    ignore_ids: Annotated[Sequence[int], Key("raw mask values of unlabelled pixels")] = (),
    palette: Annotated[
        Sequence[Sequence[int]] | None, Key("a colour per class, for pictures; None: the PASCAL VOC colours")
    ] = None,
) -> HuggingFace:
    """Opens a data set of the library `datasets` with a column of images and one of masks.

    `root` is a folder that `save_to_disk` wrote, of a data set with splits or of one alone; or a folder of parquet
    files or of images as `datasets.load_dataset` reads it, which then keeps a copy in its cache. Nothing is downloaded.
    The files in the columns are decoded as all image files of segjax are, not by the library.

    Args:
        split: name of the split, such as "train".
        channels: number of image channels, see `reading.read_image`.
        reading: what is made of orientation, transparency and so on.

    Returns:
        The source, in row order.

    Raises:
        UserError: `datasets` is not installed, the folder holds no data set, or it lacks the split or a column.

    Example:
        >>> source = huggingface("train", root="saved/pets", classes=("cat", "dog"))  # doctest: +SKIP
    """
    library, base = _library(), files.dataset_root(root, split)
    rows = _open(library, base, split, alone="{split}" in root)
    if missing := [column for column in (image, mask) if column not in rows.column_names]:
        key = "image" if missing[0] == image else "mask"
        raise UserError(f"source.{key}: {base} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}.")
    rows = rows.select_columns(list(dict.fromkeys((image, mask))))
    for column in (image, mask):
        if isinstance(rows.features[column], library.Image):
            rows = rows.cast_column(column, library.Image(decode=False))
    if not len(rows):
        raise UserError(f"source.root: split {split!r} of {base} has no rows.")
    some = [_file(rows[i][image], f"{base}, row {i} of {split!r} ({image})", base) for i in spread(range(len(rows)))]
    spec = make_spec(class_list(classes), palette, channels=channels, dtype=reader.common_dtype(some))
    table = make_id_map(spec, ids, ignore_ids)
    return HuggingFace(
        spec, base, split, _Rows(rows), image, mask, channels, reading, table, listed_ids(ids, ignore_ids)
    )


class _Rows:
    """Rows of a data set, which threads may read; the library's own are not made for that."""

    def __init__(self, rows):
        self.rows, self.lock = rows, threading.Lock()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        with self.lock:
            return self.rows[i]


@functools.cache
def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"The source 'huggingface' needs datasets. Run `pip install \"segjax[huggingface]\"` ({error})."
        ) from error
    return datasets


def _open(library, base, split, alone):
    """Opens a split; `alone` if the folder is already that of the split."""
    try:
        if (base / "dataset_dict.json").is_file():
            splits = library.load_from_disk(str(base))
        elif (base / "state.json").is_file():
            splits = {split: library.load_from_disk(str(base))} if alone else {}
            if not alone:
                raise UserError(
                    f"source.root: {base} holds one data set without splits: write {{split}} in source.root."
                )
        else:
            splits = library.load_dataset(str(base))
    except UserError:
        raise
    except Exception as error:  # the library raises errors of many kinds, and its own
        raise UserError(
            f"source.root: {base} cannot be opened as a data set ({type(error).__name__}: {error})."
        ) from error
    if alone and split not in splits and len(splits) == 1:
        return next(iter(splits.values()))  # one folder of files per split, which the library calls "train"
    if split not in splits:
        raise UserError(f"source.root: {base} has the splits {', '.join(splits)}, not {split!r}.")
    return splits[split]


def _file(value, where, root):
    """The image or mask of a row: its bytes, its path, or an array of ids."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return os.fspath(files.inside(root, value["path"], where))
    if isinstance(value, bytes):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise UserError(f"{where}: its rows differ in length.") from error
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise UserError(f"{where} holds {type(value).__name__}, not an image file or an array [y, x] of whole numbers.")
    return array
