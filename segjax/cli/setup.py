"""The flags of a configuration: the file, its keys, and the cache of programs."""

import importlib.machinery
import os
import re
import traceback
import types

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from segjax import checks
from segjax.checks import UserError, check_keys
from segjax.config import functions


def define_config(values: flags.FlagValues) -> None:
    """Defines --config; `load_config` adds --config.section.key=value."""
    text = "Configuration: path.py or path.py:argument. --config.section.key=value changes a key."
    flags.DEFINE_string("config", None, text, flag_values=values)


def load_config(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Loads the file that --config names, which becomes the configuration itself; returns the other flags.

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
            raise UserError(f"--config.{changed[0]} changes a key of a configuration: name one with --config FILE.py.")
        return rest
    config = read_config_file(path)
    sections = {name: checks.keys_of(function) for name, function in functions(config).items()}
    optional = {f"{name}.{key}" for name, keys in sections.items() for key in keys if keys[key].default is None}
    for key in changed:
        *parents, last = key.split(".")
        section, where = config, "config"
        for parent in parents:
            check_keys([parent], section, where)
            section, where = section[parent], parent
            if not isinstance(section, ConfigDict):
                raise UserError(f"There is no configuration key {key}: {parent} is the value {section!r}.")
        check_keys([last], section, where)
        if key in sections:
            raise UserError(f"{key} is a section: change one of its keys, {', '.join(section[last])}.")
        if key in optional:
            # Keys that may be left out take values of several types, but config_flags goes by the one that is there.
            with section.ignore_type():
                section[last] = placeholder(object)
    delattr(values, "config")
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["segjax", *rest])
    return rest


def read_config_file(path: str) -> ConfigDict:
    """What `get_config()` of a configuration file returns, or, for `path.py:argument`, `get_config(argument)`.

    Raises:
        UserError: the file is missing, fails, or returns something else.
    """
    file, *argument = path.split(":", 1)
    if not os.path.isfile(file):
        raise UserError(f"There is no configuration file {file!r}.")
    loader = importlib.machinery.SourceFileLoader("segjax_user_config", file)
    module = types.ModuleType(loader.name)
    module.__file__ = file
    try:
        loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{file} defines no get_config().")
        config = module.get_config(*argument)
    except UserError:
        raise
    except Exception as error:  # whatever a file of the user's may raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        if isinstance(error, SyntaxError):
            lines = [error.lineno]
        where = f"{file}, line {lines[-1]}" if lines else file
        raise UserError(f"{where}: {_said(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config() must return what segjax.config.base() makes, not {config!r}.")
    return config


def _said(error):
    """The text of an error; of ConfigDict's, which list whole sections, the key and what is wrong with it."""
    text = str(error.args[0] if error.args else error)
    if near := re.search(r'Did you mean "(.*)" instead of "(.*)"', text):
        return f"there is no configuration key {near[2]!r}. Did you mean {near[1]!r}?"
    if unknown := re.search(r'Key "(.*)" does not exist', text):
        return f"there is no configuration key {unknown[1]!r}."
    if kind := re.search(r"field '(.*?)'.*?\. (.*) is of original type .* to type <class '(.*)'>", text, re.DOTALL):
        return f"{kind[1]} = {kind[2]} must be of type {kind[3]}."
    return f"{type(error).__name__}: {text}"


def define_cache(values: flags.FlagValues) -> None:
    """Defines --cache."""
    text = "Keep compiled programs in $JAX_COMPILATION_CACHE_DIR, or ~/.cache/segjax."
    flags.DEFINE_bool("cache", True, text, flag_values=values)
