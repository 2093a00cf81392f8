"""U-Net on real images shipped with a package: grey and white matter in slices of the MNI152 T1 template.

The template is one brain averaged over 152 people: a demo that runs anywhere, not a benchmark. Held-out slices are
contiguous blocks, away from the training slices; grey levels alone almost separate the tissues.

segjax train --config configs/brain_unet.py --workdir runs/brain

Dice 0.944 (grey) and 0.936 (white matter) on the held-out slices, in 2 min 42 s on 2 CPU cores (2026-11-25).
"""

from segjax.config import default_config


def get_config():
    """Axial slices of 192x160 pixels, 83 for training and 24 for testing."""
    config = default_config(source="brain")
    config.preprocess.mean = (75.0,)
    config.preprocess.std = (90.0,)
    config.data.batch_size = 8
    config.data.crop = (128, 128)
    config.data.scale = (0.8, 1.25)
    config.data.rotate = 15.0
    config.augment.brightness = 0.05
    config.augment.contrast = 0.1
    config.model.widths = (16, 32, 64)
    config.objective.dice = 1.0
    config.optimizer.learning_rate = 3e-3
    config.ema.decay = 0.98
    config.run.total = 400
    config.run.warmup = 20
    config.run.eval_every = 100
    config.checkpoint.evaluate = "last"  # there is no validation split to select the best checkpoint
    return config
