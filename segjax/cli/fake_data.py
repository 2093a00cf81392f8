"""Replaces the configured data by noise, for verbs that need only shapes."""

import dataclasses

from absl import flags
from ml_collections import ConfigDict

from segjax.checks import UserError
from segjax.data.ids import make_spec
from segjax.data.sources.noise import noise
from segjax.spec import class_names
from segjax.train import components


def define_size(values: flags.FlagValues) -> None:
    """Defines the flags that replace the data by noise."""
    text = "Rows,columns of a test image: the data are not read, and need not exist."
    flags.DEFINE_list("size", None, text, flag_values=values)
    text = "With --size: number of classes, if the configuration does not name them."
    flags.DEFINE_integer("classes", None, text, 1, 255, flag_values=values)


def open_sources(config: ConfigDict, size: list[str] | None, classes: int | None) -> components.Sources:
    """Opens the training and test split, or noise in their place.

    Args:
        config: configuration of the run.
        size: rows and columns of every image; None opens the data.
        classes: number of classes, if the configuration does not name them.

    Returns:
        Sources by split.

    Raises:
        UserError: no data and no size, or no classes.
    """
    splits = sorted({config.splits.train, config.splits.test})
    if size is None:
        try:
            return {split: components.open_source(config, split) for split in splits}
        except UserError as error:
            raise UserError(f"{error} Or give --size=ROWS,COLUMNS of a test image: then no data are needed.") from error
    if len(size) != 2 or not all(each.isdecimal() and int(each) for each in size):
        raise UserError(f"--size={','.join(size)} must be two numbers, rows and columns, as in --size=1024,2048.")
    spec = _spec(config, classes)
    channels = len(config.preprocess.mean)
    made = {split: noise(split, channels=channels, size=tuple(map(int, size))) for split in splits}
    return {split: dataclasses.replace(source, spec=spec) for split, source in made.items()}


def _spec(config, classes):
    """Returns the spec from the number of classes, from the configuration or else from the source."""
    names = config.source.get("classes")
    if classes and names:
        raise UserError("--classes is for configurations that name no classes: this one does, in source.classes.")
    if classes:
        return make_spec(class_names(classes), None, tuple(range(1, classes)))
    if names and not isinstance(names, int | str):
        return make_spec(names, None, tuple(config.source.get("things") or ()))
    try:
        return components.open_source(config, config.splits.train).spec
    except UserError as error:
        raise UserError("The configuration names no classes: give --classes=NUMBER with --size.") from error
