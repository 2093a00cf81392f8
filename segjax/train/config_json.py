"""Parses the config.json of a workdir, including files written by older versions."""

from typing import Any

from ml_collections import ConfigDict

from segjax import config as configuration
from segjax.checks import check_keys, keys_of
from segjax.objectives import OBJECTIVES
from segjax.spec import DatasetSpec, channel_names


def parse(saved: dict[str, Any]) -> tuple[ConfigDict, DatasetSpec]:
    """Returns the configuration and data set of a config.json; keys newer than the file get their defaults."""
    config = from_dict({section: values for section, values in saved.items() if section != "spec"})
    facts = saved["spec"]
    if "image_channels" not in facts:  # version 0.1: uint8, or uint16 with a window
        depth = "uint8" if config.preprocess.window is None else "uint16"
        facts = facts | {"image_channels": channel_names(len(config.preprocess.mean)), "image_dtype": depth}
    spec = {key: tuple(map(_tuple, value)) if isinstance(value, list) else value for key, value in facts.items()}
    return config, DatasetSpec(**spec)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def from_dict(saved: dict[str, Any]) -> ConfigDict:
    """Rebuilds a configuration from the output of `to_dict`; keys newer than it get their defaults.

    Raises:
        UserError: a key that no longer exists.
    """

    def tuples(value):
        if isinstance(value, list):
            return tuple(tuples(v) for v in value)
        return {k: tuples(v) for k, v in value.items()} if isinstance(value, dict) else value

    saved = _from_older(tuples(saved))
    names = {section: saved[section]["name"] for section in configuration.CHOICES}
    config = configuration.default_config(**names)
    for section, values in saved.items():
        check_keys([section], config, "config")
        if isinstance(values, dict):
            for key, value in values.items():
                key = configuration.current_key(key, config[section])
                check_keys([key], config[section], section)
                with config[section].ignore_type():
                    config[section][key] = ConfigDict(value) if isinstance(value, dict) else value
        else:
            config[section] = values
    return config


def _from_older(saved: dict[str, Any]) -> dict[str, Any]:
    """Moves the keys of version 0.1 to their current sections.

    In 0.1 the objective was part of the task, and `task.divisor` limited the number of objects in an image. Images
    with more than 8 bits were mapped from `source.window` to 0..255 on reading; `mean` and `std` had that scale.
    """
    if "objective" in saved:
        return saved
    task, source, preprocess = (dict(saved[name]) for name in ("task", "source", "preprocess"))
    name = configuration.TASK_DEFAULTS[task["name"]]["objective"]["name"]
    learned = keys_of(OBJECTIVES[name])
    objective = {"name": name} | {
        key: task.pop(key) for key in list(task) if configuration.RENAMED.get(key, key) in learned
    }
    if "max_objects" in learned:
        objective["max_objects"] = task["divisor"] - 1
    if (window := source.pop("window", None)) is not None:
        low, high = window
        level = (high - low) / 255
        preprocess["window"] = (float(low), float(high))
        preprocess["mean"] = tuple(low + level * value for value in preprocess["mean"])
        preprocess["std"] = tuple(level * value for value in preprocess["std"])
    return saved | {"task": task, "objective": objective, "source": source, "preprocess": preprocess}
