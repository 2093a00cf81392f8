"""`segjax train`: trains and evaluates; resumes from the workdir by itself."""

from typing import Any

from absl import flags

from segjax import report
from segjax.cli.setup import define_config, define_hosts, join_hosts
from segjax.train.loop import train_and_evaluate


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    define_hosts(values)
    define_config(values)
    flags.DEFINE_string("workdir", None, "Folder for configuration, log, checkpoints and report.", flag_values=values)
    flags.DEFINE_integer("pictures", 8, "Test images in the report.", flag_values=values)
    flags.mark_flags_as_required(["config", "workdir"], values)


def main(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the verb.

    Args:
        values: its flags.

    Returns:
        Figures of the best (or last) checkpoint.
    """
    join_hosts(values)
    summary = train_and_evaluate(values.config, values.workdir)
    report.write(values.workdir, summary, values.pictures)
    return summary
