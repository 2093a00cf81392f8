"""The door to the formulations that are faster on one platform; `disabled` leaves plain `lax` operations.

Each function here is one operation that a layer calls. Which formulation it takes is decided while a program is
traced. Exports and converters need plain operations: without custom gradients, barriers and choices by platform.
"""

from segjax.nn.kernels.averaging import mean_pool
from segjax.nn.kernels.conv import convolution
from segjax.nn.kernels.formulations import disabled, enabled
from segjax.nn.kernels.resampling import resample
from segjax.nn.kernels.scaling import double, max_pool

__all__ = ["convolution", "disabled", "double", "enabled", "max_pool", "mean_pool", "resample"]
