"""The paper's U-Net in bfloat16 on noise, a benchmark for compilers and devices: there is nothing to learn.

segjax compile --config configs/bench_unet.py --topology=v5e:2x2 --what=train
segjax benchmark --config configs/bench_unet.py

Compiler estimate (TPU v5e:2x2, libtpu 0.0.42.1, jax 0.10.2, 2026-11-27): 150.6 million cycles, 100 ms per step, 80
images/s per chip. mIoU is meaningless on noise.
"""

from segjax.config import default_config


def get_config():
    """19 classes, 512x512 pixels, eight images per chip on four chips."""
    config = default_config(source="noise")
    config.source.classes = 19
    config.source.size = (512, 512)
    config.data.batch_size = 32
    config.data.crop = (512, 512)
    config.data.flip_horizontal = False
    config.eval.batch_size = 32
    config.model.widths = (64, 128, 256, 512, 1024)
    config.model.dtype = "bfloat16"
    config.model.pair_columns = True
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "constant"
    config.run.total = 100
    return config
