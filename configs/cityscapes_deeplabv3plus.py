"""DeepLabV3+ with ResNet-101 on Cityscapes: 19 classes, 2,975 training and 500 validation images of 1024x2048.

datasets/cityscapes.py tells where to get the data. Run

SEGJAX_DATA=/path/to segjax train --config configs/cityscapes_deeplabv3plus.py --workdir runs/cityscapes

and, to start from torchvision's ImageNet weights as published, add

--config.init.weights=resnet101-63fe2227.pth --config.init.layout=torchvision

Published: detectron2 (projects/DeepLab, README and configs/Cityscapes-SemanticSegmentation/*.yaml): batch 16, crops of
512x1024, zoom 0.5 to 2, mirroring, output stride 16, multi-grid (1, 2, 4), image pooling over windows of the crop's
size, dropout 0.1, SGD with momentum 0.9, 90,000 steps from 0.01 with polynomial decay 0.9 after 1,000 of warm-up,
weight decay 1e-4, batch norm over all devices with momentum 0.9, OHEM with the hardest 20 % of the pixels. Validation
mIoU 0.781 with this ResNet-101, 0.800 with a stem of three 3x3 convolutions; 0.7879 in tensorflow/models,
official/vision/README.

Here: the same, except that OHEM selects pixels per image (there per batch), zooms are uniform in their logarithm,
weight decay applies only to kernels, and the compute dtype is bfloat16. Meant for accelerators; mIoU not yet measured.
"""

from segjax.config import default_config

from .datasets import cityscapes


def get_config():
    """Cityscapes with crops of 512x1024, evaluated on full images."""
    config = default_config(source="folder", model="deeplabv3plus")
    cityscapes.apply(config)
    config.preprocess.mean = (123.675, 116.28, 103.53)
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.data.batch_size = 16
    config.data.crop = (512, 1024)
    config.data.scale = (0.5, 2.0)
    config.model.backbone = "resnet101"
    config.model.multi_grid = (1, 2, 4)
    config.model.separable = False
    config.model.pooling = (512, 1024)
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.objective.ohem_fraction = 0.2
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "polynomial"
    config.optimizer.weight_decay = 1e-4
    config.run.total = 90000
    config.run.warmup = 1000
    config.eval.batch_size = 8
    return config
