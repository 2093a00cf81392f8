"""`segjax predict`: images or a folder in, masks, objects and overlays out."""

import collections
import json
import logging
import pathlib
import time
from typing import Any

import numpy as np
from absl import flags
from PIL import Image, PngImagePlugin

from segjax import infer, rle
from segjax.checks import UserError, writing
from segjax.cli.setup import define_cache
from segjax.data import coco, files, reading
from segjax.metrics.panoptic import encode
from segjax.report import instances, pictures, saved
from segjax.train import compilation

log = logging.getLogger("segjax")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    flags.DEFINE_string("workdir", None, "Folder of a run.", flag_values=values)
    flags.DEFINE_multi_string("input", None, "Image, or folder of images; may be given again.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder for the masks.", flag_values=values)
    flags.DEFINE_bool("overlays", True, "Also write overlays/<stem>.png: the mask over the image.", flag_values=values)
    flags.DEFINE_bool("probabilities", False, "Also write <stem>.npy: float32 [y, x, k].", flag_values=values)
    flags.DEFINE_integer("grid", 1, "Pad sizes to multiples of this: fewer compilations.", 1, flag_values=values)
    text = "Predict in tiles of this size with the model's context around each; 0: whole images."
    flags.DEFINE_integer("tile", 0, text, 0, flag_values=values)
    text = "LOW,HIGH: black and white of images of more than 8 bits, for a run on images of 8 bits."
    flags.DEFINE_list("window", None, text, flag_values=values)
    define_cache(values)


def main(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the verb. Of a model that finds objects the masks are COCO's panoptic ones.

    Args:
        values: its flags.

    Returns:
        How many images, where to, and seconds.

    Raises:
        UserError: no images, two of one name, none that can be read, a folder that cannot be written, or objects
            without pycocotools.
    """
    began = time.monotonic()
    compilation.switch_cache(values.cache)
    paths = [path for given in values.input for path in files.images(pathlib.Path(given))]
    stem, count = collections.Counter(path.stem for path in paths).most_common(1)[0]
    if count > 1:
        raise UserError(f"{count} images are called {stem}: their masks would overwrite each other.")
    output = pathlib.Path(values.output)
    if output.resolve() in {path.resolve().parent for path in paths}:
        raise UserError(f"The masks would overwrite the images in {output}: choose another --output.")
    for path in paths:
        _check_ours(output / f"{path.stem}.png")
    predict, window = infer.load(values.workdir, values.grid, values.tile), _window(values.window)
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
        found = predict(image)
        masks = saved.masks(found["label"], predict.spec) if listed is None else [("", listed.add(path, found))]
        for suffix, mask in masks:
            mask.save(output / f"{path.stem}{pictures.file_name(suffix)}.png", pnginfo=_mark())
        if values.overlays:
            shown = pictures.displayed(image, predict.preprocess.window)
            if "masks" in found:
                picture = instances.overlay_masks(shown, found["masks"], found["classes"], predict.spec, found["score"])
            else:
                objects = {key: found[key] for key in ("instance", "score") if key in found}
                picture = pictures.overlay(shown, found["label"], predict.spec, **objects)
            Image.fromarray(picture).save(output / "overlays" / f"{path.stem}.png")
        if values.probabilities:
            np.save(output / f"{path.stem}.npy", found["probability"])
    if failed == len(paths):
        raise UserError(f"None of the {failed} images could be read.")
    if listed is not None:
        listed.write()
    seconds = round(time.monotonic() - began, 1)
    return {"images": len(paths) - failed, "unreadable": failed, "output": str(output), "seconds": seconds}


class _Listed:
    """What panoptic.json and instances.json will hold, in COCO's terms."""

    def __init__(self, output, spec, divisor):
        rle.coco_tools()
        for name in ("panoptic.json", "instances.json"):
            _check_ours(output / name)
        self.output, self.spec, self.divisor = output, spec, divisor
        self.images, self.panoptic, self.instances = [], [], []

    def add(self, path, found):
        """Lists the objects of an image; returns its panoptic mask."""
        label, instance = found["label"], found["instance"]
        if len(found["score"]) >= self.divisor:
            raise UserError(
                f"task.divisor={self.divisor} must be more than the {len(found['score'])} objects that may be found "
                "in an image, for their ids to differ: change it in the workdir's config.json."
            )
        number, (height, width) = len(self.images) + 1, label.shape
        self.images.append({"id": number, "file_name": path.name, "height": height, "width": width})
        ids = encode(label, instance, self.divisor)
        pixels, segments = coco.panoptic_annotation(ids, self.spec, self.divisor, number, f"{path.stem}.png")
        self.panoptic.append(segments)
        label, instance = label.astype(self.spec.label_dtype), instance.astype(np.uint16)
        self.instances += coco.instance_annotations(label, instance, self.spec, number, found["score"])
        return Image.fromarray(pixels)

    def write(self):
        coco.dump(self.output / "panoptic.json", self.images, self.panoptic, self.spec)
        coco.dump(self.output / "instances.json", self.images, self.instances, self.spec)


def _window(given: list[str] | None) -> tuple[float, float] | None:
    """The two numbers of --window."""
    try:
        low, high = map(float, given or (0, 0))
        return (low, high) if given else None
    except ValueError as error:
        raise UserError(f"--window={','.join(given)} must be two numbers, as in --window=0,4095.") from error


def _read(path: pathlib.Path, predict: infer.Predictor, window: tuple[float, float] | None) -> np.ndarray:
    """An image as the run's were stored; a deeper one within the window as 8 bits, where there is one."""
    channels, dtype = len(predict.preprocess.mean), predict.spec.image_dtype
    if window is not None and dtype == "uint8" and (found := reading.dtype_of(path)) != dtype:
        return pictures.displayed(reading.image(path, channels, found), window)
    return reading.image(path, channels, dtype)


def _mark() -> PngImagePlugin.PngInfo:
    """The note by which a mask is known as a prediction."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "segjax")
    return info


def _check_ours(path: pathlib.Path) -> None:
    """Raises a UserError where a mask or list would replace a file that is not a prediction, such as the truth."""
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
        raise UserError(f"{path} is there already and was not written by segjax: choose another --output.")
