"""`segjax config`: prints the keys of a configuration with their values, ranges and meanings."""

import shutil

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segjax import checks
from segjax.checks import check_choice
from segjax.cli.config_flags import define_config
from segjax.config import TopLevel, default_config, section_functions


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    define_config(values)
    flags.DEFINE_string("key", "", "Section or section.key to print; default: all.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Runs the verb.

    Raises:
        UserError: an unknown section or key.
    """
    config = values.config or default_config()
    rows = list(describe(config))
    sections = {path.partition(".")[0] for path, *_ in rows}
    if values.key:
        check_choice("key", values.key, sections | {path for path, *_ in rows})
    grid = Table(box=None, pad_edge=False, show_edge=False)
    for heading in ("key", "value", "range", "meaning"):
        grid.add_column(heading, overflow="fold", no_wrap=heading == "key")
    for row in rows:
        if values.key in ("", row[0], row[0].partition(".")[0]):
            grid.add_row(*map(Text, row))
    Console(width=max(80, shutil.get_terminal_size().columns), highlight=False).print(grid)


def describe(config: ConfigDict):
    """Describes every key of a configuration.

    Args:
        config: from `segjax.config.default_config`.

    Yields:
        Key, value, range and meaning as text.

    Example:
        >>> list(describe(default_config()))[0]
        ('seed', '0', '[0, inf)', 'seed of parameters, sample order, augmentation and dropout')
    """
    for section, function in {"": TopLevel, **section_functions(config)}.items():
        if section in config and "name" in config[section] and "name" not in checks.keys_of(function):
            yield f"{section}.name", config[section].name, "", f"which {section}"
        for name, setting in checks.keys_of(function).items():
            value = config[section][name] if section else config[name]
            given = setting.key.range
            text = given if isinstance(given, str) else " | ".join(str(each) or "''" for each in given)
            yield f"{section}.{name}".lstrip("."), repr(value), text, setting.key.line
