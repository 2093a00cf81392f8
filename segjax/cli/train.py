"""`segjax train`: trains and evaluates; resumes from the workdir by itself."""

import functools
import logging
import pathlib
from typing import Any

import jax
from absl import flags

from segjax import report
from segjax.cli.hosts import define_hosts, join_hosts
from segjax.cli.setup import define_cache, define_config
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
    """Runs the verb; returns figures of the best (or last) checkpoint, None on all hosts but the first."""
    join_hosts(values)
    compilation.switch_cache(values.cache, values.workdir)
    alone = jax.process_count() == 1
    pictures = functools.partial(report.write, values.workdir, pictures_of=values.pictures)
    summary = train_and_evaluate(values.config, values.workdir, report=pictures if alone else None)
    report.print_table(summary)
    if alone:
        log.info("Pictures: %s", pathlib.Path(values.workdir) / "report" / "index.html")
    else:
        log.info("No report: it is written where the same command runs again on one host.")
    return summary if jax.process_index() == 0 else None
