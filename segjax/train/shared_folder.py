"""Checks that all hosts of a run share the workdir."""

import pathlib
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from segjax.checks import UserError


def check_shared(folder: pathlib.Path) -> None:
    """Raises a UserError if a host does not see a file that host 0 writes to the workdir."""
    number = multihost_utils.broadcast_one_to_all(np.int32(time.time_ns() % 2**31))
    mark = folder / f".shared_{number}"  # a new name, which no file system has cached
    if jax.process_index() == 0:
        mark.touch()
    multihost_utils.sync_global_devices("mark is written")
    seen = multihost_utils.process_allgather(np.array(mark.exists()))
    if jax.process_index() == 0:
        mark.unlink()
    if not seen.all():
        hosts = ", ".join(map(str, np.flatnonzero(~seen)))
        raise UserError(
            f"Hosts {hosts} do not see what host 0 writes to the workdir {folder}: choose a folder on a file system "
            "that all hosts share."
        )
