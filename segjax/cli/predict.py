"""`segjax predict`: predicts masks, objects and overlays for images or folders."""

import collections
import json
import logging
import pathlib
import time
from typing import Any

import numpy as np
from absl import flags
from PIL import Image, PngImagePlugin

from segjax import rle
from segjax.checks import UserError, writing
from segjax.cli.config_flags import define_cache
from segjax.data import files, reading
from segjax.data.coco import write
from segjax.infer import Predictor
from segjax.metrics.panoptic import encode_panoptic
from segjax.report import instances, mask_files, pictures
from segjax.train import compilation

log = logging.getLogger("segjax")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    flags.DEFINE_string("workdir", None, "Folder of a run.", flag_values=values)
    flags.DEFINE_multi_string("input", None, "Image, or folder of images; may be repeated.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder for the masks.", flag_values=values)
    flags.DEFINE_bool("overlays", True, "Also write overlays/<stem>.png: the mask over the image.", flag_values=values)
    flags.DEFINE_bool("probabilities", False, "Also write <stem>.npy: float32 [y, x, k].", flag_values=values)
    flags.DEFINE_integer(
        "size_multiple", 1, "Pad sizes to multiples of this: fewer compilations.", 1, flag_values=values
    )
    flags.DEFINE_alias("grid", "size_multiple", flag_values=values)  # its name in version 0.1
    text = "Predict in tiles of this size with the model's context around each; 0: whole images."
    flags.DEFINE_integer("tile", 0, text, 0, flag_values=values)
    text = "LOW,HIGH: black and white of images of more than 8 bits, for a model of 8-bit images."
    flags.DEFINE_list("window", None, text, flag_values=values)
    define_cache(values)


def main(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the verb; a model that finds objects writes COCO's panoptic masks.

    Returns:
        Number of images, output folder and seconds.

    Raises:
        UserError: no images, two of the same name, none that can be read, a folder that cannot be written, or objects
                without pycocotools.
    """
    began = time.monotonic()
    compilation.enable_compilation_cache(values.cache)
    paths = [path for given in values.input for path in files.list_images(pathlib.Path(given))]
    stem, count = collections.Counter(path.stem for path in paths).most_common(1)[0]
    if count > 1:
        raise UserError(f"{count} images are called {stem}: their masks would overwrite each other.")
    output = pathlib.Path(values.output)
    if output.resolve() in {path.resolve().parent for path in paths}:
        raise UserError(f"The masks would overwrite the images in {output}: choose another --output.")
    for path in paths:
        _check_ours(output / f"{path.stem}.png")
    predict, window = Predictor.from_workdir(values.workdir, values.size_multiple, values.tile), _window(values.window)
    listed = _Listed(output, predict.spec, predict.divisor) if predict.divisor else None
    with writing(f"The output folder {output}"):
        (output / "overlays" if values.overlays else output).mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in paths:
        try:
            image = _read(path, predict, window)
        except reading.CorruptImage as error:
            failed += 1
            log.warning("Skipped: %s", error)
            continue
        segments = predict(image)
        plain = listed is None
        masks = mask_files.mask_pictures(segments.label, predict.spec) if plain else [("", listed.add(path, segments))]
        for suffix, mask in masks:
            mask.save(output / f"{path.stem}{files.file_name(suffix)}.png", pnginfo=_mark())
        if values.overlays:
            shown = pictures.to_display(image, predict.preprocess.window)
            label, score = segments.label, segments.score
            if segments.masks is not None:
                picture = instances.overlay_masks(shown, segments.masks, segments.classes, predict.spec, score)
            else:
                picture = pictures.overlay(shown, label, predict.spec, instance=segments.instance, score=score)
            Image.fromarray(picture).save(output / "overlays" / f"{path.stem}.png")
        if values.probabilities:
            np.save(output / f"{path.stem}.npy", segments.probability)
    if failed == len(paths):
        raise UserError(f"None of the {failed} images could be read.")
    if listed is not None:
        listed.write()
    seconds = round(time.monotonic() - began, 1)
    return {"images": len(paths) - failed, "unreadable": failed, "output": str(output), "seconds": seconds}


class _Listed:
    """Collects the contents of panoptic.json and instances.json."""

    def __init__(self, output, spec, divisor):
        rle.coco_tools()
        for name in ("panoptic.json", "instances.json"):
            _check_ours(output / name)
        self.output, self.spec, self.divisor = output, spec, divisor
        self.images, self.panoptic, self.instances = [], [], []

    def add(self, path, segments):
        """Adds the objects of an image; returns its panoptic mask."""
        label, instance, score = segments.label, segments.instance, segments.score
        if len(score) >= self.divisor:
            raise UserError(
                f"task.divisor={self.divisor} must be larger than the {len(score)} objects that an image may have, for "
                "their ids to differ: change it in the workdir's config.json."
            )
        number, (height, width) = len(self.images) + 1, label.shape
        self.images.append({"id": number, "file_name": path.name, "height": height, "width": width})
        ids = encode_panoptic(label, instance, self.divisor)
        pixels, annotation = write.panoptic_annotation(ids, self.spec, self.divisor, number, f"{path.stem}.png")
        self.panoptic.append(annotation)
        label, instance = label.astype(self.spec.label_dtype), instance.astype(np.uint16)
        self.instances += write.instance_annotations(label, instance, self.spec, number, score)
        return Image.fromarray(pixels)

    def write(self):
        write.write_json(self.output / "panoptic.json", self.images, self.panoptic, self.spec)
        write.write_json(self.output / "instances.json", self.images, self.instances, self.spec)


def _window(given: list[str] | None) -> tuple[float, float] | None:
    """Parses the two numbers of --window."""
    try:
        low, high = map(float, given or (0, 0))
        return (low, high) if given else None
    except ValueError as error:
        raise UserError(f"--window={','.join(given)} must be two numbers, as in --window=0,4095.") from error


def _read(path: pathlib.Path, predict: Predictor, window: tuple[float, float] | None) -> np.ndarray:
    """Reads an image in the dtype of the run's images; with a window, converts a deeper image to 8 bits."""
    channels, dtype = len(predict.preprocess.mean), predict.spec.image_dtype
    if window is not None and dtype == "uint8" and (found := reading.read_dtype(path)) != dtype:
        return pictures.to_display(reading.read_image(path, channels, found)[0], window)
    return reading.read_image(path, channels, dtype)[0]


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
