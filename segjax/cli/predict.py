"""`segjax predict`: predicts masks, objects and overlays for images or folders."""

import collections
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image, PngImagePlugin

from segjax.checks import UserError, writing
from segjax.cli.config_flags import define_cache
from segjax.data import files, reading
from segjax.data.ids import source_ids
from segjax.infer import Predictor, memory
from segjax.report import instances, mask_files, pictures
from segjax.report.coco_files import CocoFiles
from segjax.spec import DatasetSpec, Segments, file_name
from segjax.train import compilation
from segjax.train.workdir import read_config

SMALL = 1 << 20  # pixels of an image up to which memory is not estimated
MARGIN = 0.9  # of the free memory, since the estimate is one

log = logging.getLogger("segjax")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    flags.DEFINE_string("workdir", None, "Folder of a run.", flag_values=values)
    flags.DEFINE_multi_string("input", None, "Image, or folder of images; may be repeated.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder for the masks.", flag_values=values)
    flags.DEFINE_bool("recursive", False, "Also images in subfolders; the output has the same.", flag_values=values)
    flags.DEFINE_bool("overlays", True, "Also write overlays/<stem>.png: the mask over the image.", flag_values=values)
    flags.DEFINE_bool("probabilities", False, "Also write <stem>.npy: float32 [y, x, k].", flag_values=values)
    text = "Values of masks: class indices, or the data set's own."
    flags.DEFINE_enum("ids", "classes", ["classes", "source"], text, flag_values=values)
    text = "COCO file whose ids of categories and images are written."
    flags.DEFINE_string("coco_json", None, text, flag_values=values)
    flags.DEFINE_integer(
        "size_multiple", 1, "Pad sizes to multiples of this: fewer compilations.", 1, flag_values=values
    )
    flags.DEFINE_alias("grid", "size_multiple", flag_values=values)  # its name in version 0.1
    text = "Tiles of this size, with the model's context around each; 0: none."
    flags.DEFINE_integer("tile", 0, text, 0, flag_values=values)
    text = "LOW,HIGH: black and white of images of more than 8 bits, for a model of 8-bit images."
    flags.DEFINE_list("window", None, text, flag_values=values)
    define_cache(values)


def main(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the verb; a model that finds objects writes COCO's panoptic masks.

    A file that cannot be predicted is skipped, named and counted; the verb fails only if none can be.

    Returns:
        Number of images, output folder and seconds.

    Raises:
        UserError: no images, two of the same name, none that can be read, a folder that cannot be written, or objects
                without pycocotools.
    """
    began = time.monotonic()
    compilation.enable_compilation_cache(values.cache)
    output, window = pathlib.Path(values.output), _window(values.window)
    images = [
        (path, pathlib.Path(path.name) if path == pathlib.Path(given) else path.relative_to(given))
        for given in values.input
        for path in files.list_images(pathlib.Path(given), values.recursive, output)
    ]
    if os.path.realpath(output) in {os.path.dirname(os.path.realpath(path)) for path, _ in images}:
        raise UserError(f"The masks would overwrite the images in {output}: choose another --output.")
    names = _mask_names([name for _, name in images])
    for name in names:
        _check_ours(output / f"{name}.png")
    predict = Predictor.from_workdir(values.workdir, values.size_multiple, values.tile)
    writer = _Writer(values, predict)
    with writing(f"The output folder {output}"):
        output.mkdir(parents=True, exist_ok=True)
    done = skipped = 0
    for (path, given), name in zip(images, names, strict=True):
        try:
            for suffix, image, empty in _read_pages(path, predict, window):
                segments = _without_data(predict(image), empty, predict.spec)
                writer.write(f"{name}{suffix}", given.as_posix(), image, segments)
            done += 1
        except UserError as error:
            skipped += 1
            log.warning("Skipped: %s", error)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            skipped += 1
            log.warning("Skipped: %s: the memory is too small (%s).", path, str(error).split("\n")[0])
    if not done:
        raise UserError(f"None of the {skipped} images could be predicted.")
    writer.finish()
    seconds = round(time.monotonic() - began, 1)
    return {"images": done, "unreadable": skipped, "output": str(output), "seconds": seconds}


class _Writer:
    """Writes what is predicted for an image: masks, an overlay, probabilities, and entries of COCO's files."""

    def __init__(self, values, predict):
        self.output, self.spec, self.preprocess = pathlib.Path(values.output), predict.spec, predict.preprocess
        self.overlays, self.probabilities = values.overlays, values.probabilities
        self.coco = CocoFiles(predict.spec, predict.divisor, values.coco_json) if predict.divisor else None
        if values.coco_json and not self.coco:
            raise UserError("--coco_json is for a model that finds objects, but this one finds none.")
        own = values.ids == "source"
        if own and (self.coco or predict.spec.mode == "multilabel"):
            raise UserError("--ids=source is for masks of one class per pixel; for objects there is --coco_json.")
        source = read_config(values.workdir)[0].source if own else {}
        self.in_colours = bool(source.get("colours"))
        ids, ignored = source.get("ids"), source.get("ignore_ids") or ()
        self.ids = source_ids(predict.spec, ids, ignored) if own and not self.in_colours else None
        for name in CocoFiles.NAMES if self.coco else ():
            _check_ours(self.output / name)

    def write(self, name, image_name, image, segments):
        """Writes the files of an image; `name` is that of its masks, `image_name` that of its file."""
        path, overlay = self.output / f"{name}.png", self.output / "overlays" / f"{name}.png"
        masks = self._masks(name, image_name, segments)
        with writing(f"The output folder {self.output}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            for suffix, mask in masks:
                mask.save(self.output / f"{name}{file_name(suffix)}.png", pnginfo=_mark())
            if self.overlays:
                overlay.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(self._overlay(image, segments)).save(overlay)
            if self.probabilities:
                np.save(self.output / f"{name}.npy", segments.probability)

    def finish(self):
        """Writes the files that list all images."""
        if self.coco:
            self.coco.write(self.output)

    def _masks(self, name, image_name, segments):
        if self.coco:
            return [("", self.coco.add(image_name, name, segments))]
        if self.in_colours:
            colours = np.array([*self.spec.colours, (0, 0, 0)], np.uint8)
            return [("", Image.fromarray(colours[np.minimum(segments.label, len(colours) - 1)]))]
        if self.ids is not None:
            ids = self.ids[segments.label]
            return [("", Image.fromarray(ids.astype(np.uint8 if self.ids.max() < 256 else np.uint16)))]
        return mask_files.mask_pictures(segments.label, self.spec)

    def _overlay(self, image, segments):
        spec, score = self.spec, segments.score
        shown = pictures.to_display(image, self.preprocess.window)
        if segments.masks is not None:
            return instances.overlay_masks(shown, segments.masks, segments.classes, spec, score)
        return pictures.overlay(shown, segments.label, spec, instance=segments.instance, score=score)


def _mask_names(paths: list[pathlib.Path]) -> list[str]:
    """Names the masks: the path of an image below its input without the extension, or with it where two would agree."""
    whole = [path.as_posix() for path in paths]
    names = [path.with_suffix("").as_posix() for path in paths]
    while True:
        counts = collections.Counter(names)
        apart = [full if counts[name] > 1 else name for full, name in zip(whole, names, strict=True)]
        if apart == names:
            break
        names = apart  # "a.jpg" of "a.png" and "a.jpg" may meet "a.jpg.png"
    name, count = collections.Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{count} images are called {name}: their masks would overwrite each other.")
    return names


def _window(given: list[str] | None) -> tuple[float, float] | None:
    """Parses the two numbers of --window."""
    try:
        low, high = map(float, given or (0, 0))
        return (low, high) if given else None
    except ValueError as error:
        raise UserError(f"--window={','.join(given)} must be two numbers, as in --window=0,4095.") from error


def _read_pages(
    path: pathlib.Path, predict: Predictor, window: tuple[float, float] | None
) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """Reads the pages of an image in the dtype of the run's images, if there is memory for them.

    With a window, a deeper image becomes 8-bit. Yields an ending for the names of masks, pixels, and the pixels without
    data.
    """
    channels, dtype = len(predict.preprocess.mean), predict.spec.image_dtype
    found, size, pages = reading.read_header(path, reading=predict.reading)
    if found != dtype and (window is None or dtype != "uint8"):
        hint = ": give --window=LOW,HIGH, the values of black and white." if dtype == "uint8" else "."
        raise UserError(f"{path} holds {found} pixels, but the model was trained on {dtype}{hint}")
    _check_memory(path, size, predict)
    for page in range(pages):
        image, empty = reading.read_image(path, channels, found, reading=predict.reading, page=page)
        yield reading.page_suffix(page, pages), image if found == dtype else pictures.to_display(image, window), empty


def _check_memory(path: pathlib.Path, size: tuple[int, int], predict: Predictor) -> None:
    """Raises a UserError if an image is too large for the memory that is free."""
    if math.prod(size) < SMALL:
        return
    device, host = predict.bytes_needed(size)
    pairs = [(device, memory.free_bytes(predict.device)), (host, memory.free_host_bytes())]
    if predict.device.platform == "cpu":  # one memory for both
        pairs = [(device + host, min(free for _, free in pairs))]
    for needed, free in pairs:
        if needed > MARGIN * free:
            raise UserError(
                f"{path} has {size[0]} x {size[1]} pixels, which need about {needed / 1e9:.1f} GB of memory, but "
                f"{free / 1e9:.1f} GB are free: cut it, shrink it or, if the model has context, give --tile."
            )


def _without_data(segments: Segments, empty: np.ndarray | None, spec: DatasetSpec) -> Segments:
    """Marks pixels of which the image has no data as unlabelled."""
    if empty is None:
        return segments
    if spec.mode == "multilabel":
        return segments.replace(label=segments.label & ~empty[..., None])
    instance = None if segments.instance is None else np.where(empty, 0, segments.instance)
    return segments.replace(label=np.where(empty, spec.ignore, segments.label), instance=instance)


def _mark() -> PngImagePlugin.PngInfo:
    """Makes the metadata that marks a mask as a prediction."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "segjax")
    return info


def _check_ours(path: pathlib.Path) -> None:
    """Raises a UserError if a mask or list would replace a file that is not a prediction, such as ground truth."""
    if not path.exists():
        return
    try:
        if path.suffix == ".json":
            ours = json.loads(path.read_text(encoding="utf-8"))["info"]["software"] == "segjax"
        else:
            with Image.open(path) as picture:
                ours = picture.info.get("Software") == "segjax"
    except (OSError, ValueError, LookupError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{path} exists and was not written by segjax: choose another --output.")
