"""Operations with a fast formulation per platform; within `disabled()` they are plain `lax` operations.

Layers call the functions here. The formulation is chosen when a program is traced. Exports and converters need plain
operations, without custom gradients, optimization barriers or platform-dependent branches.
"""

from segjax.nn.kernels.averaging import mean_pool
from segjax.nn.kernels.conv import convolution
from segjax.nn.kernels.formulations import disabled, enabled
from segjax.nn.kernels.resampling import resample
from segjax.nn.kernels.scaling import double, max_pool

__all__ = ["convolution", "disabled", "double", "enabled", "max_pool", "mean_pool", "resample"]
