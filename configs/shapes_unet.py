"""U-Net on generated scenes: discs, boxes, triangles, stars and rings in front of sky, grass and water.

segjax train --config configs/shapes_unet.py --workdir runs/shapes

mIoU not yet measured.
"""

from segjax.config import default_config


def get_config():
    """Scenes of 128x128 pixels, 8 classes."""
    config = default_config(source="shapes")
    config.preprocess.mean = (116.0, 131.0, 139.0)
    config.preprocess.std = (47.0, 41.0, 58.0)
    config.data.batch_size = 8
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    config.model.widths = (16, 32, 64, 128)
    config.objective.dice = 0.5
    config.optimizer.learning_rate = 3e-3
    config.ema.decay = 0.99
    config.run.total = 600
    config.run.warmup = 50
    return config
