"""What the accelerators can do: the one table that estimates are measured against."""

from typing import Any, NamedTuple


class Chip(NamedTuple):
    """Facts about a chip.

    memory: GiB; bandwidth of it: GB/s; peak: bfloat16 TFLOP/s, without sparsity; cores: of which a device of JAX may
    be one, or all; clock: GHz at which that peak is reached, derived from it, None where no compiler gives cycles.
    """

    name: str
    memory: float
    bandwidth: float
    peak: float
    cores: int = 1
    clock: float | None = None


# Memory, bandwidth and peak: cloud.google.com/tpu/docs, the page of each version under "System architecture"
# (November 2026). Clocks are peak / operations a cycle: two for each cell of the matrix units, which are one (v2), two
# (v3) and four (v4, v5) of 128x128 cells a core; for v6e and 7x, four of 256x256 a core, the rate that the compiler's
# estimate for a product of two 8192x8192 matrices comes near to (0.70 and 0.81 of it; v5e 0.88).
# GPUs: NVIDIA's data sheets of A100, L4, H100 SXM and H200 SXM.
CHIPS = {
    "TPU v2": Chip("v2", 16, 700, 46, 2, 0.70),
    "TPU v3": Chip("v3", 32, 900, 123, 2, 0.94),
    "TPU v4": Chip("v4", 32, 1228, 275, 2, 1.05),
    "TPU v5 lite": Chip("v5e", 16, 819, 197, 1, 1.50),
    "TPU v5": Chip("v5p", 95, 2765, 459, 2, 1.75),
    "TPU v6 lite": Chip("v6e", 32, 1640, 918, 1, 1.75),
    "TPU7x": Chip("tpu7x", 192, 7380, 2307, 2, 2.20),
    "NVIDIA A100-SXM4-40GB": Chip("A100 40GB", 40, 1555, 312),
    "NVIDIA A100-SXM4-80GB": Chip("A100 80GB", 80, 2039, 312),
    "NVIDIA L4": Chip("L4", 24, 300, 121),
    "NVIDIA H100 80GB HBM3": Chip("H100 SXM", 80, 3350, 989),
    "NVIDIA H200": Chip("H200 SXM", 141, 4800, 989),
}


def of(device: Any) -> Chip | None:
    """The share of its chip that a device of JAX is.

    Args:
        device: one that is there, or is only described. A device of a TPU v2, v3 or 7x is one of the chip's two cores;
            of a v4 or v5p it is one core or both.

    Returns:
        Facts about the device, `cores` those that it joins; None for what the table does not know.

    Example:
        >>> import jax
        >>> of(jax.devices("cpu")[0]) is None
        True
    """
    chip = CHIPS.get(device.device_kind)
    if chip is None:
        return None
    cores = getattr(device, "num_cores", None) or chip.cores
    share = cores / chip.cores
    return chip._replace(
        memory=chip.memory * share, bandwidth=chip.bandwidth * share, peak=chip.peak * share, cores=cores
    )
