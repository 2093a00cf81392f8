"""DeepLabV3+ on CamVid road scenes at half size: 11 classes, 367 training and 233 test images of 360x480.

datasets/camvid.py tells where to get the data. Run

SEGJAX_DATA=/path/to segjax train --config configs/camvid_deeplabv3plus.py --workdir runs/camvid_deeplabv3plus

Published: DeepLabV3+ (arXiv:1802.02611, section 4) starts from ImageNet weights, with batch 16, crops of 513, zoom 0.5
to 2, output stride 16, learning rate 0.007 with polynomial decay 0.9, and batch norm momentum 0.9997. We know of no
score at 360x480; SegNet-Basic, from scratch at that size, has a test mIoU of 0.463 (chainercv, examples/segnet/README).

Here: data, augmentation and loss are those of camvid_unet, for comparison. Output stride, decoder, separable
convolutions and schedule are the paper's. The atrous rates are a third of the paper's, like the maps. Image pooling
uses windows of half the crop: over full crops, its batch norm would see four values per channel. ResNet-18, ASPP with
128 channels, AdamW and batch norm momentum 0.9 are chosen for 15 minutes from scratch on 2 CPU cores.
Test mIoU 0.397 over 11 classes, in 14 min 30 s (2026-11-24).
"""

from segjax.config import default_config

from .datasets import camvid


def get_config():
    """CamVid at 180x240."""
    config = default_config(source="folder", model="deeplabv3plus")
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
    config.objective.class_weights = (0.5, 0.45, 2.2, 0.4, 1.0, 0.65, 2.0, 1.4, 0.9, 2.5, 3.0)  # camvid_unet's
    config.objective.dice = 0.5
    config.objective.dice_over = "batch"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "polynomial"
    config.model.backbone = "resnet18"
    config.model.width = 128
    config.model.atrous_rates = (2, 4, 6)
    config.model.pooling = (88, 112)
    config.model.dropout = 0.1
    config.run.total = 1400
    config.run.warmup = 100
    config.ema.decay = 0.99
    config.eval.batch_size = 8
    return config
