"""Devices as a mesh, and the placement of arrays on it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from segjax.config import check_choice
from segjax.spec import UserError

AXIS = "data"
Mode = str  # "jit" or "pmap"


def make_mesh(found: Sequence[jax.Device] | None = None, *, mode: Mode = "jit", devices: int = 0) -> Mesh:
    """Lays the devices out along the batch axis.

    Args:
        found: what to lay out, perhaps devices that are only described; None is the devices that are there.
        mode: how steps are compiled; both modes use the same mesh.
        devices: how many devices to use; 0 is all of them.

    Returns:
        A mesh with the axis "data".

    Raises:
        UserError: an unknown mode, or more devices than there are.

    Example:
        >>> make_mesh(devices=1).shape["data"]
        1
    """
    check_choice("parallel.mode", mode, ("jit", "pmap"))
    found = list(jax.devices() if found is None else found)
    if devices > len(found):
        raise UserError(f"parallel.devices={devices}, but there are {len(found)}: {found[0].device_kind}.")
    if devices and jax.process_count() > 1 and devices != len(found):
        raise UserError("parallel.devices picks devices of one host; with several hosts leave it at 0.")
    count = devices or len(found)
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=found[:count])


def check_batch(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises a UserError where a batch cannot be divided evenly over the devices.

    Args:
        mesh: the devices.
        batch_size: images a step, over all hosts.
        key: configuration key of the batch size, for the message.

    Raises:
        UserError: not divisible; names the nearest sizes that are.
    """
    count = mesh.devices.size
    if batch_size % count:
        below, above = batch_size // count * count, (batch_size // count + 1) * count
        sizes = f"{below} or {above}" if below else str(above)
        raise UserError(
            f"{key}={batch_size} cannot be divided over {count} devices: use {sizes}, or set parallel.devices."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def batched(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is divided over the devices."""
    return NamedSharding(mesh, P(AXIS))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray], mode: Mode) -> dict[str, jax.Array]:
    """Places this host's rows of a batch on its devices.

    Args:
        mesh: the devices.
        batch: arrays [rows of this host, ...].
        mode: "jit" makes global arrays [rows of all hosts, ...]; "pmap" arrays
            [devices of this host, rows of a device, ...].

    Returns:
        The arrays on the devices.
    """
    if mode == "jit":
        return {k: jax.make_array_from_process_local_data(batched(mesh), v) for k, v in batch.items()}
    count = len(mesh.local_devices)
    local = Mesh(np.array(mesh.local_devices), (AXIS,))
    return {k: jax.device_put(v.reshape(count, -1, *v.shape[1:]), batched(local)) for k, v in batch.items()}


def as_global(mesh: Mesh, tree: Any) -> Any:
    """Makes global arrays of what every device holds whole; pmap's results know their own host only.

    Args:
        mesh: the devices.
        tree: arrays that every device of the mesh holds.

    Returns:
        The same buffers as arrays over the whole mesh.
    """
    place = replicated(mesh)

    def convert(x):
        if x.sharding == place:
            return x
        return jax.make_array_from_single_device_arrays(x.shape, place, [s.data for s in x.addressable_shards])

    return jax.tree.map(convert, tree)
