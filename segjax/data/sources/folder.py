"""Source of image, mask and instance files in folders."""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from segjax.checks import Key, UserError
from segjax.data import files, reading
from segjax.data.ids import DictLike, Ids, class_index, count_values, make_id_map, make_spec, map_ids
from segjax.data.instances import number_instances
from segjax.spec import Colour, DatasetSpec, channel_names


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """Matching image and mask files; made by `folder`.

    Attributes:
        spec: facts about the labels.
        stems: name of each sample.
        images: image file of each sample.
        masks: mask files of each sample; multi-label: one per class, None if the class is absent; empty if only
                instance files are given.
        instances: instance file of each sample; empty without objects.
        instance_base: ids below it, and 0, are not objects.
        allow_crowds: whether thing pixels may belong to no object.
        channels: 1 or 3.
        table: label of each id, see `segjax.data.ids`.
        colours: class index, or `spec.ignore`, of each mask colour; None if masks store ids.
    """

    spec: DatasetSpec
    stems: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[tuple[Path | None, ...], ...]
    instances: tuple[Path, ...]
    instance_base: int
    allow_crowds: bool
    channels: int
    table: Ids
    colours: dict[Colour, int] | None

    def __len__(self):
        return len(self.stems)

    def name(self, i: int) -> str:
        """The stem of sample i: the part of its path that differs from sample to sample."""
        return self.stems[i]

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of sample i, from the headers of its files, which must agree."""
        size = reading.read_size(self.images[i])
        for path in [*filter(None, self.masks[i]), *self.instances[i : i + 1]]:
            reading.check_sizes(size, reading.read_size(path), str(self.images[i]), str(path))
        return size

    def ids(self, i: int) -> dict[int, int]:
        """Counts the raw ids in the mask files of sample i, mapped or not.

        Args:
            i: sample.

        Returns:
            Pixel count of each raw id, or of each class index if masks are drawn in colours; empty without masks.
        """
        found = collections.Counter()
        for path in filter(None, self.masks[i]):
            found.update(count_values(reading.read_mask(path, self.colours)))
        return dict(found)

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Reads sample i.

        Args:
            i: sample.

        Returns:
            "image": `spec.image_dtype` [y, x, c]; "label": `spec.label_dtype` [y, x], multi-label [y, x, k];
            "instance": uint16 [y, x] if there are objects.

        Raises:
            CorruptImage: a file cannot be decoded.
            UserError: sizes differ, the mask holds an id or a colour without a class, or thing pixels have no object.
        """
        image = reading.read_image(self.images[i], self.channels, self.spec.image_dtype)
        labels = [self._label(path, image.shape[:2], self.images[i]) for path in self.masks[i]]
        if self.spec.mode == "multilabel":
            return {"image": image, "label": np.stack(labels, -1)}
        if not self.instances:
            return {"image": image, "label": labels[0]}
        path = self.instances[i]
        ids = reading.read_instances(path)
        reading.check_sizes(image.shape[:2], ids.shape, str(self.images[i]), str(path))
        ids[ids < self.instance_base] = 0
        label = labels[0] if labels else (ids > 0).astype(self.spec.label_dtype)
        return {
            "image": image,
            "label": label,
            "instance": number_instances(ids, label, self.spec, str(path), self.allow_crowds),
        }

    def _label(self, path, shape, image_path):
        if path is None:
            return np.zeros(shape, self.spec.label_dtype)
        raw = reading.read_mask(path, self.colours)
        reading.check_sizes(shape, raw.shape, str(image_path), str(path))
        return map_ids(self.table, raw, self.spec, str(path))


def folder(
    split: str,
    *,
    channels: int = 3,
    root: Annotated[str, Key("folder of the data set; ~ and $VARIABLES are expanded")],
    images: Annotated[str, Key("path template under root with {stem} and maybe {split}, or a folder")],
    masks: Annotated[str | None, Key("the same for masks; {class} makes it multi-label, one mask per class")] = None,
    instances: Annotated[
        str | None, Key("the same for instance maps; without masks these define background and thing")
    ] = None,
    instance_base: Annotated[
        int, Key("smaller ids are not objects, and neither is 0 (Cityscapes: 1000)", "[0, inf)")
    ] = 0,
    allow_crowds: Annotated[
        bool, Key("True: thing pixels without an object are crowds; False: they are an error")
    ] = False,
    classes: Annotated[Sequence[str] | str, Key("class names, or a text file under root with one name per line")],
    ids: Annotated[
        DictLike | None,
        Key("raw mask value -> class; None: values are indices, and with 3 or more classes 255 is unlabelled"),
    ] = None,
    ignore_ids: Annotated[Sequence[int], Key("raw mask values of unlabelled pixels")] = (),
    colours: Annotated[DictLike | None, Key('class name or "ignore" -> (r, g, b), for masks drawn in colours')] = None,
    palette: Annotated[
        Sequence[Sequence[int]] | None, Key("a colour per class, for pictures; None: the PASCAL VOC colours")
    ] = None,
    things: Annotated[Sequence[int | str], Key("classes that are countable objects, names or indices")] = (),
    lists: Annotated[
        str | None, Key('text file under root with the stems of a split, such as "splits/{split}.txt"')
    ] = None,
    fractions: Annotated[
        DictLike | None, Key("split -> (from, to): contiguous fractions of the sorted stems", "[0, 1]")
    ] = None,
) -> Folder:
    """Opens a data set of image, mask and instance files that share a stem.

    `images`, `masks` and `instances` are paths under `root` with {stem}, which may span folders and may occur twice
    ("{stem}/{stem}_mask.png"), and * for any text within a file or folder name. A path without {stem} is a folder:
    "masks" means "masks/{stem}.*", every image file in it. {class} in `masks` makes the data set multi-label: one mask
    file per class, non-zero where the class is present, and no file if it is absent (but one at least per image).

    Instance files hold an id per object: grey values of 8, 16 or 32 bits, palette indices, or R + 256 G + 65536 B of
    colours (ADE20K). Ids may be any; they become 1 .. n in ascending order. An object has one class, that of most of
    its pixels. Its pixels on stuff are left out; those on other thing classes, and thing pixels without an id, are an
    error or, with `allow_crowds`, crowds: regions of several objects. Without `masks`, the two classes are background
    and thing, and the thing is where the objects are.

    A split is defined in one of three ways: {split} in `images` or `root`, a list of stems per split, or
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
            f"source: define split {split!r} in exactly one way: with {{split}} in source.images, with "
            "source.lists (a file of stems), or with source.fractions."
        )
    base = files.dataset_root(root, split)
    names = files.read_lines(base / classes, "classes") if isinstance(classes, str) else list(classes)
    spec, colour_ids = _describe(names, masks, instances, ids, ignore_ids, colours, palette, things)
    image_path = files.fill_split(images, "images", split)
    mask_path = files.fill_split(masks or "", "masks", split, "class")
    instance_path = files.fill_split(instances or "", "instances", split)
    parts = names if spec.mode == "multilabel" else [""]
    mask_files = [files.find_files(base, mask_path.replace("{class}", part)) for part in parts] if masks else []
    instance_files = [files.find_files(base, instance_path)] if instances else []
    # "{stem}.png" also matches "{stem}_mask.png".
    taken = {path for found in mask_files + instance_files for path in found.values()}
    image_files = {stem: path for stem, path in files.find_files(base, image_path).items() if path not in taken}
    stems = sorted(image_files, key=files.natural_key)
    if not stems:
        raise UserError(f"source.images: no image at {base / image_path} for split {split!r}.")
    if lists is not None:
        stems = files.select_listed(base / files.fill_split(lists, "lists", split), stems)
    if fractions is not None:
        stems = files.select_fraction(stems, dict(fractions.items()), split)
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
        allow_crowds=allow_crowds,
        channels=channels,
        table=make_id_map(spec, ids, (spec.ignore,) if colours else ignore_ids),
        colours=colour_ids,
    )


def _describe(names, masks, instances, ids, ignore_ids, colours, palette, things):
    """Checks that the settings of labels agree; returns the spec, and the class of each colour."""
    multilabel = masks is not None and "{class}" in masks
    if multilabel and (ids or colours):
        raise UserError("source.masks with {class} has one file per class: remove source.ids and source.colours.")
    if colours and (ids or ignore_ids):
        raise UserError("source.colours has a colour per class and for 'ignore': remove source.ids and ignore_ids.")
    if masks is None and instances is None:
        raise UserError("source: there is no ground truth: set source.masks, source.instances or both.")
    spec = make_spec(names, palette, things, "multilabel" if multilabel else "multiclass")
    if masks is None:
        if len(names) != 2 or spec.things not in ((), (1,)) or ids or ignore_ids or colours:
            raise UserError(
                "source.instances without source.masks has two classes, background and thing: name them in "
                "source.classes in this order, and remove source.ids, ignore_ids and colours."
            )
        spec = dataclasses.replace(spec, things=(1,))
    if instances is not None and (multilabel or not spec.things):
        raise UserError("source.instances needs source.things, the classes that have objects, and one class per pixel.")
    colour_ids = _colour_ids(colours, spec) if colours else None
    if palette is None and colour_ids and set(range(len(names))) <= set(colour_ids.values()):
        first = {label: colour for colour, label in reversed(colour_ids.items())}
        spec = dataclasses.replace(spec, colours=tuple(first[k] for k in range(len(names))))
    return spec, colour_ids


def _check_found(key, path, stems, found):
    if missing := [stem for stem in stems if not any(stem in each for each in found)]:
        what = {"masks": "mask", "instances": "instance file"}[key]
        raise UserError(
            f"source.{key}: {len(missing)} of {len(stems)} images have no {what} at {path}: "
            f"{files.first_names(missing)}. {sum(map(len, found))} {key} were found there."
        )


def _colour_ids(colours, spec):
    table = {}
    for name, value in colours.items():
        label = class_index(name, spec, "source.colours")
        for triple in [value] if isinstance(value[0], int) else value:
            colour = tuple(int(v) for v in triple)
            if len(colour) != 3 or not all(0 <= v < 256 for v in colour) or table.get(colour, label) != label:
                raise UserError(
                    f"source.colours: {colour} of {name!r} is not an RGB triple, or belongs to two classes."
                )
            table[colour] = label
    return table
