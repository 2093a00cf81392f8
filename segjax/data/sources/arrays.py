"""Images, labels and objects that are in memory already, or in one .npz file."""

import dataclasses
import zipfile
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from segjax.checks import Key, UserError
from segjax.data import files
from segjax.data.ids import Table, count, listing, make_spec
from segjax.data.instances import number
from segjax.spec import DatasetSpec

DTYPES = ("uint8", "uint16", "float32")


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Image and label arrays that belong together; made by `arrays`.

    Attributes:
        spec: facts about the labels.
        split: name of the split.
        images: `spec.image_dtype` [y, x, c] or, with one channel, [y, x] each.
        labels: integers [y, x] or [y, x, k] each.
        instances: integers [y, x] each; None where there are no objects.
    """

    spec: DatasetSpec
    split: str
    images: Sequence[np.ndarray] | np.ndarray
    labels: Sequence[np.ndarray] | np.ndarray
    instances: Sequence[np.ndarray] | np.ndarray | None

    def __len__(self):
        return len(self.images)

    def name(self, i: int) -> str:
        """The split and the place of sample i in it."""
        return f"{self.split}_{i}"

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of the label of sample i."""
        return self.labels[i].shape[:2]

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Sample i.

        Args:
            i: sample.

        Returns:
            "image": `spec.image_dtype` [y, x, c]; "label": `spec.label_dtype` [y, x], multi-label [y, x, k];
            "instance": uint16 [y, x] where there are objects.
        """
        image = self.images[i]
        sample = {
            "image": image if image.ndim == 3 else image[..., None],
            "label": self.labels[i].astype(self.spec.label_dtype, copy=False),
        }
        if self.instances is None:
            return sample
        instance = number(self.instances[i], sample["label"], self.spec, self.name(i), crowds=True)
        return sample | {"instance": instance}


def arrays(
    split: str,
    *,
    channels: int = 3,
    data: Annotated[Table | str, Key(".npz file with {split}_image, {split}_label, perhaps {split}_instance")],
    classes: Annotated[Sequence[str], Key("class names in the order of their index")],
    palette: Annotated[
        Sequence[Sequence[int]] | None, Key("a colour a class, for pictures; the PASCAL VOC map where left out")
    ] = None,
    things: Annotated[Sequence[int | str], Key("classes that are countable objects, names or indices")] = (),
) -> Arrays:
    """A data set of numpy arrays: images of any number of channels, of uint8, uint16 or float32.

    `data` is {"train": {"image": ..., "label": ...}, ...}: images [n, y, x, c] (or [n, y, x] of one channel) and
    integer labels [n, y, x], or [n, y, x, k] of 0 and 1 (multi-label), as one array or as a list of arrays of their own
    sizes; 255 (65535 with more than 255 classes) marks unlabelled pixels. With "instance", integers [n, y, x], also the
    number of the object of each pixel: any above 0 on things, where 0 is a crowd, and 0 elsewhere; numbers become
    1 .. n. Or the path of an .npz file that holds "train_image", "train_label" and so on.

    Args:
        split: name of the split, such as "train".
        channels: channels the images must have.

    Returns:
        The source.

    Raises:
        UserError: a split is missing or empty; shapes, sizes, dtypes or ids do not fit. The message names the sample.

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
        fault = _fault(image, label, channels, spec)
        if fault is None and instances is not None:
            fault = _instance_fault(instances[i], label, spec)
        if fault:
            raise UserError(f"source.data: {source.name(i)}: {fault}.")
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
    path = files.resolve(path)
    try:
        with np.load(path) as archive:
            return archive[f"{split}_image"], archive[f"{split}_label"], archive.get(f"{split}_instance")
    except KeyError as error:
        raise UserError(f"source.data: {path} lacks an array: {error.args[0]}.") from error
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"source.data: {path} cannot be read as an .npz file ({error}).") from error


def _dtype(image):
    """Dtype of all images: that of the first, where it is one that images may have."""
    return str(image.dtype) if str(image.dtype) in DTYPES else "uint8"


def _fault(image, label, channels, spec):
    """What is wrong with a sample, in words; None where nothing is."""
    k, multilabel = len(spec.classes), spec.mode == "multilabel"
    shape = image.shape if image.ndim == 3 else (*image.shape, 1)
    if image.dtype != spec.image_dtype or len(shape) != 3 or shape[2] != channels:
        return (
            f"the image must be {spec.image_dtype} [y, x, {channels}], with as many channels as preprocess.mean has "
            f"values, but is {image.dtype} {list(image.shape)}; images are of one dtype, {', '.join(DTYPES)}"
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        return "the image holds values that are not finite"
    if label.dtype.kind not in "bui" or label.shape[2:] != ((k,) if multilabel else ()):
        return f"the label must be integers [y, x{f', {k}' * multilabel}], but is {label.dtype} {list(label.shape)}"
    if image.shape[:2] != label.shape[:2]:
        return f"the image is {image.shape[:2]}, the label {label.shape[:2]} (rows, columns)"
    strange = (label < 0) | ((label >= (2 if multilabel else k)) & (label != spec.ignore))
    if strange.any():
        found = listing(count(label[strange]))
        return f"the label holds {found}; known are 0 to {1 if multilabel else k - 1} and {spec.ignore} (ignored)"
    return None


def _instance_fault(instance, label, spec):
    """What is wrong with the numbers of a sample's objects, in words; None where nothing is."""
    if spec.mode == "multilabel" or not spec.things:
        return "instance maps need source.things, the classes that have objects, and one class a pixel"
    if instance.dtype.kind not in "ui" or instance.shape != label.shape:
        found = f"{instance.dtype} {list(instance.shape)}"
        return f"the instance map must be integers {list(label.shape)} as the label, but is {found}"
    if (strange := (instance < 0) | ((instance > 0) & ~np.isin(label, spec.things))).any():
        return f"the instance map holds {listing(count(instance[strange]))} on pixels of no thing class, or below 0"
    return None
