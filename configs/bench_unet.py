"""The paper's U-Net in bfloat16 on noise, as a load for compilers and devices: nothing to be learnt.

segjax compile --config configs/bench_unet.py --topology=v5e:2x2 --what=train
segjax benchmark --config configs/bench_unet.py

Estimated by the compiler, TPU v5e:2x2, libtpu 0.0.42.1, jax 0.10.2, 2026-11-25: 150.5 million cycles, 100 ms a step, 80
images/s a chip. On noise an mIoU means nothing.
"""

from segjax.config import base


def get_config():
    """19 classes at 512x512 pixels, eight images a chip on four chips."""
    config = base(source="noise")
    config.source.classes = 19
    config.source.size = (512, 512)
    config.data.batch_size = 32
    config.data.crop = (512, 512)
    config.data.flip_horizontal = False
    config.eval.batch_size = 32
    config.model.widths = (64, 128, 256, 512, 1024)
    config.model.dtype = "bfloat16"
    config.model.fold = True
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "constant"
    config.run.total = 100
    return config
