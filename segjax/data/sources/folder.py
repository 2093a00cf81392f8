"""Images and masks as files in folders."""

import collections
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax.data import files, reading
from segjax.data.ids import Ids, Table, apply, count, index, make_map, make_spec
from segjax.spec import Colour, DatasetSpec, UserError


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
        table: label of each id, see `segjax.data.ids`.
        colours: class index, or `spec.ignore`, of each colour, which stand for ids; None where masks hold ids.
    """

    spec: DatasetSpec
    stems: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[tuple[Path | None, ...], ...]
    channels: int
    window: Sequence[int | float] | None
    table: Ids
    colours: dict[Colour, int] | None

    def __len__(self):
        return len(self.stems)

    def name(self, i: int) -> str:
        """The stem of sample i: the part of its path that differs from sample to sample."""
        return self.stems[i]

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of sample i, from the heads of its files; they must agree."""
        path = next(path for path in self.masks[i] if path)
        found = reading.size(path)
        reading.check_sizes(reading.size(self.images[i]), found, str(self.images[i]), str(path))
        return found

    def ids(self, i: int) -> dict[int, int]:
        """Counts the ids that the mask files of sample i hold, known or not.

        Args:
            i: sample.

        Returns:
            Pixel count of each raw id; of each class index where masks hold colours.
        """
        found = collections.Counter()
        for path in filter(None, self.masks[i]):
            found.update(count(reading.mask(path, self.colours)))
        return dict(found)

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
        raw = reading.mask(path, self.colours)
        reading.check_sizes(shape, raw.shape, str(image_path), str(path))
        return apply(self.table, raw, self.spec, str(path))


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
    window: Sequence[int | float] | None = None,
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
            as in JSON. When left out an id is a class index, and 255 (65535 with more than 255 classes) is ignored;
            with one or two classes it is an error until `ids` or `ignore_ids` names it, see `segjax.data.ids.make_map`.
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

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for path in (Path(root, "images", "1.png"), Path(root, "masks", "1.png")):
        ...         path.parent.mkdir()
        ...         Image.new("L", (4, 3)).save(path)
        ...     whole = {"all": (0, 1)}
        ...     source = folder("all", root=root, images="images", masks="masks", classes=("a", "b"), fractions=whole)
        ...     source.name(0), source.read(0)["image"].shape
        ('1', (3, 4, 3))
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
    if multilabel and (ids or colours):
        raise UserError("source.masks with {class} has a file a class: leave source.ids and source.colours out.")
    if colours and (ids or ignore_ids):
        raise UserError("source.colours has a colour a class, and one for 'ignore': leave source.ids, ignore_ids out.")
    spec = make_spec(names, palette, things, "multilabel" if multilabel else "multiclass")
    colour_ids = _colour_ids(colours, spec) if colours else None
    if palette is None and colour_ids and set(range(len(names))) <= set(colour_ids.values()):
        first = {label: colour for colour, label in reversed(colour_ids.items())}
        spec = dataclasses.replace(spec, colours=tuple(first[k] for k in range(len(names))))
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
        stems = files.fraction(stems, dict(fractions.items()), split)
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
        window=window,
        table=make_map(spec, ids, (spec.ignore,) if colours else ignore_ids),
        colours=colour_ids,
    )


def _fill(template, key, split, *more):
    if unknown := set(re.findall(r"\{(\w*)\}", template)) - {"split", "stem", *more}:
        raise UserError(f"source.{key}={template!r}: {{{unknown.pop()}}} means nothing here.")
    return template.replace("{split}", split)


def _colour_ids(colours, spec):
    table = {}
    for name, value in colours.items():
        label = index(name, spec, "source.colours")
        for triple in [value] if isinstance(value[0], int) else value:
            colour = tuple(int(v) for v in triple)
            if len(colour) != 3 or not all(0 <= v < 256 for v in colour) or table.get(colour, label) != label:
                raise UserError(
                    f"source.colours: {colour} of {name!r} is not an RGB triple, or stands for two classes."
                )
            table[colour] = label
    return table
