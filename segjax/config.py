"""The configuration of a run: sections are made from the signatures of the functions that take them."""

import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from ml_collections import ConfigDict

from segjax import augment, checks, parallel
from segjax.checks import Key, choose
from segjax.data import loader, pipeline
from segjax.data.formats.opening import Reading
from segjax.data.sources import SOURCES
from segjax.models import MODELS
from segjax.objectives import OBJECTIVES
from segjax.spec import Preprocess
from segjax.tasks import TASKS
from segjax.train import checkpoint, log, optimizer, pretrained, state
from segjax.train.durations import durations


class Splits(NamedTuple):
    """Names of the splits in the source; `test` decides which checkpoint is best."""

    train: Annotated[str, Key("split to train on")] = "train"
    test: Annotated[str, Key("split to evaluate on; a validation split, if there is one")] = "test"


class Resume(NamedTuple):
    """How a workdir with checkpoints may be resumed."""

    allow_changed: Annotated[bool, Key("resume although model, objective, task, inputs or classes changed")] = False


class TopLevel(NamedTuple):
    """Keys outside of sections."""

    seed: Annotated[int, Key("seed of parameters, sample order, augmentation and dropout", "[0, inf)")] = 0


SECTIONS: dict[str, Callable] = {
    "splits": Splits,
    "preprocess": Preprocess,
    "data": pipeline.train_batches,
    "reading": Reading,
    "loading": loader.Loading,
    "augment": augment.colour,
    "optimizer": optimizer.make_optimizer,
    "ema": state.Ema,
    "run": durations,
    "eval": pipeline.eval_batches,
    "parallel": parallel.make_mesh,
    "init": pretrained.start_from,
    "resume": Resume,
    "checkpoint": checkpoint.Checkpoints,
    "log": log.Log,
}
CHOICES = {"source": SOURCES, "model": MODELS, "objective": OBJECTIVES, "task": TASKS}

# Key names of version 0.1, which are still accepted.
RENAMED = {
    "hardest": "ohem_fraction",
    "rare": "rare_class_fraction",
    "paste": "copy_paste_fraction",
    "fold": "pair_columns",
    "convention": "variant",
    "end": "end_factor",
    "crowds": "allow_crowds",
    "mode": "transform",
}

# Defaults of a task that replace those of the signatures.
TASK_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "semantic": {"objective": {"name": "pixels"}},
    "panoptic": {"objective": {"name": "centres"}, "checkpoint": {"best": "PQ"}},
    # COCO scores at most 100 objects per image.
    "instance": {"objective": {"name": "centres", "top_k": 100}, "checkpoint": {"best": "AP"}},
}


class Section(ConfigDict):
    """A section of a configuration that also accepts key names of version 0.1."""

    def __getitem__(self, key):
        return super().__getitem__(current_key(key, self))

    def __setitem__(self, key, value):
        super().__setitem__(current_key(key, self), value)


def current_key(key: str | int, section: ConfigDict) -> str | int:
    """Returns the current name of a section's key; warns about a name of version 0.1."""
    new = RENAMED.get(key)
    if new is None or key in section or new not in section:
        return key
    logging.getLogger("segjax").warning("The configuration key %s is called %s since version 0.2.", key, new)
    return new


def default_config(
    source: str = "shapes", model: str = "unet", task: str = "semantic", objective: str | None = None
) -> ConfigDict:
    """Returns a configuration with every key at its default; a mistyped key fails.

    Args:
        source: a key of `segjax.data.sources.SOURCES`.
        model: a key of `segjax.models.MODELS`.
        task: a key of `segjax.tasks.TASKS`.
        objective: a key of `segjax.objectives.OBJECTIVES`; None for the task's default.

    Returns:
        A ConfigDict whose sections are the keyword arguments of one function each; `segjax config` explains them.

    Raises:
        UserError: an unknown source, model, task or objective.

    Example:
        >>> config = default_config(source="shapes")
        >>> config.data.crop = (64, 64)
        >>> config.model.name
        'unet'
    """
    recipe = choose("task.name", task, TASK_DEFAULTS)
    objective = objective or recipe["objective"]["name"]
    names = {"source": source, "model": model, "objective": objective, "task": task}
    config = _defaults(TopLevel)
    for section, function in _functions_of(names).items():
        own = {key: value for key, value in recipe.get(section, {}).items() if key in checks.keys_of(function)}
        name = {"name": names[section]} if section in names else {}
        config[section] = Section(name | _defaults(function) | own)
    return ConfigDict(config).lock()


def check(config: ConfigDict) -> None:
    """Raises a UserError for the first value of a configuration outside of its key's type or range.

    Example:
        >>> config = default_config()
        >>> config.optimizer.learning_rate = -1.0
        >>> check(config)
        Traceback (most recent call last):
        segjax.checks.UserError: optimizer.learning_rate=-1.0 must be a finite number in [0, inf): peak learning rate.
    """
    checks.check_section(
        "", TopLevel, {key: value for key, value in config.items() if not isinstance(value, ConfigDict)}
    )
    for section, function in section_functions(config).items():
        checks.check_section(section, function, {key: value for key, value in config[section].items() if key != "name"})


def section_functions(config: ConfigDict) -> dict[str, Callable]:
    """Returns the function that takes each section; `segjax.checks.keys_of` reads its keys.

    Example:
        >>> section_functions(default_config())["data"].__name__
        'train_batches'
    """
    return _functions_of({section: config[section].name for section in CHOICES})


def _functions_of(names: Mapping[str, str]) -> dict[str, Callable]:
    return {section: choose(f"{section}.name", names[section], table) for section, table in CHOICES.items()} | SECTIONS


def _defaults(function: Callable) -> dict[str, Any]:
    return {name: setting.default for name, setting in checks.keys_of(function).items()}


base = default_config  # its name in version 0.1


def to_dict(config: ConfigDict | dict) -> dict[str, Any]:
    """Converts a configuration to plain dicts and lists, as JSON returns it: tuples become lists."""

    def plain(value):
        if isinstance(value, ConfigDict | dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return value

    return plain(config)
