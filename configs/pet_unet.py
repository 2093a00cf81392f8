"""U-Net on Oxford-IIIT Pet from TensorFlow Datasets: pet, background and the border between them.

datasets/pet.py tells where to get the data. Photos are fitted into 256x256, and evaluated at native size.

segjax train --config configs/pet_unet.py --workdir runs/pet

Meant for one accelerator with 16 GB; mIoU not yet measured.
"""

from segjax.config import default_config

from .datasets import pet


def get_config():
    """Pets at 256x256."""
    config = default_config(source="tfds")
    pet.apply(config)
    config.preprocess.mean = (124.0, 116.0, 104.0)
    config.preprocess.std = (58.0, 57.0, 57.0)
    config.preprocess.resize = (256, 256)
    config.data.batch_size = 64
    config.data.crop = (256, 256)
    config.data.scale = (0.75, 1.5)
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    config.augment.saturation = 0.2
    config.augment.hue = 0.02
    config.model.widths = (32, 64, 128, 256, 512)
    config.model.dtype = "bfloat16"
    config.objective.dice = 0.5
    config.optimizer.learning_rate = 2e-3
    config.ema.decay = 0.998
    config.run.unit = "epochs"
    config.run.total = 60
    config.run.warmup = 2
    config.eval.batch_size = 64
    config.eval.buckets = 4
    return config
