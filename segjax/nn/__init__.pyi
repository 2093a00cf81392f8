from . import aspp as aspp
from . import backbones as backbones
from . import batch_norm as batch_norm
from . import kernels as kernels
from . import layers as layers
from . import resize as resize
