"""Predictions in COCO's panoptic format: a JSON file of segments, and a PNG of segment ids per image."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segjax.checks import UserError
from segjax.data import reading
from segjax.data.coco import read
from segjax.data.instances import from_segments
from segjax.data.predictions.entries import Categories, open_entries
from segjax.spec import DatasetSpec, Segments


class Panoptic(NamedTuple):
    """Panoptic predictions of a split.

    source: the split to score against.
    path: the JSON file.
    folder: of the PNGs.
    spec: the data set.
    annotations: entry of each sample.
    categories: class of each category.
    """

    source: Any
    path: Path
    folder: Path
    spec: DatasetSpec
    annotations: list[dict[str, Any]]
    categories: Categories

    def read(self, i: int, sample: dict[str, np.ndarray]) -> Segments:
        """Reads the prediction of sample i, which has the size of the sample's label.

        Returns:
            "label", `spec.ignore` where void, and "instance" 1 .. n, a number for each segment, of stuff too: two
            segments of one stuff class are two, as for panopticapi.

        Raises:
            UserError: an id is only in the PNG or only in the JSON file, or a category is unknown.
        """
        annotation, segments = self.annotations[i], {}
        listed = f"{self.path} (image {annotation['image_id']})"
        for place, segment in enumerate(annotation["segments_info"]):
            read.require_keys(segment, ("id", "category_id"), f"{listed}: segments_info[{place}]")
            if not isinstance(segment["id"], int):
                raise UserError(f"{listed}: the segment id {segment['id']!r} is not a number.")
            if segment["id"] in segments:
                raise UserError(f"{listed}: segment {segment['id']} is listed twice.")
            segments[segment["id"]] = self.categories.find(segment, f"{listed}: segment {segment['id']}"), False
        path = self.folder / annotation["file_name"]
        ids = reading.read_instances(path, colours=True)
        reading.check_sizes(sample["label"].shape, ids.shape, f"The ground truth of {self.source.name(i)}", str(path))
        every = dataclasses.replace(self.spec, things=tuple(range(len(self.spec.classes))))
        label, instance = from_segments(ids, segments, every, str(path), listed)
        return Segments(label, instance)


def open_panoptic(path: Path, content: dict[str, Any], source: Any, spec: DatasetSpec) -> Panoptic:
    """Opens a panoptic JSON file; the PNGs are in a folder of its name beside it, or in its own folder.

    Args:
        path: the file.
        content: its content.
        source: the split.
        spec: the data set.

    Returns:
        The predictions.

    Raises:
        UserError: an image of the split has no entry or two, or an entry is invalid.
    """
    entries = open_entries(path, content, source, ("image_id", "file_name", "segments_info"))
    by_sample = {}
    for sample, place, annotation in entries.of_samples:
        where = f"{path}: annotations[{place}]"
        name = Path(annotation["file_name"])
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{where}: file_name {annotation['file_name']!r} leaves the folder of the predictions.")
        if sample in by_sample:
            raise UserError(f"{where}: image {annotation['image_id']} has a second entry.")
        by_sample[sample] = annotation
    entries.names.check_complete(by_sample, path)
    annotations = [by_sample[i] for i in range(len(source))]
    beside = path.with_suffix("")
    folder = beside if any((beside / one["file_name"]).is_file() for one in annotations) else path.parent
    if missing := [a["file_name"] for a in annotations if not (folder / a["file_name"]).is_file()]:
        raise UserError(
            f"{path}: {len(missing)} of {len(annotations)} PNGs are neither in {beside} nor in {path.parent}, such as "
            f"{missing[0]}."
        )
    return Panoptic(source, path, folder, spec, annotations, entries.categories)
