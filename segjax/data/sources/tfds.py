"""Source of TensorFlow Datasets, with random access and strict decoding."""

import contextlib
import dataclasses
import importlib.util
import logging
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from segjax.checks import Key, UserError
from segjax.data import files
from segjax.data import reading as reader
from segjax.data.formats.opening import DEFAULT, Reading
from segjax.data.ids import DictLike, Ids, count_values, listed_ids, make_id_map, make_spec, map_mask
from segjax.data.instances import from_segments, without_data
from segjax.spec import DatasetSpec

log = logging.getLogger("segjax")

# Fields of each listed segment.
SEGMENT = ("id", "label", "is_crowd")


@dataclasses.dataclass(frozen=True, eq=False)
class TFDS:
    """Records of a prepared data set; made by `tfds`.

    Attributes:
        spec: facts about the labels.
        label: prefix of the records' names: data set and split.
        records: random access to dicts of features, with images still encoded.
        image: feature with the image.
        mask: feature with the ids.
        objects: feature that lists the segments whose ids the mask holds as colours; None if ids are classes.
        channels: number of image channels.
        reading: what is made of orientation, transparency and so on.
        table: label of each id, see `segjax.data.ids`.
        listed: ids that the configuration maps.
    """

    spec: DatasetSpec
    label: str
    records: Any
    image: str
    mask: str
    objects: str | None
    channels: int
    reading: Reading
    table: Ids
    listed: frozenset[int]

    def __len__(self):
        return len(self.records)

    def name(self, i: int) -> str:
        """Data set, split, and the index of record i in the split."""
        return f"{self.label}_{i:06d}"

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of the label of sample i, from the header of its encoded mask."""
        mask = self.records[i][self.mask]
        if not isinstance(mask, bytes):
            return mask.shape[:2]
        return reader.read_size(mask, self._where(i, self.mask), reading=self.reading)

    def ids(self, i: int) -> dict[int, int]:
        """Counts the raw ids in the mask of sample i, mapped or not.

        Args:
            i: sample.

        Returns:
            Pixel count of each id; empty if ids are of segments.
        """
        return {} if self.objects else count_values(self._mask(self.records[i], i).ids)

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Reads sample i.

        Args:
            i: sample.

        Returns:
            "image": `spec.image_dtype` [y, x, c]; "label": `spec.label_dtype` [y, x]; with segments, "instance": uint16
            [y, x].

        Raises:
            CorruptImage: the image or the mask cannot be decoded.
            UserError: sizes differ, the mask holds an id without a class or segment, or a segment is listed twice.
        """
        record, image_name, mask_name = self.records[i], self._where(i, self.image), self._where(i, self.mask)
        mask = self._mask(record, i)
        image, empty = reader.read_image(
            record[self.image],
            self.channels,
            self.spec.image_dtype,
            image_name,
            reading=self.reading,
            size=mask.ids.shape,
            stated_by=mask_name,
        )
        if self.objects is None:
            label = map_mask(self.table, mask, self.spec, mask_name, self.listed)
            return without_data({"image": image, "label": label}, empty, self.spec)
        fields = {key: np.asarray(record[self.objects][key]).tolist() for key in SEGMENT}
        segments, name = {}, self._where(i, self.objects)
        for n, k, crowd in zip(*fields.values(), strict=True):
            if n in segments:
                raise UserError(f"{name}: segment {n} is listed twice.")
            segments[n] = k, crowd
        label, instance = from_segments(mask.ids, segments, self.spec, mask_name, name)
        return without_data({"image": image, "label": label, "instance": instance}, empty, self.spec)

    def _where(self, i, feature):
        return f"{self.name(i)} ({feature})"

    def _mask(self, record, i):
        mask = record[self.mask]
        if self.objects:
            name = self._where(i, self.mask)
            return reader.Mask(reader.read_instances(mask, colours=True, name=name, reading=self.reading))
        if isinstance(mask, bytes):
            return reader.read_mask(mask, name=self._where(i, self.mask), reading=self.reading)
        return reader.Mask.of(mask.reshape(mask.shape[:2]))


def tfds(
    split: str,
    *,
    channels: int = 3,
    reading: Reading = DEFAULT,
    builder: Annotated[str, Key("TFDS name, with configuration and version if needed: oxford_iiit_pet:4.*.*")],
    image: Annotated[str, Key("feature with the image")] = "image",
    mask: Annotated[str, Key("feature with the mask")] = "segmentation_mask",
    panoptic: Annotated[str | None, Key("feature with segment ids as colours, instead of a mask")] = None,
    objects: Annotated[str, Key("feature that lists those segments")] = "panoptic_objects",
    classes: Annotated[Sequence[str] | DictLike | None, Key("class names; None: those of the features")] = None,
    ids: Annotated[
        DictLike | None,
        Key("raw mask value -> class; None: values are indices, and with 3 or more classes 255 is unlabelled"),
    ] = None,
    ignore_ids: Annotated[Sequence[int], Key("raw mask values of unlabelled pixels")] = (),
    palette: Annotated[
        Sequence[Sequence[int]] | None, Key("a colour per class, for pictures; None: the PASCAL VOC colours")
    ] = None,
    things: Annotated[Sequence[int | str], Key("classes that are countable objects, names or indices")] = (),
    data_dir: Annotated[
        str | None, Key("folder of prepared data; None: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    ] = None,
) -> TFDS:
    """Opens a data set of TensorFlow Datasets with an image and a mask in each record.

    Records are read in any order from ArrayRecord files; a data set that is missing is first downloaded and prepared.
    Pixels are decoded by `segjax.data.reading`, not by TFDS: palette masks give their indices, and 16-bit masks all of
    their values. Masks may be Image, LabeledImage or Tensor features.

    With `panoptic` the mask is an Image of segment ids, R + 256 G + 65536 B, and `objects` a Sequence of these segments
    with "id", "label" and "is_crowd", as in coco/2017_panoptic; pixels of id 0 are unlabelled. TFDS does not tell which
    classes are things; in COCO they are the first 80.

    Args:
        split: any split that TFDS understands, such as "train" or "train[:80%]".
        channels: number of image channels, see `reading.read_image`.
        reading: what is made of orientation, transparency and so on.

    Returns:
        The source.

    Raises:
        UserError: TensorFlow is not installed; the data set, split or feature does not exist, cannot be prepared, or
            was prepared as files without random access; classes and ids do not fit.

    Example:
        >>> source = tfds(  # doctest: +SKIP
        ...     "train[:80%]",
        ...     builder="oxford_iiit_pet:4.*.*",
        ...     classes=("pet", "background", "border"),
        ...     ids={"1": "pet", "2": "background", "3": "border"},
        ... )
    """
    made = _prepared(builder, None if data_dir is None else files.expand_path(data_dir))
    features = made.info.features
    _check_image(features, builder, "image", image)
    if panoptic is None:
        _check_mask(features, builder, mask)
        own = features[mask]
    else:
        _check_image(features, builder, "panoptic", panoptic)
        _check_segments(features, builder, objects)
        own, mask = features[objects].feature["label"], panoptic
    names = getattr(own, "names", None) if classes is None else classes
    if not names:
        raise UserError(f"source.classes: feature {mask!r} of {builder} has no class names; list them.")
    spec = make_spec(names, palette, things, channels=channels)
    if panoptic is not None and (not spec.things or ids or ignore_ids):
        raise UserError(
            "source.panoptic needs source.things, the classes that have objects (for COCO: range(80)), and segment ids "
            "are not classes: remove source.ids and ignore_ids."
        )
    records = _records(made, split)
    if len(records):  # the first record tells the dtype of all images
        spec = dataclasses.replace(spec, image_dtype=reader.read_dtype(records[0][image], f"{builder} ({image})"))
    return TFDS(
        spec=spec,
        label=re.sub(r"[^\w-]", "", f"{made.name}_{split.replace(':', '-')}"),
        records=records,
        image=image,
        mask=mask,
        objects=None if panoptic is None else objects,
        channels=channels,
        reading=reading,
        table=make_id_map(spec, ids, ignore_ids),
        listed=listed_ids(ids, ignore_ids),
    )


def _prepared(name, data_dir):
    """Returns the builder of a data set; prepares it as ArrayRecord files if it is not on disk."""
    if absent := [module for module in ("tensorflow", "array_record") if importlib.util.find_spec(module) is None]:
        raise UserError(f"source 'tfds' needs {' and '.join(absent)}. Run `pip install \"segjax[tf]\"`.")
    import tensorflow_datasets

    try:
        made = tensorflow_datasets.builder(name, data_dir=data_dir)
        if not made.is_prepared():
            made = tensorflow_datasets.builder(name, data_dir=data_dir, file_format="array_record")
    except Exception as error:  # a dozen types, from AssertionError for a version to whatever a builder raises
        raise UserError(f"source.builder: TFDS cannot build {name!r}: {_first_line(error)}") from error
    if made.is_prepared():
        if made.info.file_format.value != "array_record":
            raise UserError(
                f"{made.data_path} holds {name} as {made.info.file_format.value} files, without random access. Set "
                "source.data_dir (or TFDS_DATA_DIR) to another folder; it is prepared there."
            )
        return made
    log.info("Preparing %s in %s; missing files are downloaded.", made.info.full_name, made.data_path)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS reports its progress with print
            made.download_and_prepare()
    except Exception as error:  # network, checksums, disk, manual downloads, and whatever a builder raises
        raise UserError(
            f"{name} is not in {made.data_path} and could not be prepared: {_first_line(error)}. Set source.data_dir "
            "(or TFDS_DATA_DIR) to a folder that has it, or prepare it on a machine with network access by "
            f"`tfds build {made.info.full_name} --file_format=array_record --data_dir=FOLDER`."
        ) from error
    return made


def _check_image(features, builder, key, name):
    """Raises a UserError unless a feature exists and is an image of integers."""
    from tensorflow_datasets import features as kinds

    _check_there(features, builder, key, name)
    if not isinstance(features[name], kinds.Image) or features[name].np_dtype == np.float32:
        raise UserError(f"source.{key}: feature {name!r} of {builder} is not an Image of integers: {features[name]}.")


def _check_mask(features, builder, name):
    """Raises a UserError unless a feature exists and is a map of ids."""
    from tensorflow_datasets import features as kinds

    _check_there(features, builder, "mask", name)
    shape, dtype = features[name].shape, features[name].np_dtype
    whole = np.issubdtype(dtype, np.integer) or dtype == np.bool_
    flat = len(shape) == 2 or (len(shape) == 3 and (shape[2] == 1 or isinstance(features[name], kinds.Image)))
    if not isinstance(features[name], kinds.Image | kinds.Tensor) or not whole or not flat:
        raise UserError(f"source.mask: feature {name!r} of {builder} is not a map of ids: {features[name]}.")


def _check_segments(features, builder, name):
    """Raises a UserError unless a feature exists and is a list of segments."""
    from tensorflow_datasets import features as kinds

    _check_there(features, builder, "objects", name)
    inner = getattr(features[name], "feature", None)
    if not isinstance(inner, kinds.FeaturesDict) or not set(SEGMENT) <= set(inner):
        raise UserError(
            f"source.objects: {name!r} of {builder} is not a Sequence of {', '.join(SEGMENT)}: {features[name]}."
        )


def _check_there(features, builder, key, name):
    if name not in features:
        raise UserError(f"source.{key}: {builder} has no feature {name!r}, only {', '.join(features)}.")


def _records(builder, split):
    """Opens the records of a split with random access; images stay encoded."""
    from tensorflow_datasets import decode, features

    encoded = {
        name: decode.SkipDecoding() for name, kind in builder.info.features.items() if isinstance(kind, features.Image)
    }
    try:
        return builder.as_data_source(split, decoders=encoded)
    except ValueError as error:
        raise UserError(f"TFDS has no split {split!r} of {builder.name}: {_first_line(error)}") from error


def _first_line(error):
    line, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {line.rstrip('.')}"
