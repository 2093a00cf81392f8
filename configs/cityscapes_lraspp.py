"""LR-ASPP with MobileNetV3-Large on Cityscapes: 19 classes, 2,975 training and 500 validation images of 1024x2048.

datasets/cityscapes.py tells where to get the data. Run

SEGJAX_DATA=/path/to segjax train --config configs/cityscapes_lraspp.py --workdir runs/cityscapes_lraspp

to train from scratch as in the paper; to start from torchvision's ImageNet weights, add

--config.init.weights=mobilenet_v3_large-8738ca79.pth --config.init.layout=torchvision

Published: the paper (arXiv:1905.02244, section 6.4) trains without ImageNet weights, with a head of 128 channels, at
output stride 16 or 32, and gives no schedule. mmsegmentation (configs/mobilenet_v3: README and
mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py) uses batch 16, crops of 512x1024, zoom 0.5 to 2, mirroring,
colour distortion, SGD with momentum 0.9, 320,000 steps from 0.01 to 1e-4 with polynomial decay 0.9, weight decay 5e-4,
dropout 0.1, output stride 8, batch norm over all devices with momentum 0.9. Validation mIoU 0.6787 from scratch, 0.6954
from ImageNet weights.

Here: mmsegmentation's recipe with the paper's network as in torchvision: output stride 16, one low-level branch of
stride 8 (mmsegmentation has two, of 2 and 4), no dropout. Crops filled by one class are not redrawn, the colours of
every image are distorted, zooms are uniform in their logarithm, weight decay applies only to kernels, and the compute
dtype is bfloat16. Meant for accelerators; mIoU not yet measured.
"""

from segjax.config import default_config

from .datasets import cityscapes


def get_config():
    """Cityscapes with crops of 512x1024, evaluated on full images."""
    config = default_config(source="folder", model="lraspp")
    cityscapes.apply(config)
    config.preprocess.mean = (123.675, 116.28, 103.53)
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.data.batch_size = 16
    config.data.crop = (512, 1024)
    config.data.scale = (0.5, 2.0)
    config.augment.brightness = 0.125
    config.augment.contrast = 0.5
    config.augment.saturation = 0.5
    config.augment.hue = 0.1
    config.model.dtype = "bfloat16"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "polynomial"
    config.optimizer.end_factor = 0.01
    config.optimizer.weight_decay = 5e-4
    config.run.total = 320000
    config.eval.batch_size = 8
    return config
