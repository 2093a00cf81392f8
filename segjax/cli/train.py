"""`segjax train`: trains and evaluates; resumes automatically from the workdir."""

import functools
import logging
import pathlib
from typing import Any

import jax
from absl import flags

from segjax import report
from segjax.cli.config_flags import define_cache, define_config
from segjax.cli.hosts import define_hosts, join_hosts
from segjax.train import compilation
from segjax.train.loop import train_and_evaluate

log = logging.getLogger("segjax")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    define_config(values)
    flags.DEFINE_string("workdir", None, "Folder for configuration, log, checkpoints and report.", flag_values=values)
    flags.DEFINE_integer("pictures", 8, "Test images in the report.", lower_bound=0, flag_values=values)
    define_cache(values)
    define_hosts(values)


def main(values: flags.FlagValues) -> dict[str, Any] | None:
    """Runs the verb; returns metrics of the best (or last) checkpoint, None on all hosts but the first."""
    join_hosts(values)
    compilation.enable_compilation_cache(values.cache, values.workdir)
    alone = jax.process_count() == 1
    pictures = functools.partial(report.write, values.workdir, pictures_of=values.pictures)
    summary = train_and_evaluate(values.config, values.workdir, report=pictures if alone else None)
    report.print_table(summary)
    if alone:
        log.info("Pictures: %s", pathlib.Path(values.workdir) / "report" / "index.html")
    else:
        log.info("No report: run the same command again on one host to write it.")
    return summary if jax.process_index() == 0 else None
