"""How much memory an image needs, and how much there is."""

import math
import pathlib
import re
from typing import Any

import jax

# Host memory of an image while it is read and warped, in bytes a pixel and channel: the decoded values, their float32
# planes with a border, and the output; and in bytes a pixel: the positions that are read, and four corners.
PER_VALUE, PER_PIXEL = 16, 64


def free_bytes(device: jax.Device) -> int:
    """Returns the bytes that can still be allocated where a device computes: its own memory, or the host's.

    Args:
        device: an attached device.

    Returns:
        Bytes; a limit of the container counts.

    Example:
        >>> free_bytes(jax.devices()[0]) > 0
        True
    """
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return free_host_bytes()


def free_host_bytes() -> int:
    """Returns the bytes that this process can still allocate on the host; a very large number if nothing tells."""
    free = [1 << 62]
    if found := re.search(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo")):
        free.append(int(found[1]) * 1024)
    limit, used = _text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory.current")
    if limit.strip().isdecimal() and used.strip().isdecimal():
        free.append(int(limit) - int(used))
    return min(free)


def patch_bytes(jaxpr: Any) -> int:
    """Returns the bytes of the largest matrix of patches of a program's convolutions.

    XLA's convolutions on CPUs copy the window of every output pixel into one float32 matrix, which
    `memory_analysis` does not count.

    Args:
        jaxpr: of the program.

    Returns:
        Bytes; 0 without convolutions.

    Example:
        >>> import jax.numpy as jnp
        >>> def convolve(x, kernel):
        ...     return jax.lax.conv(x, kernel, (1, 1), "SAME")
        >>> patch_bytes(jax.make_jaxpr(convolve)(jnp.ones((1, 8, 16, 16)), jnp.ones((4, 8, 3, 3))).jaxpr) // 256
        288
    """
    most = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            dims = equation.params["dimension_numbers"]
            out, kernel = equation.outvars[0].aval.shape, equation.invars[1].aval.shape
            pixels, patch = math.prod(out) // out[dims.out_spec[1]], math.prod(kernel) // kernel[dims.rhs_spec[0]]
            most = max(most, 4 * pixels * patch)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                most = max(most, patch_bytes(inner))
    return most


def _text(path):
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""
