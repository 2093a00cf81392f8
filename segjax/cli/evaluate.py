"""`segjax evaluate`: scores a workdir's checkpoint."""

from typing import Any

import jax
from absl import flags

from segjax import report
from segjax.cli.hosts import define_hosts, join_hosts
from segjax.cli.setup import define_cache, define_config
from segjax.train import compilation
from segjax.train.restore import evaluate_workdir


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    flags.DEFINE_string("workdir", None, "Folder of a run.", flag_values=values)
    flags.DEFINE_string("split", None, "What the source calls it; the configured test split.", flag_values=values)
    define_config(values)
    define_cache(values)
    define_hosts(values)


def main(values: flags.FlagValues) -> dict[str, Any] | None:
    """Runs the verb.

    Args:
        values: its flags.

    Returns:
        The figures; None on all hosts but the first.
    """
    join_hosts(values)
    compilation.switch_cache(values.cache, values.workdir)
    summary = evaluate_workdir(values.workdir, values.split, values.config)
    report.print_table(summary)
    return summary if jax.process_index() == 0 else None
