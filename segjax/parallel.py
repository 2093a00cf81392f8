"""Devices as a mesh, the placement of arrays on it, and what a step asks about it while it is traced.

`train.compilation` traces steps under the axes of the mesh; everywhere else there is one shard.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from segjax.checks import Key, UserError

DATA, SPACE = "data", "space"  # axes of the mesh: images of a batch, rows of an image
Mode = str  # "jit" or "pmap"
MAPS = ("image", "label", "instance")  # of a batch: arrays [b, h, w, ...], the others are [b, ...]


def make_mesh(
    found: Sequence[jax.Device] | None = None,
    *,
    mode: Annotated[Mode, Key("how steps are compiled: jit over a mesh, or pmap", ("jit", "pmap"))] = "jit",
    devices: Annotated[int, Key("how many devices to use; 0: all", "[0, inf)")] = 0,
    space: Annotated[int, Key("devices that share the rows of an image, for images too large for one", "[1, inf)")] = 1,
    fsdp: Annotated[bool, Key("divide parameters, moments and averages over the devices between steps")] = False,
) -> Mesh:
    """Lays the devices out: images of a batch along one axis, rows of an image along the other.

    `mode` and `fsdp` (see `state_sharding`) do not change the mesh.

    Args:
        found: devices to choose from, which need not be attached; None is all that are.

    Returns:
        A mesh with the axes "data" and "space".

    Raises:
        UserError: more devices than there are, or a division that does not come out even.

    Example:
        >>> dict(make_mesh(devices=1).shape)
        {'data': 1, 'space': 1}
    """
    if mode == "pmap" and (space != 1 or fsdp):
        raise UserError("parallel.space and parallel.fsdp divide what pmap holds whole: set parallel.mode='jit'.")
    attached = found is None
    found = list(jax.devices() if attached else found)
    if devices > len(found):
        raise UserError(f"parallel.devices={devices}, but there are {len(found)}: {found[0].device_kind}.")
    if attached and devices and jax.process_count() > 1 and devices != len(found):
        raise UserError("parallel.devices picks devices of one host; with several hosts leave it at 0.")
    count = devices or len(found)
    if space < 1 or count % space:
        divisors = [n for n in range(1, count + 1) if count % n == 0]
        more = " (XLA_FLAGS=--xla_force_host_platform_device_count=4 makes four of a CPU)" if count == 1 else ""
        raise UserError(f"parallel.space={space} cannot share {count} devices: use one of {divisors}{more}.")
    axes = {"axis_names": (DATA, SPACE), "axis_types": (AxisType.Auto,) * 2}
    if space == 1:
        return jax.make_mesh((count, 1), devices=found[:count], **axes)
    # Each host reads whole images: devices that share one must be of one host, whatever the network between them.
    chosen = np.array(sorted(found[:count], key=lambda d: (d.process_index, d.id))).reshape(-1, space)
    if any(len({device.process_index for device in row}) > 1 for row in chosen):
        raise UserError(f"parallel.space={space} must divide the devices of each host, which reads whole images.")
    return Mesh(chosen, **axes)


def check_batch(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises a UserError where the images of a step, over all hosts, cannot be divided evenly over the devices."""
    if sizes := _nearest(batch_size, mesh.shape[DATA]):
        raise UserError(
            f"{key}={batch_size} cannot be divided over {mesh.shape[DATA]} devices: use {sizes}, or set "
            "parallel.devices."
        )


def check_rows(mesh: Mesh, rows: int, context: int) -> None:
    """Raises a UserError where the rows of training crops cannot be divided evenly over the devices.

    With a context of pixels around the label, rows of the image and of its label would lie on different devices.
    """
    count = mesh.shape[SPACE]
    if count > 1 and context:
        raise UserError(f"parallel.space={count} divides images without preprocess.context only, not {context}.")
    if sizes := _nearest(rows, count):
        raise UserError(f"data.crop: {rows} rows cannot be divided over parallel.space={count} devices: use {sizes}.")


def _nearest(number, count):
    """The nearest numbers that `count` divides, in words; "" where it divides this one."""
    below = number // count * count
    return "" if below == number else f"{below} or {below + count}" if below else str(count)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def batched(mesh: Mesh, key: str = "", rows: int = 0) -> NamedSharding:
    """The sharding of an array of a batch: images along the mesh's first axis, rows of `MAPS` along its second.

    Rows that do not come out even are held whole, and divided within the step.
    """
    even = key in MAPS and rows % mesh.shape[SPACE] == 0
    return NamedSharding(mesh, P(DATA, SPACE) if even else P(DATA))


def divided(mesh: Mesh, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Says within a step how its batch is divided; rows that do not come out even too, as nowhere else is possible."""
    places = {k: NamedSharding(mesh, P(DATA, SPACE) if k in MAPS else P(DATA)) for k in batch}
    return {k: jax.lax.with_sharding_constraint(v, places[k]) for k, v in batch.items()}


def state_sharding(mesh: Mesh, state: Any, fsdp: bool) -> Any:
    """Where the arrays of a state lie, as a tree of shardings.

    With `fsdp` ("fully sharded data parallel") parameters, moments and averages are divided over all devices, each
    along its longest axis that comes out even. Arrays of less than 1024 elements stay whole.
    """
    count = mesh.devices.size

    def of(x):
        axes = [i for i, n in enumerate(x.shape) if n % count == 0]
        if not fsdp or count == 1 or not axes or math.prod(x.shape) < 1024:
            return replicated(mesh)
        longest = max(axes, key=lambda i: x.shape[i])
        return NamedSharding(mesh, P(*[(DATA, SPACE) if i == longest else None for i in range(longest + 1)]))

    return jax.tree.map(of, state)


def gathered(tree: Any) -> Any:
    """Arrays of one mesh, whole on every device, so that every host can read them."""
    place = replicated(jax.tree.leaves(tree)[0].sharding.mesh)
    return jax.jit(lambda tree: tree, out_shardings=place)(tree)


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
        place = {k: batched(mesh, k, v.shape[1] if v.ndim > 1 else 0) for k, v in batch.items()}
        return {k: jax.make_array_from_process_local_data(place[k], v) for k, v in batch.items()}
    count = len(mesh.local_devices)
    local = NamedSharding(Mesh(np.array(mesh.local_devices), (DATA,)), P(DATA))
    return {k: jax.device_put(v.reshape(count, -1, *v.shape[1:]), local) for k, v in batch.items()}


def as_global(mesh: Mesh, tree: Any) -> Any:
    """The same buffers as arrays over the mesh: pmap's results, which every device holds, know their own host only."""
    place = replicated(mesh)

    def convert(x):
        if getattr(x.sharding, "mesh", None) == mesh:
            return x
        return jax.make_array_from_single_device_arrays(x.shape, place, [s.data for s in x.addressable_shards])

    return jax.tree.map(convert, tree)


def hosts() -> tuple[int, int]:
    """Index of this host, number of hosts."""
    return jax.process_index(), jax.process_count()


def shards() -> int:
    """Number of devices that the rows of maps are divided over where this is called, at trace time; 1 outside of steps.

    Example:
        >>> shards()
        1
    """
    return jax.sharding.get_abstract_mesh().shape[SPACE] if _in_step() else 1


def whole(tree: Any) -> Any:
    """Parameters as a step uses them: whole on every device, also where they are divided between steps."""
    if not _in_step():
        return tree
    place = NamedSharding(jax.sharding.get_abstract_mesh(), P())
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x, place), tree)


def _in_step():
    """Whether a step over a mesh is traced here, and no part of it that one device runs, nor pmap."""
    mesh = jax.sharding.get_abstract_mesh()
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(SPACE) == AxisType.Auto


def by_platform(*args: jax.Array, default: Callable, **others: Callable) -> jax.Array:
    """Chooses the formulation for the platform that a program is compiled for.

    Args:
        *args: arrays.
        default: XLA's own operations; on all platforms where rows are divided, for it is these that XLA can divide.
        **others: formulations for some platforms, such as cpu.

    Returns:
        What the chosen one makes of the arrays.
    """
    return default(*args) if shards() > 1 else lax.platform_dependent(*args, default=default, **others)
