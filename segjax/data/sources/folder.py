"""Source of image, mask and instance files in folders."""

import collections
import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from segjax.checks import Key, UserError, first_names
from segjax.data import files, splits
from segjax.data import reading as reader
from segjax.data.formats.opening import DEFAULT, Reading
from segjax.data.ids import (
    DictLike,
    Ids,
    class_index,
    class_list,
    count_values,
    listed_ids,
    make_id_map,
    make_spec,
    map_mask,
)
from segjax.data.instances import number_instances, without_data
from segjax.spec import Colour, DatasetSpec, channel_names

log = logging.getLogger("segjax")


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
        valid: file of each sample that is 0 where labels do not count; empty without.
        pages: page of its files that each sample is; None where files must have one page.
        instance_base: ids below it, and 0, are not objects.
        allow_crowds: whether thing pixels may belong to no object.
        threshold: grey value from which a mask pixel is of the second class; None if masks store ids or colours.
        channels: number of image channels.
        reading: what is made of orientation, transparency and so on.
        table: label of each id, see `segjax.data.ids`.
        listed: ids that the configuration maps.
        colours: class index, or `spec.ignore`, of each mask colour; None if masks store ids.
        warnings: what opening found that is suspicious.
    """

    spec: DatasetSpec
    stems: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[tuple[Path | None, ...], ...]
    instances: tuple[Path, ...]
    valid: tuple[Path, ...]
    pages: tuple[int | None, ...]
    instance_base: int
    allow_crowds: bool
    threshold: int | None
    channels: int
    reading: Reading
    table: Ids
    listed: frozenset[int]
    colours: dict[Colour, int] | None
    warnings: tuple[str, ...] = ()

    def __len__(self):
        return len(self.stems)

    def name(self, i: int) -> str:
        """The stem of sample i: the part of its path that differs from sample to sample, and its page."""
        return self.stems[i]

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of sample i, from the headers of its files, which must agree."""
        others = [*filter(None, self.masks[i]), *self.instances[i : i + 1], *self.valid[i : i + 1]]
        sizes = [reader.read_size(path, reading=self.reading) for path in others]
        size = reader.read_size(self.images[i], reading=self.reading, size=sizes[0])
        for path, other in zip(others, sizes, strict=True):
            reader.check_sizes(size, other, str(self.images[i]), str(path))
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
            found.update(count_values(self._mask(path, i).ids))
        return dict(found)

    def facts(self, i: int) -> dict[str, str]:
        """Says what the files of sample i hold beside pixels, see `segjax.data.audit`; masks must agree in "masks"."""
        found = {}
        if self.colours is None and self.threshold is None:
            for path in filter(None, self.masks[i]):
                found["masks"] = reader.describe_file(path)
        if turned := reader.read_orientation(self.images[i]):
            found["image orientation"] = turned
        return found

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
        labels = [None if path is None else self._label(path, i) for path in self.masks[i]]
        how = {"reading": self.reading, "page": self.pages[i]}
        instances = [reader.read_instances(path, **how) for path in self.instances[i : i + 1]]
        counts = [reader.read_mask(path, **how).ids != 0 for path in self.valid[i : i + 1]]
        paths = [*self.masks[i], *self.instances[i : i + 1], *self.valid[i : i + 1]]
        maps = [each for each in zip(paths, [*labels, *instances, *counts], strict=True) if each[0] is not None]
        (first, one), *others = maps
        image, empty = reader.read_image(
            self.images[i], self.channels, self.spec.image_dtype, size=one.shape, stated_by=str(first), **how
        )
        for path, each in others:
            reader.check_sizes(one.shape, each.shape, str(self.images[i]), str(path))
        for each in counts:
            empty = ~each if empty is None else empty | ~each
        sample = {"image": image}
        if self.spec.mode == "multilabel":
            absent = np.zeros(one.shape, self.spec.label_dtype)
            sample["label"] = np.stack([absent if label is None else label for label in labels], -1)
        elif labels:
            sample["label"] = labels[0]
        if instances:
            (ids,) = instances
            ids[ids < self.instance_base] = 0
            label = sample.setdefault("label", (ids > 0).astype(self.spec.label_dtype))
            path = str(self.instances[i])
            sample["instance"] = number_instances(ids, label, self.spec, path, self.allow_crowds)
        return without_data(sample, empty, self.spec)

    def _mask(self, path, i):
        return reader.read_mask(path, self.colours, reading=self.reading, page=self.pages[i], threshold=self.threshold)

    def _label(self, path, i):
        return map_mask(self.table, self._mask(path, i), self.spec, str(path), self.listed)


def folder(
    split: str,
    *,
    channels: int = 3,
    reading: Reading = DEFAULT,
    root: Annotated[str, Key("folder of the data set; ~ and $VARIABLES are expanded")],
    images: Annotated[str, Key("path template under root with {stem} and maybe {split}, or a folder")],
    masks: Annotated[str | None, Key("the same for masks; {class} makes it multi-label, one mask per class")] = None,
    instances: Annotated[
        str | None, Key("the same for instance maps; without masks these define background and thing")
    ] = None,
    valid: Annotated[
        str | None, Key("the same for masks that are 0 where labels do not count, such as outside a field of view")
    ] = None,
    instance_base: Annotated[
        int, Key("smaller ids are not objects, and neither is 0 (Cityscapes: 1000)", "[0, inf)")
    ] = 0,
    allow_crowds: Annotated[
        bool, Key("True: thing pixels without an object are crowds; False: they are an error")
    ] = False,
    classes: Annotated[
        Sequence[str] | DictLike | str, Key("class names, or a text file under root with one name per line")
    ],
    ids: Annotated[
        DictLike | None,
        Key("raw mask value -> class; None: values are indices, and with 3 or more classes 255 is unlabelled"),
    ] = None,
    ignore_ids: Annotated[Sequence[int], Key("raw mask values of unlabelled pixels")] = (),
    threshold: Annotated[
        int | None,
        Key("masks of two classes: values from this on are the second class, also in lossy files", "[1, inf)"),
    ] = None,
    colours: Annotated[DictLike | None, Key('class name or "ignore" -> (r, g, b), for masks drawn in colours')] = None,
    palette: Annotated[
        Sequence[Sequence[int]] | None, Key("a colour per class, for pictures; None: the PASCAL VOC colours")
    ] = None,
    things: Annotated[Sequence[int | str], Key("classes that are countable objects, names or indices")] = (),
    lists: Annotated[
        str | None, Key('text file under root with the stems of a split, such as "splits/{split}.txt"')
    ] = None,
    fractions: Annotated[
        DictLike | None, Key("split -> (from, to): contiguous fractions of the sorted stems, page by page", "[0, 1]")
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
    fractions. Fractions are contiguous blocks of the naturally sorted stems (2 before 10) and of their pages, not a
    random draw: neighbours in a video or a volume are nearly the same image, and would leak between the splits.

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
    names = files.read_lines(base / classes, "classes") if isinstance(classes, str) else class_list(classes)
    spec, colour_ids = _describe(names, masks, instances, ids, ignore_ids, threshold, colours, palette, things)
    image_path = files.fill_split(images, "images", split)
    image_files = files.find_files(base, image_path)
    parts = names if spec.mode == "multilabel" else None
    given = (("masks", masks), ("instances", instances), ("valid", valid))
    found = {key: _find(key, base, each, split, image_files, parts) for key, each in given if each}
    # "{stem}.png" also matches "{stem}_mask.png".
    taken = {path for each in found.values() for path in each.paths}
    image_files = {stem: path for stem, path in image_files.items() if path not in taken}
    every = sorted(image_files, key=files.natural_key)
    if not every:
        raise UserError(f"source.images: no image at {base / image_path} for split {split!r}.")
    stems = every
    if lists is not None:
        chosen = {stem: image_files[stem] for stem in every}
        stems = splits.select_listed(base / files.fill_split(lists, "lists", split), chosen)
    header = functools.cache(functools.partial(reader.read_header, reading=reading))
    samples = _samples(stems, reader.count_all_pages([image_files[stem] for stem in stems], header))
    if fractions is not None:
        samples = splits.select_fraction(samples, dict(fractions.items()), split)
    stems = list(dict.fromkeys(stem for stem, _, _ in samples))
    for each in found.values():
        each.check(stems)
    _check_pages(samples, image_files, found, header, reading)
    paths = tuple(image_files[stem] for stem, _, _ in samples)
    spec = dataclasses.replace(
        spec, image_channels=channel_names(channels), image_dtype=reader.common_dtype(paths, header)
    )
    warnings = [each.orphans(image_files) for each in found.values() if "{split}" in each.template or not wild]
    for warning in filter(None, warnings):
        log.warning(warning)
    of = {key: tuple(each.of(stem) for stem, _, _ in samples) for key, each in found.items()}
    return Folder(
        spec=spec,
        stems=tuple(name for _, _, name in samples),
        images=paths,
        masks=of.get("masks", ((),) * len(samples)),
        instances=tuple(path for (path,) in of.get("instances", ())),
        valid=tuple(path for (path,) in of.get("valid", ())),
        pages=tuple(page for _, page, _ in samples),
        instance_base=instance_base,
        allow_crowds=allow_crowds,
        threshold=threshold,
        channels=channels,
        reading=reading,
        table=make_id_map(spec, ids, (spec.ignore,) if colours else ignore_ids),
        listed=listed_ids(ids, ignore_ids),
        colours=colour_ids,
        warnings=tuple(filter(None, warnings)),
    )


class _Found(NamedTuple):
    """The files of the template of a key; multi-label masks have one template for each class."""

    key: str
    template: str
    place: Path
    files: list[dict[str, Path]]

    @property
    def paths(self):
        return [path for each in self.files for path in each.values()]

    def of(self, stem):
        """Files of a stem, None for those that it lacks."""
        return tuple(each.get(stem) for each in self.files)

    def check(self, stems):
        """Raises a UserError if a sample has no file."""
        if missing := [stem for stem in stems if not any(self.of(stem))]:
            what = {"masks": "mask", "instances": "instance file", "valid": "mask of valid pixels"}[self.key]
            raise UserError(
                f"source.{self.key}: {len(missing)} of {len(stems)} images have no {what} at {self.place}: "
                f"{first_names(missing)}. {len(self.paths)} {self.key} were found there."
            )

    def orphans(self, stems):
        """Says which files fit no image; empty if there are none."""
        alone = sorted(str(path) for each in self.files for stem, path in each.items() if stem not in stems)
        return alone and (
            f"source.{self.key}: {len(alone)} of {len(self.paths)} files fit no image: {first_names(alone)}. "
            "Check source.images and the extensions of its files."
        )


def _find(key, base, template, split, images, parts):
    """Finds the files of a template for the stems of images."""
    filled = files.fill_split(template, key, split, *(["class"] if key == "masks" else []))
    each = [filled.replace("{class}", part) for part in parts] if parts and key == "masks" else [filled]
    return _Found(key, template, base / filled, [files.find_files(base, one, images) for one in each])


def _samples(stems, counts):
    """Lists stem, page and name of each sample: a file of several pages is several samples."""
    if counts is None:
        return [(stem, None, stem) for stem in stems]
    samples = []
    for stem, count in zip(stems, counts, strict=True):
        samples += [(stem, page, stem + reader.page_suffix(page, count)) for page in range(count)]
    return samples


def _check_pages(samples, images, found, header, reading):
    """Raises a UserError unless the masks of an image have as many pages."""
    for stem in dict.fromkeys(stem for stem, page, _ in samples if page is not None):
        count = header(images[stem]).pages
        for path in filter(None, (path for each in found.values() for path in each.of(stem))):
            if (own := reader.read_header(path, reading=reading, mask=True).pages) != count:
                raise UserError(
                    f"{images[stem]} holds {count} pages, but {path} {own}: save as many, or set reading.pages to "
                    "'channels' if the pages of an image are its channels, or to 'first'."
                )


def _describe(names, masks, instances, ids, ignore_ids, threshold, colours, palette, things):
    """Checks that the settings of labels agree; returns the spec, and the class of each colour."""
    multilabel = masks is not None and "{class}" in masks
    if multilabel and (ids or colours):
        raise UserError("source.masks with {class} has one file per class: remove source.ids and source.colours.")
    if colours and (ids or ignore_ids):
        raise UserError("source.colours has a colour per class and for 'ignore': remove source.ids and ignore_ids.")
    if threshold is not None and (
        ids or ignore_ids or colours or masks is None or (len(names) != 2 and not multilabel)
    ):
        raise UserError(
            "source.threshold makes masks of two classes, below it and from it on: name them in source.classes in this "
            "order, and remove source.ids, ignore_ids and colours."
        )
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
