"""Noise in place of the configured data, for verbs that need no more than shapes."""

import dataclasses

from absl import flags
from ml_collections import ConfigDict

from segjax.checks import UserError
from segjax.data.ids import make_spec
from segjax.data.sources.noise import noise
from segjax.train import components


def define_size(values: flags.FlagValues) -> None:
    """Defines the flags that stand for the data.

    Args:
        values: where flags are defined.
    """
    text = "Rows,columns of a test image: the data are not read, and need not be there."
    flags.DEFINE_list("size", None, text, flag_values=values)
    text = "With --size: number of classes, where the configuration does not name them."
    flags.DEFINE_integer("classes", None, text, 1, 255, flag_values=values)


def open_sources(config: ConfigDict, size: list[str] | None, classes: int | None) -> components.Sources:
    """Opens the training and test split, or what stands in for them.

    Args:
        config: configuration of the run.
        size: rows and columns of every image; None opens the data.
        classes: number of classes, where the configuration does not name them.

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
            raise UserError(
                f"{error} Or give --size=ROWS,COLUMNS, of a test image: no data are needed then."
            ) from error
    if len(size) != 2 or not all(each.isdecimal() and int(each) for each in size):
        raise UserError(f"--size={','.join(size)} must be two numbers, rows and columns, as in --size=1024,2048.")
    spec = _spec(config, classes)
    channels = len(config.preprocess.mean)
    made = {split: noise(split, channels=channels, size=tuple(map(int, size))) for split in splits}
    return {split: dataclasses.replace(source, spec=spec) for split, source in made.items()}


def _spec(config, classes):
    """Classes by number, as the configuration names them, or else as the source that is there does."""
    names = config.source.get("classes")
    if classes and names:
        raise UserError("--classes is for configurations that name no classes: this one does, in source.classes.")
    if classes:
        return make_spec([f"class {k}" for k in range(classes)], None, tuple(range(1, classes)))
    if isinstance(names, tuple | list) and names:
        return make_spec(names, None, tuple(config.source.get("things") or ()))
    try:
        return components.open_source(config, config.splits.train).spec
    except UserError as error:
        raise UserError("The configuration names no classes: give --classes=NUMBER beside --size.") from error
