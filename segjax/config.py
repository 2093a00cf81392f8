"""The configuration of a run: sections from the signatures of the functions that take them, checked as a whole."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from ml_collections import ConfigDict

from segjax import augment, checks, parallel
from segjax.checks import Key, choose
from segjax.data import loader, pipeline
from segjax.data.sources import SOURCES
from segjax.models import MODELS
from segjax.objectives import OBJECTIVES
from segjax.spec import Preprocess
from segjax.tasks import TASKS
from segjax.train import checkpoint, log, optimizer, pretrained, state
from segjax.train.durations import durations


class Splits(NamedTuple):
    """Names of the splits, as the source calls them; the best checkpoint is the best on `test`."""

    train: Annotated[str, Key("what is trained on")] = "train"
    test: Annotated[str, Key("what is scored; name a validation split here where there is one")] = "test"


class Resume(NamedTuple):
    """What a workdir with checkpoints accepts."""

    allow_changed: Annotated[bool, Key("go on although model, objective, task, inputs or classes changed")] = False


def run(*, seed: Annotated[int, Key("of parameters, sample order, augmentation and dropout", "[0, inf)")] = 0):
    """Holds the keys that are in no section."""


SECTIONS: dict[str, Callable] = {
    "splits": Splits,
    "preprocess": Preprocess,
    "data": pipeline.train_batches,
    "loading": loader.Loading,
    "augment": augment.colour,
    "optimizer": optimizer.make,
    "ema": state.Average,
    "run": durations,
    "eval": pipeline.eval_batches,
    "parallel": parallel.make_mesh,
    "init": pretrained.start_from,
    "resume": Resume,
    "checkpoint": checkpoint.Checkpoints,
    "log": log.Log,
}
NAMED = {"source": SOURCES, "model": MODELS, "objective": OBJECTIVES, "task": TASKS}

# What a task has instead of the defaults of the signatures.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "semantic": {"objective": {"name": "pixels"}},
    "panoptic": {"objective": {"name": "centres"}, "checkpoint": {"best": "PQ"}},
    # 100 objects of an image: as many as COCO scores.
    "instance": {"objective": {"name": "centres", "top_k": 100}, "checkpoint": {"best": "AP"}},
}


def base(
    source: str = "shapes", model: str = "unet", task: str = "semantic", objective: str | None = None
) -> ConfigDict:
    """Returns a configuration with every key at its default; a mistyped key fails.

    Args:
        source: a key of `segjax.data.sources.SOURCES`.
        model: a key of `segjax.models.MODELS`.
        task: a key of `segjax.tasks.TASKS`.
        objective: a key of `segjax.objectives.OBJECTIVES`; None for the task's usual one.

    Returns:
        A ConfigDict whose sections are the keyword arguments of one function each; `segjax config` explains them.

    Raises:
        UserError: no such source, model, task or objective.

    Example:
        >>> config = base(source="shapes")
        >>> config.data.crop = (64, 64)
        >>> config.model.name
        'unet'
    """
    recipe = choose("task.name", task, RECIPES)
    objective = objective or recipe["objective"]["name"]
    names = {"source": source, "model": model, "objective": objective, "task": task}
    config = _defaults(run)
    for section, function in _functions(names).items():
        own = {key: value for key, value in recipe.get(section, {}).items() if key in checks.keys_of(function)}
        name = {"name": names[section]} if section in names else {}
        config[section] = name | _defaults(function) | own
    return ConfigDict(config).lock()


def check(config: ConfigDict) -> None:
    """Raises a UserError for the first value of a configuration that does not fit its key's type and range.

    Example:
        >>> config = base()
        >>> config.optimizer.learning_rate = -1.0
        >>> check(config)
        Traceback (most recent call last):
        segjax.checks.UserError: optimizer.learning_rate=-1.0 must be a finite number in [0, inf): at the peak.
    """
    checks.check_section("", run, {key: value for key, value in config.items() if not isinstance(value, ConfigDict)})
    for section, function in functions(config).items():
        checks.check_section(section, function, {key: value for key, value in config[section].items() if key != "name"})


def functions(config: ConfigDict) -> dict[str, Callable]:
    """The function that each section of a configuration is for; `segjax.checks.keys_of` reads its keys.

    Example:
        >>> functions(base())["data"].__name__
        'train_batches'
    """
    return _functions({section: config[section].name for section in NAMED})


def _functions(names: Mapping[str, str]) -> dict[str, Callable]:
    return {section: choose(f"{section}.name", names[section], table) for section, table in NAMED.items()} | SECTIONS


def _defaults(function: Callable) -> dict[str, Any]:
    return {name: setting.default for name, setting in checks.keys_of(function).items()}


def to_dict(config: ConfigDict | dict) -> dict[str, Any]:
    """A configuration as plain dicts and lists, as JSON gives it back: tuples become lists."""

    def plain(value):
        if isinstance(value, ConfigDict | dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return value

    return plain(config)
