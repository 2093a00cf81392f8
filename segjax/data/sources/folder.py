"""Images, masks and maps of objects as files in folders."""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from segjax.checks import Key, UserError
from segjax.data import files, reading
from segjax.data.ids import Ids, Table, apply, count, index, make_map, make_spec
from segjax.data.instances import number
from segjax.spec import Colour, DatasetSpec, channel_names


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """Image and mask files that belong together; made by `folder`.

    Attributes:
        spec: facts about the labels.
        stems: name of each sample.
        images: image file of each sample.
        masks: mask file of each sample; multi-label: one a class, None where the class is absent; none at all where
            objects alone tell the two classes.
        instances: file of the objects' ids of each sample; none where there are no objects.
        instance_base: ids below it, and 0, are no objects.
        crowds: whether pixels of a thing class may be of no object.
        channels: 1 or 3.
        table: label of each id, see `segjax.data.ids`.
        colours: class index, or `spec.ignore`, of each colour, which stand for ids; None where masks hold ids.
    """

    spec: DatasetSpec
    stems: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[tuple[Path | None, ...], ...]
    instances: tuple[Path, ...]
    instance_base: int
    crowds: bool
    channels: int
    table: Ids
    colours: dict[Colour, int] | None

    def __len__(self):
        return len(self.stems)

    def name(self, i: int) -> str:
        """The stem of sample i: the part of its path that differs from sample to sample."""
        return self.stems[i]

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of sample i, from the heads of its files; they must agree."""
        found = reading.size(self.images[i])
        for path in [*filter(None, self.masks[i]), *self.instances[i : i + 1]]:
            reading.check_sizes(found, reading.size(path), str(self.images[i]), str(path))
        return found

    def ids(self, i: int) -> dict[int, int]:
        """Counts the ids that the mask files of sample i hold, known or not.

        Args:
            i: sample.

        Returns:
            Pixel count of each raw id; of each class index where masks hold colours; empty where there are no masks.
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
            "image": `spec.image_dtype` [y, x, c]; "label": `spec.label_dtype` [y, x], multi-label [y, x, k];
            "instance": uint16 [y, x] where there are objects.

        Raises:
            CorruptImage: a file cannot be decoded.
            UserError: sizes differ, the mask holds an id or a colour without a class, or a thing has no object.
        """
        image = reading.image(self.images[i], self.channels, self.spec.image_dtype)
        labels = [self._label(path, image.shape[:2], self.images[i]) for path in self.masks[i]]
        if self.spec.mode == "multilabel":
            return {"image": image, "label": np.stack(labels, -1)}
        if not self.instances:
            return {"image": image, "label": labels[0]}
        path = self.instances[i]
        ids = reading.objects(path)
        reading.check_sizes(image.shape[:2], ids.shape, str(self.images[i]), str(path))
        ids[ids < self.instance_base] = 0
        label = labels[0] if labels else (ids > 0).astype(self.spec.label_dtype)
        return {"image": image, "label": label, "instance": number(ids, label, self.spec, str(path), self.crowds)}

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
    root: Annotated[str, Key("folder of the data set; ~ and $VARIABLES are expanded")],
    images: Annotated[str, Key("path template under root with {stem} and perhaps {split}, or a folder")],
    masks: Annotated[str | None, Key("the same for masks; {class} makes it multi-label, one mask a class")] = None,
    instances: Annotated[
        str | None, Key("the same for numbers of objects; without masks they tell two classes apart")
    ] = None,
    instance_base: Annotated[
        int, Key("smaller numbers are no objects, as 0 never is (Cityscapes: 1000)", "[0, inf)")
    ] = 0,
    crowds: Annotated[
        bool, Key("True: pixels of things without an object are crowds; False: they are an error")
    ] = False,
    classes: Annotated[Sequence[str] | str, Key("class names, or a text file under root with one name a line")],
    ids: Annotated[
        Table | None, Key("raw mask value -> class; None: values are indices, and 255 is unlabelled from 3 classes on")
    ] = None,
    ignore_ids: Annotated[Sequence[int], Key("raw mask values of unlabelled pixels")] = (),
    colours: Annotated[Table | None, Key('class name or "ignore" -> (r, g, b), for masks drawn in colours')] = None,
    palette: Annotated[
        Sequence[Sequence[int]] | None, Key("a colour a class, for pictures; the PASCAL VOC map where left out")
    ] = None,
    things: Annotated[Sequence[int | str], Key("classes that are countable objects, names or indices")] = (),
    lists: Annotated[
        str | None, Key('text file under root with the stems of a split, such as "splits/{split}.txt"')
    ] = None,
    fractions: Annotated[
        Table | None, Key("split -> (from, to), shares of the sorted stems, in contiguous blocks", "[0, 1]")
    ] = None,
) -> Folder:
    """A data set of image and mask files that share a stem, and of files that tell objects apart.

    `images`, `masks` and `instances` are paths under `root` with {stem}, which may span folders and may stand twice
    ("{stem}/{stem}_mask.png"), and * for any text within a file or folder name. A path without {stem} is a folder:
    "masks" means "masks/{stem}.*", every image file in it. {class} in `masks` makes the set multi-label: a mask file
    a class, non-zero where the class is, and no file where the image has none of it (each image needs at least one).

    Files of `instances` hold a number for each object: grey values of 8, 16 or 32 bits or the indices of a palette as
    they are stored, and R + 256 G + 65536 B of colours (ADE20K). Numbers may be any; they become 1 .. n in ascending
    order. What of an object lies on stuff is left out. An object has one class, that of most of its pixels; the others
    on thing classes, and all without a number, are an error, or with `crowds` regions whose objects are not told apart.
    Without `masks` the two classes are background and thing, and the thing is where the objects are.

    What belongs to a split is told in one of three ways: {split} in `images` or `root`, a list of stems per split, or
    fractions. Fractions are contiguous blocks of the naturally sorted stems (2 before 10), not a random draw:
    neighbours in a video or a volume are nearly the same image, and would leak from one split into another.

    Args:
        split: name of the split, such as "train".
        channels: 1 to read images as grey, 3 as RGB.

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
    base = files.base(root, split)
    names = files.lines(base / classes, "classes") if isinstance(classes, str) else list(classes)
    spec, colour_ids = _describe(names, masks, instances, ids, ignore_ids, colours, palette, things)
    image_path = files.fill(images, "images", split)
    mask_path = files.fill(masks or "", "masks", split, "class")
    instance_path = files.fill(instances or "", "instances", split)
    parts = names if spec.mode == "multilabel" else [""]
    mask_files = [files.find(base, mask_path.replace("{class}", part)) for part in parts] if masks else []
    instance_files = [files.find(base, instance_path)] if instances else []
    # "{stem}.png" also finds "{stem}_mask.png".
    taken = {path for found in mask_files + instance_files for path in found.values()}
    image_files = {stem: path for stem, path in files.find(base, image_path).items() if path not in taken}
    stems = sorted(image_files, key=files.natural)
    if not stems:
        raise UserError(f"source.images: no image at {base / image_path} for split {split!r}.")
    if lists is not None:
        stems = files.listed(base / files.fill(lists, "lists", split), stems)
    if fractions is not None:
        stems = files.fraction(stems, dict(fractions.items()), split)
    for key, path, found in (("masks", mask_path, mask_files), ("instances", instance_path, instance_files)):
        if found:
            _check_found(key, base / path, stems, found)
    paths = tuple(image_files[stem] for stem in stems)
    spec = dataclasses.replace(spec, image_channels=channel_names(channels), image_dtype=reading.common_dtype(paths))
    return Folder(
        spec=spec,
        stems=tuple(stems),
        images=paths,
        masks=tuple(tuple(found.get(stem) for found in mask_files) for stem in stems),
        instances=tuple(found[stem] for found in instance_files for stem in stems),
        instance_base=instance_base,
        crowds=crowds,
        channels=channels,
        table=make_map(spec, ids, (spec.ignore,) if colours else ignore_ids),
        colours=colour_ids,
    )


def _describe(names, masks, instances, ids, ignore_ids, colours, palette, things):
    """Checks that what is told of the labels agrees; returns the spec, and the class of each colour."""
    multilabel = masks is not None and "{class}" in masks
    if multilabel and (ids or colours):
        raise UserError("source.masks with {class} has a file a class: leave source.ids and source.colours out.")
    if colours and (ids or ignore_ids):
        raise UserError("source.colours has a colour a class, and one for 'ignore': leave source.ids, ignore_ids out.")
    if masks is None and instances is None:
        raise UserError("source: say where the truth is, with source.masks, source.instances or both.")
    spec = make_spec(names, palette, things, "multilabel" if multilabel else "multiclass")
    if masks is None:
        if len(names) != 2 or spec.things not in ((), (1,)) or ids or ignore_ids or colours:
            raise UserError(
                "source.instances without source.masks tells two classes apart, background and thing: name them in "
                "source.classes in this order, and leave source.ids, ignore_ids and colours out."
            )
        spec = dataclasses.replace(spec, things=(1,))
    if instances is not None and (multilabel or not spec.things):
        raise UserError("source.instances needs source.things, the classes that have objects, and one class a pixel.")
    colour_ids = _colour_ids(colours, spec) if colours else None
    if palette is None and colour_ids and set(range(len(names))) <= set(colour_ids.values()):
        first = {label: colour for colour, label in reversed(colour_ids.items())}
        spec = dataclasses.replace(spec, colours=tuple(first[k] for k in range(len(names))))
    return spec, colour_ids


def _check_found(key, path, stems, found):
    if missing := [stem for stem in stems if not any(stem in each for each in found)]:
        what = {"masks": "mask", "instances": "file of objects"}[key]
        raise UserError(
            f"source.{key}: {len(missing)} of {len(stems)} images have no {what} at {path}: {files.some(missing)}. "
            f"{sum(map(len, found))} {key} were found there."
        )


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
