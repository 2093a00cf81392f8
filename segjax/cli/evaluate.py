"""`segjax evaluate`: evaluates a workdir's checkpoint."""

from typing import Any

import jax
from absl import flags

from segjax import report
from segjax.cli.config_flags import define_cache, define_config
from segjax.cli.hosts import define_hosts, join_hosts
from segjax.train import compilation
from segjax.train.restore import evaluate_workdir


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    flags.DEFINE_string("workdir", None, "Folder of a run.", flag_values=values)
    flags.DEFINE_string("split", None, "Name of a split in the source; default: the test split.", flag_values=values)
    define_config(values)
    define_cache(values)
    define_hosts(values)


def main(values: flags.FlagValues) -> dict[str, Any] | None:
    """Runs the verb; returns the metrics, None on all hosts but the first."""
    join_hosts(values)
    compilation.enable_compilation_cache(values.cache, values.workdir)
    summary = evaluate_workdir(values.workdir, values.split, values.config)
    report.print_table(summary)
    return summary if jax.process_index() == 0 else None
