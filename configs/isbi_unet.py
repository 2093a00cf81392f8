"""U-Net on the ISBI 2012 membranes: 30 electron microscopy slices of 512x512, 24 for training and 6 for testing.

Neighbouring slices are alike, so the test slices are the last six, as one block. Run

SEGJAX_DATA=/path/to segjax train --config configs/isbi_unet.py --workdir runs/isbi

Dice 0.805 (membrane) and 0.952 (interior), mean 0.878, in 13 min 38 s on 2 CPU cores (2026-11-23).
"""

from segjax.config import default_config


def get_config():
    """Membranes and interiors, with the flips, rotations and elastic deformation of the U-Net paper."""
    config = default_config(source="folder")
    config.source.root = "$SEGJAX_DATA/isbi2012_membrane"
    config.source.images = "train/image/{stem}.png"
    config.source.masks = "train/label/{stem}.png"
    config.source.classes = ("membrane", "interior")
    config.source.ids = {"0": "membrane", "255": "interior"}
    config.source.fractions = {"train": (0.0, 0.8), "test": (0.8, 1.0)}
    config.preprocess.mean = (126.0,)
    config.preprocess.std = (44.0,)
    config.preprocess.outside = "mirror"
    config.data.batch_size = 4
    config.data.crop = (256, 256)
    config.data.scale = (0.8, 1.25)
    config.data.rotate = 180.0
    config.data.flip_vertical = True
    config.data.elastic = 10.0
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    config.augment.noise = 0.05
    config.model.widths = (16, 32, 64, 128)
    config.objective.dice = 1.0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "polynomial"
    config.ema.decay = 0.99
    config.run.total = 800
    config.run.warmup = 50
    config.eval.batch_size = 2
    return config
