"""Panoptic-DeepLab with ResNet-50 on Cityscapes: 11 stuff and 8 thing classes, images of 1024x2048.

datasets/cityscapes.py tells where to get the data. Run

SEGJAX_DATA=/path/to segjax train --config configs/cityscapes_panoptic_deeplab.py --workdir runs/cityscapes

and, to start from torchvision's ImageNet weights as published, add

--config.init.weights=resnet50-0676ba61.pth --config.init.layout=torchvision

Published: deeplab2 (configs/cityscapes/panoptic_deeplab/resnet50_os32_merge_with_pure_tf_func.textproto and
g3doc/projects/panoptic_deeplab.md): batch 32, crops of 1025x2049, zoom 0.5 to 2, mirroring, output stride 32, Adam
for 60,000 steps from 2.5e-4 with polynomial decay 0.9, OHEM with the hardest 20 % of the pixels, loss weights 3 (small
objects, under 4,096 pixels), 200 (centres) and 0.01 (offsets), sigma 8, centres above 0.1 that are the maximum of 13x13
pixels, stuff of 2,048 pixels or more, batch norm momentum 0.99 (batch 32 is from the file of resnet50_beta_os32; this
one has 8). Validation PQ 0.598, mIoU 0.760; AP 0.300 by deeplab2's own code.

Here: the same, except that batch norm has epsilon 1e-5 instead of 1e-3, zooms are uniform in their logarithm and the
compute dtype is bfloat16. Meant for accelerators; PQ not yet measured.
"""

from segjax.config import default_config

from .datasets import cityscapes


def get_config():
    """Cityscapes, trained and evaluated on full images."""
    config = default_config(source="folder", model="panoptic_deeplab", task="panoptic")
    cityscapes.apply(config, instances=True)
    config.preprocess.mean = (123.675, 116.28, 103.53)
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.data.batch_size = 32
    config.data.crop = (1025, 2049)
    config.data.scale = (0.5, 2.0)
    config.model.backbone = "resnet50"
    config.model.output_stride = 32
    config.model.pooling = (1025, 2049)
    config.model.momentum = 0.99
    config.model.dtype = "bfloat16"
    config.objective.nms_kernel = 13
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2.5e-4
    config.optimizer.schedule = "polynomial"
    config.optimizer.weight_decay = 0.0
    config.run.total = 60000
    config.eval.batch_size = 8
    return config
