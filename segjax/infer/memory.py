"""How much memory an image needs, and how much there is."""

import pathlib
import re

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


def _text(path):
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""
