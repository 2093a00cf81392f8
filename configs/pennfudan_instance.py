"""Panoptic-DeepLab on the pedestrians of Penn-Fudan: 170 images, 423 pedestrians as instance maps.

The set is PennFudanPed.zip with PNGImages and PedMasks (ID_mask.png) as $SEGJAX_DATA/pennfudan/images and masks. There
is no official split, and the usual one is a random 50 of the images for the test; here it is the last 50 by name, all
of them of Penn.

SEGJAX_DATA=/path/to segjax train --config configs/pennfudan_instance.py --workdir runs/pennfudan

AP not yet measured.
"""

from segjax.config import base


def get_config():
    """Images fitted into 256x256, from scratch; weights of ImageNet are the usual start, see init.weights."""
    config = base(source="folder", model="panoptic_deeplab", task="instance")
    config.source.root = "$SEGJAX_DATA/pennfudan"
    config.source.images = "images/{stem}.*"
    config.source.instances = "masks/{stem}_mask.png"
    config.source.classes = ("background", "pedestrian")
    config.source.fractions = {"train": (0.0, 120 / 170), "test": (120 / 170, 1.0)}
    config.preprocess.mean = (123.675, 116.28, 103.53)
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.preprocess.resize = (256, 256)
    config.data.crop = (192, 192)
    config.data.scale = (0.8, 1.6)
    config.data.rotate = 5.0
    config.data.rare = 0.7
    config.data.paste = 0.5
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.saturation = 0.2
    config.model.backbone = "resnet18_half"
    config.model.width = 64
    config.objective.hardest = 0.5
    config.objective.small_area = 1024
    config.objective.nms_kernel = 15
    config.optimizer.learning_rate = 2e-3
    config.ema.decay = 0.99
    config.run.total = 800
    config.run.warmup = 50
    config.eval.batch_size = 5
    config.checkpoint.evaluate = "last"  # there is no third split to choose the best one on
    return config
