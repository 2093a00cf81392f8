"""Panoptic-DeepLab on the pedestrians of Penn-Fudan: 170 images with instance maps of 423 pedestrians.

Unpack PennFudanPed.zip; PNGImages and PedMasks (ID_mask.png) become $SEGJAX_DATA/pennfudan/images and masks. There is
no official split; usually 50 random images are the test set. Here they are the last 50 by name, all from Penn.

SEGJAX_DATA=/path/to segjax train --config configs/pennfudan_instance.py --workdir runs/pennfudan

AP not yet measured.
"""

from segjax.config import default_config


def get_config():
    """Images fitted into 256x256, from scratch; the usual start is from ImageNet weights, see init.weights."""
    config = default_config(source="folder", model="panoptic_deeplab", task="instance")
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
    config.data.rare_class_fraction = 0.7
    config.data.copy_paste_fraction = 0.5
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.saturation = 0.2
    config.model.backbone = "resnet18_half"
    config.model.width = 64
    config.objective.ohem_fraction = 0.5
    config.objective.small_area = 1024
    config.objective.nms_kernel = 15
    config.optimizer.learning_rate = 2e-3
    config.ema.decay = 0.99
    config.run.total = 800
    config.run.warmup = 50
    config.eval.batch_size = 5
    config.checkpoint.evaluate = "last"  # there is no validation split to select the best checkpoint
    return config
