"""Images and masks as files in folders."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from segjax.data import files, reading
from segjax.spec import Colour, DatasetSpec, UserError

IDS = 1 << 16


@runtime_checkable
class Table(Protocol):
    """A dict, or what stands for one in a configuration (`ml_collections.ConfigDict`)."""

    def items(self) -> Iterable:
        """The pairs of key and value."""


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """Pairs of image and mask files; made by `folder`.

    Attributes:
        spec: facts about the labels.
        stems: name of each sample.
        images: image file of each sample.
        masks: mask file of each sample; multi-label: one a class, None where the class is absent.
        channels: 1 or 3.
        window: values that become 0 and 255 in images of more than 8 bits.
        table: class index of each raw id; `spec.ignore` without truth, -1 (and in the last place) without a class.
        colours: class index, or `spec.ignore`, of each colour; None where masks hold ids.
    """

    spec: DatasetSpec
    stems: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[tuple[Path | None, ...], ...]
    channels: int
    window: tuple[float, float] | None
    table: Int32[np.ndarray, "ids"]
    colours: dict[Colour, int] | None

    def __len__(self):
        return len(self.stems)

    def name(self, i: int) -> str:
        """The stem of sample i: the part of its path that differs from sample to sample."""
        return self.stems[i]

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of the label of sample i, from the head of its mask file."""
        return reading.size(next(path for path in self.masks[i] if path))

    def ids(self, i: int) -> dict[int, int]:
        """Counts the ids that the mask files of sample i hold, known or not.

        Args:
            i: sample.

        Returns:
            Pixel count of each raw id; of each class index where masks hold colours.
        """
        count: dict[int, int] = {}
        for path in filter(None, self.masks[i]):
            for value, pixels in zip(*np.unique(reading.mask(path, self.colours), return_counts=True), strict=True):
                count[int(value)] = count.get(int(value), 0) + int(pixels)
        return count

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Reads sample i.

        Args:
            i: sample.

        Returns:
            "image": uint8 [y, x, c]; "label": `spec.label_dtype` [y, x], multi-label [y, x, k].

        Raises:
            CorruptImage: a file cannot be decoded.
            UserError: sizes differ, or the mask holds an id or a colour without a class.
        """
        image = reading.image(self.images[i], self.channels, self.window)
        labels = [self._label(path, image.shape[:2], self.images[i]) for path in self.masks[i]]
        return {"image": image, "label": np.stack(labels, -1) if self.spec.mode == "multilabel" else labels[0]}

    def _label(self, path, shape, image_path):
        if path is None:
            return np.zeros(shape, self.spec.label_dtype)
        ids = reading.mask(path, self.colours)
        if ids.shape != shape:
            raise reading.SizeMismatch(
                f"{image_path} has {shape[0]} x {shape[1]} pixels (rows x columns) but its mask {path} has "
                f"{ids.shape[0]} x {ids.shape[1]}."
            )
        if self.colours is not None:
            return ids.astype(self.spec.label_dtype)
        label = self.table[np.where((ids >= 0) & (ids < IDS), ids, IDS)]
        if (label < 0).any():
            values, counts = np.unique(ids[label < 0], return_counts=True)
            found = ", ".join(f"{v} ({n} pixels)" for v, n in list(zip(values, counts, strict=True))[:5])
            more = f" and {len(values) - 5} more" if len(values) > 5 else ""
            raise UserError(
                f"{path} holds ids that belong to no class: {found}{more}. "
                "Map them to a class in source.ids, or list them in source.ignore_ids."
            )
        return label.astype(self.spec.label_dtype)


def folder(
    split: str,
    *,
    channels: int = 3,
    root: str,
    images: str,
    masks: str,
    classes: Sequence[str] | str,
    ids: Table | None = None,
    ignore_ids: Sequence[int] = (),
    colours: Table | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    things: Sequence[int] = (),
    lists: str | None = None,
    fractions: Table | None = None,
    window: Sequence[float] | None = None,
) -> Folder:
    """A data set of image and mask files that share a stem.

    `images` and `masks` are paths under `root` with {stem}, which may span folders and may stand twice
    ("{stem}/{stem}_mask.png"), and * for any text within a file or folder name. A path without {stem} is a folder:
    "masks" means "masks/{stem}.*", every image file in it. {class} in `masks` makes the set multi-label: a mask file
    a class, non-zero where the class is, and no file where the image has none of it (each image needs at least one).

    What belongs to a split is told in one of three ways: {split} in `images` or `root`, a list of stems per split, or
    fractions. Fractions are contiguous blocks of the naturally sorted stems (2 before 10), not a random draw:
    neighbours in a video or a volume are nearly the same image, and would leak from one split into another.

    Args:
        split: name of the split, such as "train".
        channels: 1 to read images as grey, 3 as RGB.
        root: folder; `~` and environment variables are filled in.
        images: where image files are, such as "{split}/{stem}.jpg".
        masks: where mask files are, such as "{split}annot/{stem}.png".
        classes: class names in the order of their index, or a text file under `root` with a name a line.
        ids: class (name or index) of each id in the mask files; the word "ignore" for no truth. Keys may be strings,
            as in JSON. When left out an id is a class index, and 255 (65535 with more than 255 classes) is ignored.
        ignore_ids: further ids without truth.
        colours: for colour-coded masks, the (red, green, blue) of each class name, or a list of them; the key "ignore"
            holds the colours without truth.
        palette: (red, green, blue) of each class in pictures; taken from `colours`, else the PASCAL VOC colours.
        things: indices of the classes that are countable objects.
        lists: text file of the stems of a split, under `root`, such as "splits/{split}.txt": a stem or a file name a
            line, in the first column.
        fractions: (from, to) of each split, such as {"train": (0, 0.8), "test": (0.8, 1)}.
        window: values that become 0 and 255 in images with more than 8 bits a pixel.

    Returns:
        The source.

    Raises:
        UserError: something is missing, ambiguous or contradictory; the message names the key or the path.
    """
    wild = any("{split}" in text for text in (root, images))
    if (lists is not None) + (fractions is not None) + (wild and lists is None) != 1:
        raise UserError(
            f"source: say in one way what belongs to split {split!r}: with {{split}} in source.images, with "
            "source.lists (a file of stems), or with source.fractions."
        )
    base = Path(_fill(files.resolve(root), "root", split))
    if not base.is_dir():
        raise UserError(f"source.root: there is no folder {base}.")
    names = files.lines(base / classes, "classes") if isinstance(classes, str) else list(classes)
    multilabel = "{class}" in masks
    id_names, colour_names = _plain(ids), _plain(colours)
    if multilabel and (id_names or colour_names):
        raise UserError("source.masks with {class} has a file a class: leave source.ids and source.colours out.")
    ignore = 255 if len(names) < 256 else IDS - 1
    colour_ids = _colour_ids(colour_names, names, ignore) if colour_names else None
    if palette is None and colour_ids and set(range(len(names))) <= set(colour_ids.values()):
        palette = [next(c for c, index in colour_ids.items() if index == k) for k in range(len(names))]
    spec = DatasetSpec(
        classes=tuple(names),
        colours=tuple((int(r), int(g), int(b)) for r, g, b in palette or ()),
        things=tuple(things),
        ignore=ignore,
        mode="multilabel" if multilabel else "multiclass",
    )
    image_path, mask_path = _fill(images, "images", split), _fill(masks, "masks", split, "class")
    mask_files = [files.find(base, mask_path.replace("{class}", name)) for name in (names if multilabel else [""])]
    taken = {path for found in mask_files for path in found.values()}  # "{stem}.png" also finds "{stem}_mask.png"
    image_files = {stem: path for stem, path in files.find(base, image_path).items() if path not in taken}
    stems = sorted(image_files, key=files.natural)
    if not stems:
        raise UserError(f"source.images: no image at {base / image_path} for split {split!r}.")
    if lists is not None:
        stems = files.listed(base / _fill(lists, "lists", split), stems)
    if fractions is not None:
        stems = files.fraction(stems, _plain(fractions), split)
    if missing := [stem for stem in stems if not any(stem in found for found in mask_files)]:
        raise UserError(
            f"source.masks: {len(missing)} of {len(stems)} images have no mask at {base / mask_path}: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. {len(taken)} masks were found there."
        )
    return Folder(
        spec=spec,
        stems=tuple(stems),
        images=tuple(image_files[stem] for stem in stems),
        masks=tuple(tuple(found.get(stem) for found in mask_files) for stem in stems),
        channels=channels,
        window=None if window is None else (float(window[0]), float(window[1])),
        table=_id_table(id_names, ignore_ids, spec),
        colours=colour_ids,
    )


def _plain(table):
    return None if table is None else dict(table.items()) or None


def _fill(template, key, split, *more):
    if unknown := set(re.findall(r"\{(\w*)\}", template)) - {"split", "stem", *more}:
        raise UserError(f"source.{key}={template!r}: {{{unknown.pop()}}} means nothing here.")
    return template.replace("{split}", split)


def _index(value, names, ignore, key):
    """Index of a class given by name or index; the ignore value for the word "ignore"."""
    if value in names:
        return names.index(value)
    if value == "ignore":
        return ignore
    if isinstance(value, int) and 0 <= value < len(names):
        return value
    raise UserError(f"source.{key}: {value!r} is none of the classes {', '.join(names)}.")


def _id_table(ids, ignore_ids, spec):
    """`Folder.table`: what each raw id means."""
    table = np.full(IDS + 1, -1, np.int32)
    multilabel = spec.mode == "multilabel"
    if ids is None:
        ids = {0: 0} if multilabel else {**{k: k for k in range(len(spec.classes))}, spec.ignore: "ignore"}
    pairs = [(key, _index(value, list(spec.classes), spec.ignore, "ids")) for key, value in ids.items()]
    for key, index in [*pairs, *((key, spec.ignore) for key in ignore_ids)]:
        if not str(key).isdecimal() or int(key) >= IDS:
            raise UserError(f"source.ids: {key!r} is not a number from 0 to {IDS - 1}.")
        if table[int(key)] not in (-1, index):
            raise UserError(f"source: id {key} is given two meanings; compare source.ids and source.ignore_ids.")
        table[int(key)] = index
    if multilabel:  # whatever else is not zero marks the class of its file
        table[:IDS][table[:IDS] < 0] = 1
    return table


def _colour_ids(colours, names, ignore):
    table = {}
    for name, value in colours.items():
        index = _index(name, names, ignore, "colours")
        for triple in [value] if isinstance(value[0], int) else value:
            colour = tuple(int(v) for v in triple)
            if len(colour) != 3 or not all(0 <= v < 256 for v in colour) or table.get(colour, index) != index:
                raise UserError(
                    f"source.colours: {colour} of {name!r} is not an RGB triple, or stands for two classes."
                )
            table[colour] = index
    return table
