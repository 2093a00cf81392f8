"""DeepLabV3 with ResNet-50 on ADE20K: 150 classes, 20,210 training and 2,000 validation images of many sizes.

datasets/ade20k.py tells where to get the data. Run

SEGJAX_DATA=/path/to segjax train --config configs/ade20k_deeplabv3.py --workdir runs/ade20k

and, to start from torchvision's ImageNet weights as published, add

--config.init.weights=resnet50-0676ba61.pth --config.init.layout=torchvision

Published: mmsegmentation (configs/deeplabv3/README, R-50-D8 with 160,000 steps): batch 16, images scaled to a shorter
side of 512, crops of 512, zoom 0.5 to 2, mirroring, colour distortion, output stride 8, ASPP with 512 channels,
dropout 0.1, an auxiliary head with loss weight 0.4, SGD with momentum 0.9, learning rate 0.01 to 1e-4 with polynomial
decay 0.9, weight decay 5e-4, batch norm over all devices with momentum 0.9. Validation mIoU 0.4266 at one scale.

Here: the same, except that images keep their size, crops filled by one class are not redrawn, the colours of every
image are distorted, zooms are uniform in their logarithm, weight decay applies only to kernels, and the network is
torchvision's ResNet in bfloat16, with one 7x7 convolution as its stem instead of three 3x3 ones.
Meant for accelerators; mIoU not yet measured.
"""

from segjax.config import default_config

from .datasets import ade20k


def get_config():
    """ADE20K with crops of 512x512."""
    config = default_config(source="folder", model="deeplabv3")
    ade20k.apply(config)
    config.preprocess.mean = (123.675, 116.28, 103.53)
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.data.batch_size = 16
    config.data.crop = (512, 512)
    config.data.scale = (0.5, 2.0)
    config.augment.brightness = 0.125
    config.augment.contrast = 0.5
    config.augment.saturation = 0.5
    config.augment.hue = 0.1
    config.model.output_stride = 8
    config.model.width = 512
    config.model.dropout = 0.1
    config.model.aux = "c4"
    config.model.dtype = "bfloat16"
    config.objective.aux = 0.4
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "polynomial"
    config.optimizer.end_factor = 0.01
    config.optimizer.weight_decay = 5e-4
    config.run.total = 160000
    config.eval.batch_size = 8
    config.eval.buckets = 8
    return config
