"""Panoptic-DeepLab with ResNet-50 on COCO panoptic: 80 thing and 53 stuff classes, 118,287 training images.

Unpack train2017.zip, val2017.zip and panoptic_annotations_trainval2017.zip into $SEGJAX_DATA/coco, and also the two
PNG archives inside the last one. Run

SEGJAX_DATA=/path/to segjax train --config configs/coco_panoptic_deeplab.py --workdir runs/coco

and, to start from torchvision's ImageNet weights as published, add

--config.init.weights=resnet50-0676ba61.pth --config.init.layout=torchvision

Published: deeplab2 (configs/coco/panoptic_deeplab/resnet50_os16.textproto and g3doc/projects/panoptic_deeplab.md):
batch 64, images fitted into crops of 641x641, zoom 0.5 to 1.5, mirroring, output stride 16, Adam for 200,000 steps from
5e-4 with polynomial decay 0.9 after 2,000 of warm-up, losses as for Cityscapes, centres above 0.1 that are the maximum
of 41x41 pixels, stuff of 4,096 pixels or more, batch norm momentum 0.99, AutoAugment. Validation PQ 0.351.

Here: the same, except that there is no AutoAugment, batch norm has epsilon 1e-5 instead of 1e-3, zooms are uniform in
their logarithm and the compute dtype is bfloat16. Meant for accelerators; PQ not yet measured.
"""

from segjax.config import default_config


def get_config():
    """COCO with crops of 641x641, evaluated at native size."""
    config = default_config(source="coco_panoptic", model="panoptic_deeplab", task="panoptic")
    config.splits.train, config.splits.test = "train2017", "val2017"
    config.source.root = "$SEGJAX_DATA/coco"
    config.preprocess.mean = (123.675, 116.28, 103.53)
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.preprocess.resize = (641, 641)
    config.data.batch_size = 64
    config.data.crop = (641, 641)
    config.data.scale = (0.5, 1.5)
    config.model.backbone = "resnet50"
    config.model.output_stride = 16
    config.model.momentum = 0.99
    config.model.dtype = "bfloat16"
    config.objective.sigma = 8.0
    config.objective.nms_kernel = 41
    config.task.stuff_area = 4096
    config.task.divisor = 256
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "polynomial"
    config.optimizer.weight_decay = 0.0
    config.run.total = 200000
    config.run.warmup = 2000
    config.eval.batch_size = 16
    config.eval.buckets = 4
    return config
