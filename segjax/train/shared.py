"""Folders that the hosts of a run share."""

import pathlib
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from segjax.checks import UserError


def check_shared(folder: pathlib.Path) -> None:
    """Raises a UserError where a host does not see what host 0 writes to a workdir."""
    number = multihost_utils.broadcast_one_to_all(np.int32(time.time_ns() % 2**31))
    mark = folder / f".shared_{number}"  # a new name, of which no file system has an old answer
    if jax.process_index() == 0:
        mark.touch()
    multihost_utils.sync_global_devices("mark is written")
    seen = multihost_utils.process_allgather(np.array(mark.exists()))
    if jax.process_index() == 0:
        mark.unlink()
    if not seen.all():
        hosts = ", ".join(map(str, np.flatnonzero(~seen)))
        raise UserError(
            f"Hosts {hosts} do not see what host 0 writes to the workdir {folder}: choose a folder of a file system "
            "that all hosts share."
        )
