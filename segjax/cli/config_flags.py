"""Defines the flags of the configuration and its keys, and of the cache of compiled programs."""

import os
import re
import sys
import types
from importlib import machinery, util

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from segjax import checks
from segjax.checks import UserError, check_keys
from segjax.cli.config_errors import elsewhere, error_location, error_text
from segjax.config import current_key, section_functions


def define_config(values: flags.FlagValues) -> None:
    """Defines --config; `load_config` adds --config.section.key=value."""
    text = "Configuration: path.py or path.py:argument. --config.section.key=value changes a key."
    flags.DEFINE_string("config", None, text, flag_values=values)


def load_config(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Loads the file that --config names as the value of that flag, and returns the other flags.

    Defines a flag for each key that the command line changes.

    Raises:
        UserError: the file is missing or fails, or a key does not exist.
    """
    path, rest, words = None, [], iter(argv)
    for word in words:
        if re.fullmatch(r"--?config(=.*)?", word):
            path = word.partition("=")[2] or next(words, "")
        else:
            rest.append(word)
    changed = [match[1] for word in rest if (match := re.match(r"--?(?:no)?config\.([^=]*)", word))]
    if path is None:
        if changed:
            raise UserError(f"--config.{changed[0]} changes a key of a configuration: add --config FILE.py.")
        return rest
    config = read_config_file(path)
    sections = {name: checks.keys_of(function) for name, function in section_functions(config).items()}
    optional = {f"{name}.{key}" for name, keys in sections.items() for key in keys if keys[key].default is None}
    for key in changed:
        *parents, last = key.split(".")
        section, where = config, "config"
        for parent in parents:
            check_keys([parent], section, where)
            section, where = section[parent], parent
            if not isinstance(section, ConfigDict):
                raise UserError(f"There is no configuration key {key}: {parent} is the value {section!r}.")
        if (new := ".".join([*parents, current_key(last, section)])) != key:
            rest = [re.sub(rf"^(--?(?:no)?config\.){key}\b", rf"\g<1>{new}", word) for word in rest]
            key, last = new, new.split(".")[-1]
        if last not in section and (hint := elsewhere(last)):
            raise UserError(f"There is no configuration key {key}.{hint}")
        check_keys([last], section, where)
        if key in sections:
            raise UserError(f"{key} is a section: change one of its keys, {', '.join(section[last])}.")
        if key in optional:
            # Optional keys take values of several types, but config_flags expects the type of the current one.
            with section.ignore_type():
                section[last] = placeholder(object)
    delattr(values, "config")
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["segjax", *rest])
    return rest


def read_config_file(path: str) -> ConfigDict:
    """Returns `get_config()` of a configuration file or, for `path.py:argument`, `get_config(argument)`.

    The file can import its neighbours by relative imports: `from .datasets import camvid`.

    Raises:
        UserError: the file or one that it imports is missing, fails, or returns something else.
    """
    file, *argument = path.split(":", 1)
    if not os.path.isfile(file):
        raise UserError(f"There is no configuration file {file!r}.")
    # A temporary package for the file's folder: relative imports resolve there, and files do not affect each other.
    package = types.ModuleType("segjax_user_config")
    package.__path__ = [os.path.dirname(os.path.abspath(file))]
    name = package.__name__ = f"segjax_user_config_{id(package)}"
    loader = machinery.SourceFileLoader(f"{name}.config", file)
    module = util.module_from_spec(util.spec_from_loader(loader.name, loader))
    try:
        sys.modules[name] = package
        loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{file} defines no get_config().")
        config = module.get_config(*argument)
    except UserError:
        raise
    except Exception as error:  # a user's file may raise anything
        raise UserError(f"{error_location(error, name, file)}: {error_text(error, name)}") from error
    finally:
        for imported in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[imported]
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config() must return a config from segjax.default_config(), not {config!r}.")
    return config


def define_cache(values: flags.FlagValues) -> None:
    """Defines --cache."""
    text = "Keep compiled programs in $JAX_COMPILATION_CACHE_DIR, or ~/.cache/segjax."
    flags.DEFINE_bool("cache", True, text, flag_values=values)
