"""Source of images, labels and instance maps in memory or in an .npz file."""

import dataclasses
import zipfile
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from segjax.checks import Key, UserError
from segjax.data import files
from segjax.data.ids import DictLike, count_values, format_counts, make_spec
from segjax.data.instances import number_instances
from segjax.spec import DatasetSpec

DTYPES = ("uint8", "uint16", "float32")


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Matching image and label arrays; made by `arrays`.

    Attributes:
        spec: facts about the labels.
        split: name of the split.
        images: `spec.image_dtype` [y, x, c] or, with one channel, [y, x] each.
        labels: integers [y, x] or [y, x, k] each.
        instances: integers [y, x] each; None without objects.
    """

    spec: DatasetSpec
    split: str
    images: Sequence[np.ndarray] | np.ndarray
    labels: Sequence[np.ndarray] | np.ndarray
    instances: Sequence[np.ndarray] | np.ndarray | None

    def __len__(self):
        return len(self.images)

    def name(self, i: int) -> str:
        """The split and the index of sample i."""
        return f"{self.split}_{i}"

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of the label of sample i."""
        return self.labels[i].shape[:2]

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Returns sample i.

        Args:
            i: sample.

        Returns:
            "image": `spec.image_dtype` [y, x, c]; "label": `spec.label_dtype` [y, x], multi-label [y, x, k];
            "instance": uint16 [y, x] if there are objects.
        """
        image = self.images[i]
        sample = {
            "image": image if image.ndim == 3 else image[..., None],
            "label": self.labels[i].astype(self.spec.label_dtype, copy=False),
        }
        if self.instances is None:
            return sample
        instance = number_instances(self.instances[i], sample["label"], self.spec, self.name(i), allow_crowds=True)
        return sample | {"instance": instance}


def arrays(
    split: str,
    *,
    channels: int = 3,
    data: Annotated[DictLike | str, Key(".npz file with {split}_image, {split}_label, maybe {split}_instance")],
    classes: Annotated[Sequence[str] | DictLike, Key("class names in the order of their index")],
    palette: Annotated[
        Sequence[Sequence[int]] | None, Key("a colour per class, for pictures; None: the PASCAL VOC colours")
    ] = None,
    things: Annotated[Sequence[int | str], Key("classes that are countable objects, names or indices")] = (),
) -> Arrays:
    """Opens a data set of numpy arrays: images with any number of channels, in uint8, uint16 or float32.

    `data` is {"train": {"image": ..., "label": ...}, ...}. Images are [n, y, x, c] (or [n, y, x] with one channel),
    labels integers [n, y, x], or [n, y, x, k] of 0 and 1 (multi-label); each is one array, or a list of arrays of any
    sizes. 255 (65535 with more than 255 classes) marks unlabelled pixels. An optional "instance", integers [n, y, x],
    has the object number of each pixel: above 0 on things, where 0 is a crowd, and 0 elsewhere; numbers become 1 .. n.
    `data` may also be the path of an .npz file that holds "train_image", "train_label" and so on.

    Args:
        split: name of the split, such as "train".
        channels: channels the images must have.

    Returns:
        The source.

    Raises:
        UserError: a split is missing or empty; shapes, sizes, dtypes or ids are invalid. The message names the sample.

    Example:
        >>> image, label = np.zeros((2, 4, 6, 3), np.uint8), np.ones((2, 4, 6), np.int64)
        >>> source = arrays("train", data={"train": {"image": image, "label": label}}, classes=("sky", "road"))
        >>> len(source), source.size(0), source.read(1)["label"].dtype
        (2, (4, 6), dtype('uint8'))
    """
    images, labels, instances = _load(data, split) if isinstance(data, str) else _pick(data, split)
    if not len(images) or len(images) != len(labels):
        raise UserError(f"source.data: split {split!r} has {len(images)} images and {len(labels)} labels.")
    if instances is not None and len(instances) != len(labels):
        raise UserError(f"source.data: split {split!r} has {len(labels)} labels and {len(instances)} instance maps.")
    mode = "multilabel" if np.ndim(labels[0]) == 3 else "multiclass"
    spec = make_spec(classes, palette, things, mode, channels, _dtype(images[0]))
    source = Arrays(spec, split, images, labels, instances)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        problem = _fault(image, label, channels, spec)
        if problem is None and instances is not None:
            problem = _instance_fault(instances[i], label, spec)
        if problem:
            raise UserError(f"source.data: {source.name(i)}: {problem}.")
    return source


def _pick(data, split):
    splits = dict(data.items())
    if split not in splits:
        raise UserError(f"source.data has the splits {', '.join(splits)}, not {split!r}.")
    pair = dict(splits[split].items())
    if not {"image", "label"} <= set(pair):
        raise UserError(f"source.data: split {split!r} needs 'image' and 'label', but has {', '.join(pair)}.")
    return pair["image"], pair["label"], pair.get("instance")


def _load(path, split):
    path = files.expand_path(path)
    try:
        with np.load(path) as archive:
            return archive[f"{split}_image"], archive[f"{split}_label"], archive.get(f"{split}_instance")
    except KeyError as error:
        raise UserError(f"source.data: {path} lacks an array: {error.args[0]}.") from error
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"source.data: {path} cannot be read as an .npz file ({error}).") from error


def _dtype(image):
    """Dtype required of all images: that of the first if it is valid, else uint8."""
    return str(image.dtype) if str(image.dtype) in DTYPES else "uint8"


def _fault(image, label, channels, spec):
    """Describes what is wrong with a sample; None if it is valid."""
    k, multilabel = len(spec.classes), spec.mode == "multilabel"
    shape = image.shape if image.ndim == 3 else (*image.shape, 1)
    if image.dtype != spec.image_dtype or len(shape) != 3 or shape[2] != channels:
        return (
            f"the image must be {spec.image_dtype} [y, x, {channels}], with as many channels as preprocess.mean has "
            f"values, but is {image.dtype} {list(image.shape)}; all images must have one dtype, {', '.join(DTYPES)}"
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        return "the image holds values that are not finite"
    if label.dtype.kind not in "bui" or label.shape[2:] != ((k,) if multilabel else ()):
        return f"the label must be integers [y, x{f', {k}' * multilabel}], but is {label.dtype} {list(label.shape)}"
    if image.shape[:2] != label.shape[:2]:
        return f"the image is {image.shape[:2]}, the label {label.shape[:2]} (rows, columns)"
    invalid = (label < 0) | ((label >= (2 if multilabel else k)) & (label != spec.ignore))
    if invalid.any():
        found = format_counts(count_values(label[invalid]))
        return f"the label holds {found}; valid are 0 to {1 if multilabel else k - 1} and {spec.ignore} (ignored)"
    return None


def _instance_fault(instance, label, spec):
    """Describes what is wrong with an instance map; None if it is valid."""
    if spec.mode == "multilabel" or not spec.things:
        return "instance maps need source.things, the classes that have objects, and one class per pixel"
    if instance.dtype.kind not in "ui" or instance.shape != label.shape:
        found = f"{instance.dtype} {list(instance.shape)}"
        return f"the instance map must be integers {list(label.shape)} like the label, but is {found}"
    if (invalid := (instance < 0) | ((instance > 0) & ~np.isin(label, spec.things))).any():
        found = format_counts(count_values(instance[invalid]))
        return f"the instance map holds {found} outside of thing classes, or below 0"
    return None
