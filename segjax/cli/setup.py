"""What every verb that uses devices shares."""

import logging

import jax
from absl import flags
from ml_collections import config_flags


def define_config(values: flags.FlagValues) -> None:
    """Defines --config and, through it, --config.section.key=value.

    Args:
        values: where flags are defined.
    """
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Configuration file, `path.py` or `path.py:argument`; --config.section.key=value changes a key.",
        flag_values=values,
    )


def define_hosts(values: flags.FlagValues) -> None:
    """Defines the flags of runs on several hosts.

    Args:
        values: where flags are defined.
    """
    flags.DEFINE_bool("distributed", False, "Join the hosts of a TPU slice or cluster job.", flag_values=values)
    flags.DEFINE_string("coordinator", None, "Address:port of host 0, outside such a job.", flag_values=values)
    flags.DEFINE_integer("hosts", None, "Number of hosts, with --coordinator.", flag_values=values)
    flags.DEFINE_integer("host", None, "Index of this host, with --coordinator.", flag_values=values)


def join_hosts(values: flags.FlagValues) -> None:
    """Joins the other hosts, where there are any; comes before anything touches a device.

    Args:
        values: the verb's flags.
    """
    if values.coordinator:
        jax.distributed.initialize(values.coordinator, values.hosts, values.host)
    elif values.distributed:
        jax.distributed.initialize()
    if jax.process_index() > 0:
        logging.getLogger("segjax").setLevel(logging.WARNING)
