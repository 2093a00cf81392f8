"""U-Net on CamVid road scenes at half size: 11 classes, 367 training and 233 test images of 360x480.

datasets/camvid.py tells where to get the data. Run

SEGJAX_DATA=/path/to segjax train --config configs/camvid_unet.py --workdir runs/camvid

Test mIoU 0.461 over 11 classes, in 14 min 40 s on 2 CPU cores (2026-11-23).
"""

from segjax.config import default_config

from .datasets import camvid


def get_config():
    """CamVid at 180x240."""
    config = default_config(source="folder")
    camvid.apply(config)
    config.preprocess.mean = (103.0, 106.0, 108.0)
    config.preprocess.std = (77.0, 79.0, 77.0)
    config.preprocess.resize = 0.5
    config.data.crop = (176, 224)
    config.data.scale = (0.8, 1.4)
    config.data.rare_class_fraction = 0.3
    config.data.batch_size = 4
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    config.augment.saturation = 0.2
    # Square roots of the median-frequency weights that `segjax inspect` prints: unchanged, they hurt the road too much.
    config.objective.class_weights = (0.5, 0.45, 2.2, 0.4, 1.0, 0.65, 2.0, 1.4, 0.9, 2.5, 3.0)
    config.objective.dice = 0.5
    config.objective.dice_over = "batch"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "polynomial"
    config.model.widths = (16, 32, 64, 128, 256)
    config.run.total = 1450
    config.run.warmup = 100
    config.ema.decay = 0.99
    config.eval.batch_size = 8
    return config
