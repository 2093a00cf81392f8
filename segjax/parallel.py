"""The device mesh, the sharding of arrays over it, and functions that read the mesh at trace time.

`train.compilation` traces steps under the mesh; outside a step there is one shard.
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
MAPS = ("image", "label", "instance")  # keys of a batch that hold maps [b, h, w, ...]; all others are [b, ...]


def make_mesh(
    available: Sequence[jax.Device] | None = None,
    *,
    transform: Annotated[str, Key("how steps are compiled: jit over a mesh, or pmap", ("jit", "pmap"))] = "jit",
    devices: Annotated[int, Key("number of devices to use; 0: all", "[0, inf)")] = 0,
    space: Annotated[int, Key("devices that share an image's rows, for images too large for one", "[1, inf)")] = 1,
    fsdp: Annotated[bool, Key("shard parameters, moments and averages over devices between steps")] = False,
) -> Mesh:
    """Arranges devices in a mesh: one axis for the images of a batch, one for the rows of an image.

    `transform` and `fsdp` (see `state_shardings`) do not change the mesh.

    Args:
        found: devices to choose from, which need not be attached; None uses all attached devices.

    Returns:
        A mesh with the axes "data" and "space".

    Raises:
        UserError: there are too few devices, or their number does not divide evenly.

    Example:
        >>> dict(make_mesh(devices=1).shape)
        {'data': 1, 'space': 1}
    """
    if transform == "pmap" and (space != 1 or fsdp):
        raise UserError("parallel.space and parallel.fsdp do not work with pmap: set parallel.transform='jit'.")
    attached = available is None
    available = list(jax.devices() if attached else available)
    if devices > len(available):
        raise UserError(f"parallel.devices={devices}, but there are only {len(available)}: {available[0].device_kind}.")
    if attached and devices and jax.process_count() > 1 and devices != len(available):
        raise UserError("parallel.devices selects devices of a single host; with several hosts leave it at 0.")
    count = devices or len(available)
    if space < 1 or count % space:
        divisors = [n for n in range(1, count + 1) if count % n == 0]
        more = " (XLA_FLAGS=--xla_force_host_platform_device_count=4 simulates four on a CPU)" if count == 1 else ""
        raise UserError(f"parallel.space={space} does not divide {count} devices: use one of {divisors}{more}.")
    axes = {"axis_names": (DATA, SPACE), "axis_types": (AxisType.Auto,) * 2}
    if space == 1:
        return jax.make_mesh((count, 1), devices=available[:count], **axes)
    # Each host reads full images, so devices that share an image must belong to one host.
    chosen = np.array(sorted(available[:count], key=lambda d: (d.process_index, d.id))).reshape(-1, space)
    if any(len({device.process_index for device in row}) > 1 for row in chosen):
        raise UserError(f"parallel.space={space} must divide the number of devices of each host.")
    return Mesh(chosen, **axes)


def check_batch(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises a UserError if the global batch does not divide evenly over the devices."""
    if sizes := _nearest_multiples(batch_size, mesh.shape[DATA]):
        raise UserError(
            f"{key}={batch_size} does not divide over {mesh.shape[DATA]} devices: use {sizes}, or set parallel.devices."
        )


def check_rows(mesh: Mesh, rows: int, context: int) -> None:
    """Raises a UserError if the rows of training crops do not divide evenly over the devices.

    With context pixels around the label, a row of the image and the same row of its label would be on other devices.
    """
    count = mesh.shape[SPACE]
    if count > 1 and context:
        raise UserError(f"parallel.space={count} needs preprocess.context=0, not {context}.")
    if sizes := _nearest_multiples(rows, count):
        raise UserError(f"data.crop: {rows} rows do not divide over parallel.space={count} devices: use {sizes}.")


def _nearest_multiples(number, count):
    """Names the nearest multiples of `count`, as text; "" if the number is a multiple."""
    below = number // count * count
    return "" if below == number else f"{below} or {below + count}" if below else str(count)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a fully replicated array."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, key: str = "", rows: int = 0) -> NamedSharding:
    """Returns the sharding of an array of a batch: images over the mesh's first axis, rows of `MAPS` over its second.

    Rows that do not divide evenly are replicated here and sharded inside the step.
    """
    even = key in MAPS and rows % mesh.shape[SPACE] == 0
    return NamedSharding(mesh, P(DATA, SPACE) if even else P(DATA))


def constrain_batch(mesh: Mesh, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Constrains the batch sharding inside a step, where row counts need not divide evenly (unlike in device_put)."""
    places = {k: NamedSharding(mesh, P(DATA, SPACE) if k in MAPS else P(DATA)) for k in batch}
    return {k: jax.lax.with_sharding_constraint(v, places[k]) for k, v in batch.items()}


def state_shardings(mesh: Mesh, state: Any, fsdp: bool) -> Any:
    """Returns the tree of shardings of a state.

    With `fsdp` (fully sharded data parallel), parameters, moments and averages are sharded over all devices, each along
    its longest axis that divides evenly. Arrays of fewer than 1024 elements stay replicated.
    """
    count = mesh.devices.size

    def of(x):
        axes = [i for i, n in enumerate(x.shape) if n % count == 0]
        if not fsdp or count == 1 or not axes or math.prod(x.shape) < 1024:
            return replicated_sharding(mesh)
        longest = max(axes, key=lambda i: x.shape[i])
        return NamedSharding(mesh, P(*[(DATA, SPACE) if i == longest else None for i in range(longest + 1)]))

    return jax.tree.map(of, state)


def replicate(tree: Any) -> Any:
    """Replicates arrays of one mesh on every device; every host can then read them."""
    place = replicated_sharding(jax.tree.leaves(tree)[0].sharding.mesh)
    return jax.jit(lambda tree: tree, out_shardings=place)(tree)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray], transform: str) -> dict[str, jax.Array]:
    """Places this host's images of a batch on its devices.

    "jit" makes global arrays [images of all hosts, ...]; "pmap" makes arrays [devices of this host, images per device,
    ...].
    """
    if transform == "jit":
        place = {k: batch_sharding(mesh, k, v.shape[1] if v.ndim > 1 else 0) for k, v in batch.items()}
        return {k: jax.make_array_from_process_local_data(place[k], v) for k, v in batch.items()}
    count = len(mesh.local_devices)
    local = NamedSharding(Mesh(np.array(mesh.local_devices), (DATA,)), P(DATA))
    return {k: jax.device_put(v.reshape(count, -1, *v.shape[1:]), local) for k, v in batch.items()}


def as_global_arrays(mesh: Mesh, tree: Any) -> Any:
    """Wraps buffers as global arrays of the mesh, without a copy: results of pmap cover only their own host."""
    place = replicated_sharding(mesh)

    def convert(x):
        if getattr(x.sharding, "mesh", None) == mesh:
            return x
        return jax.make_array_from_single_device_arrays(x.shape, place, [s.data for s in x.addressable_shards])

    return jax.tree.map(convert, tree)


def process_index_and_count() -> tuple[int, int]:
    """Returns the index of this host and the number of hosts."""
    return jax.process_index(), jax.process_count()


def num_row_shards() -> int:
    """Returns the number of devices that the rows of maps are sharded over, at trace time; 1 outside a step.

    Example:
        >>> num_row_shards()
        1
    """
    return jax.sharding.get_abstract_mesh().shape[SPACE] if _in_step() else 1


def replicate_params(tree: Any) -> Any:
    """All-gathers parameters inside a step if FSDP shards them between steps."""
    if not _in_step():
        return tree
    place = NamedSharding(jax.sharding.get_abstract_mesh(), P())
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x, place), tree)


def _in_step():
    """Tells whether a step over a mesh is being traced, outside shard_map and pmap."""
    mesh = jax.sharding.get_abstract_mesh()
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(SPACE) == AxisType.Auto


def platform_dependent(*args: jax.Array, default: Callable, **others: Callable) -> jax.Array:
    """Chooses the formulation for the platform that a program is compiled for.

    `default` is XLA's own operations, used on all platforms if rows are sharded, because XLA can shard only these;
    `others` are formulations for some platforms, such as cpu.
    """
    return default(*args) if num_row_shards() > 1 else lax.platform_dependent(*args, default=default, **others)
