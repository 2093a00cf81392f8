"""Memory, bandwidth and peak compute of TPUs and GPUs."""

from typing import Any, NamedTuple


class Chip(NamedTuple):
    """The specification of a chip.

    memory: GiB; bandwidth of the memory: GB/s; peak: bfloat16 TFLOP/s, without sparsity; cores: a JAX device is one of
    them or all; clock: GHz, derived from the peak, or None if the compiler reports no cycles.
    """

    name: str
    memory: float
    bandwidth: float
    peak: float
    cores: int = 1
    clock: float | None = None


# Memory, bandwidth and peak: cloud.google.com/tpu/docs, the page of each version under "System architecture"
# (November 2026). Clocks are peak / operations per cycle, with two operations per cell of the matrix units. A core has
# one (v2), two (v3) or four (v4, v5) units of 128x128 cells. For v6e and 7x we assume four of 256x256: the compiler's
# estimate for a product of two 8192x8192 matrices then reaches 0.70 and 0.81 of the peak (v5e: 0.88).
# GPUs: NVIDIA's data sheets for A100, L4, H100 SXM and H200 SXM.
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


def chip_spec(device: Any) -> Chip | None:
    """Looks up the specification of a JAX device, which may be a part of a chip.

    Args:
        device: an attached or only described device. On a TPU v2, v3 or 7x it is one of the chip's two cores; on a v4
            or v5p it is one core or both.

    Returns:
        The specification of the device, with `cores` the number of its cores; None if the chip is unknown.

    Example:
        >>> import jax
        >>> chip_spec(jax.devices("cpu")[0]) is None
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
