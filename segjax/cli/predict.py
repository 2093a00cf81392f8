"""`segjax predict`: images or a folder in, masks and overlays out."""

import pathlib
import sys
import time
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from segjax import infer, pictures
from segjax.data import files, reading
from segjax.spec import UserError


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    flags.DEFINE_string("workdir", None, "Folder of a run.", flag_values=values)
    flags.DEFINE_multi_string("input", None, "Image, or folder of images; may be given again.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder for the masks.", flag_values=values)
    flags.DEFINE_bool("overlays", True, "Also write overlays/<stem>.png: the mask over the image.", flag_values=values)
    flags.DEFINE_bool("probabilities", False, "Also write <stem>.npy: float32 [y, x, k].", flag_values=values)
    flags.DEFINE_integer("grid", 1, "Pad sizes to multiples of this: fewer compilations.", flag_values=values)
    flags.mark_flags_as_required(["workdir", "input", "output"], values)


def main(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the verb.

    Args:
        values: its flags.

    Returns:
        How many images, where to, and seconds.

    Raises:
        UserError: no images, or two of one name.
    """
    began = time.monotonic()
    paths = [path for given in values.input for path in files.images(pathlib.Path(given))]
    stems = [path.stem for path in paths]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UserError(f"Several images are called {twice[0]}: their masks would overwrite each other.")
    output = pathlib.Path(values.output)
    try:
        (output / "overlays" if values.overlays else output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The output folder {output} cannot be written: {error.strerror}.") from error
    predict = infer.load(values.workdir, values.grid)
    failed = []
    for path in paths:
        try:
            image = reading.image(path, len(predict.preprocess.mean))
        except reading.CorruptImage as error:
            failed.append(str(error))
            print(f"skipped: {error}", file=sys.stderr)
            continue
        found = predict(image)
        for suffix, mask in pictures.masks(found["label"], predict.spec):
            mask.save(output / f"{path.stem}{suffix}.png")
        if values.overlays:
            picture = pictures.overlay(image, found["label"], predict.spec)
            Image.fromarray(picture).save(output / "overlays" / f"{path.stem}.png")
        if values.probabilities:
            np.save(output / f"{path.stem}.npy", found["probability"])
    seconds = round(time.monotonic() - began, 1)
    return {"images": len(paths) - len(failed), "unreadable": len(failed), "output": str(output), "seconds": seconds}
