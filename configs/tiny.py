"""A tiny U-Net that trains in seconds, for tests and for trying things out.

segjax train --config configs/tiny.py --workdir runs/tiny

Twenty steps teach nothing: the mIoU stays near 0.1.
"""

from segjax.config import default_config


def get_config():
    """Generated scenes of 32x32 pixels, two levels, twenty steps."""
    config = default_config(source="shapes")
    config.source.count = 32
    config.source.size = (32, 32)
    config.data.batch_size = 4
    config.data.crop = (32, 32)
    config.model.widths = (8, 16)
    config.run.total = 20
    config.run.log_every = 5
    config.eval.batch_size = 4
    return config
