"""Entries of COCO's JSON files of predictions: to which sample and which class each belongs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segjax.checks import UserError
from segjax.data import reading
from segjax.data.coco import read
from segjax.data.predictions.names import SampleNames, warn_of_extra
from segjax.data.sources.coco import Coco
from segjax.spec import DatasetSpec


class Categories(NamedTuple):
    """Classes of the categories of a file.

    known: class of each category id; None where the data set has no such class.
    text: what ids are, for messages.
    """

    known: dict[Any, int | None]
    text: str

    def find(self, entry: Mapping[str, Any], where: str) -> int:
        """Returns the class of an entry; raises a UserError that names the entry and its category."""
        key = entry["category_id"]
        if self.known.get(key) is None:
            raise UserError(f"{where} has category_id {key!r}, but {self.text}: {_listed(self.known)}.")
        return self.known[key]


class Entries(NamedTuple):
    """The entries of a file.

    names: of the samples.
    of_samples: sample, place in the file and entry, of all entries of images of the split.
    listed: samples that the file's own list of images has; None if it has no such list.
    categories: class of each category.
    """

    names: SampleNames
    of_samples: list[tuple[int, int, dict[str, Any]]]
    listed: set[int] | None
    categories: Categories


def open_entries(path: Path, content: Any, source: Any, keys: Sequence[str]) -> Entries:
    """Finds the sample of each entry, and the class of each category.

    With a list of images in the file, an image is known by its file name, and those that are not of the split are named
    in a warning. Without one, image ids are those of the source's JSON file or, for other sources, names of samples.
    With a list of categories in the file, a class is known by its name. Without one, category ids are those of the
    source's JSON file or, for other sources, class indices.

    Args:
        path: the file, for messages.
        content: its content: a list of entries, or an object with "annotations".
        source: the split.
        keys: that every entry must have.

    Returns:
        The entries.

    Raises:
        UserError: an entry lacks a key, or is of an unknown image.
    """
    annotations = content if isinstance(content, list) else content["annotations"]
    names = SampleNames(source)
    images = None if isinstance(content, list) else _images(path, content, source, names)
    if images is not None:
        sample_of, text = images, "the file does not list that image"
    elif isinstance(source, Coco):
        sample_of = {image["id"]: i for i, image in enumerate(source.records.images)}
        text = f"no image of {source.records.path} has that id"
    else:
        sample_of, text = None, f"no image of the split has that name; names are such as {names.names[0]!r}"
    found = []
    for place, entry in enumerate(annotations):
        where = f"{path}: {'' if isinstance(content, list) else 'annotations'}[{place}]"
        read.require_keys(entry, keys, where)
        key = entry["image_id"]
        sample = sample_of.get(key, -1) if sample_of is not None else names.find(key)
        if sample == -1 or (sample is None and sample_of is None):
            raise UserError(f"{where} has image_id {key!r}, but {text}.")
        if sample is not None:
            found.append((sample, place, entry))
    listed = None if images is None else {i for i in images.values() if i is not None}
    return Entries(names, found, listed, _categories(path, content, source))


def _images(path, content, source, names):
    """Sample of each image id, None for images that are not of the split; None if the file lists no images."""
    if not content.get("images"):
        return None
    found, seen, extra = {}, set(), []
    for place, image in enumerate(content["images"]):
        read.require_keys(image, ("id", "file_name"), f"{path}: images[{place}]")
        sample = names.find(image["file_name"])
        if sample is None:
            extra.append(image["file_name"])
        elif sample in seen:
            raise UserError(f"{path}: images[{place}] is a second image called {image['file_name']}.")
        elif "height" in image and "width" in image:
            size = image["height"], image["width"]
            reading.check_sizes(source.size(sample), size, names.names[sample], f"{path} (image {image['id']})")
        found[image["id"]] = sample
        seen.add(sample)
    warn_of_extra(extra, path, "images")
    return found


def _categories(path, content, source):
    spec: DatasetSpec = source.spec
    if isinstance(content, dict) and content.get("categories"):
        known = {}
        for place, category in enumerate(content["categories"]):
            read.require_keys(category, ("id", "name"), f"{path}: categories[{place}]")
            name = category["name"]
            known[category["id"]] = spec.classes.index(name) if name in spec.classes else None
        return Categories(known, "the file's categories, by name, that are classes of the data set are")
    if isinstance(source, Coco):
        return Categories(dict(source.known), f"the categories of {source.records.path} are")
    return Categories({k: k for k in range(len(spec.classes))}, "without a list of categories they are class indices")


def _listed(known):
    """Formats the ids that have a class."""
    ids = [repr(key) for key, k in known.items() if k is not None]
    return ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
