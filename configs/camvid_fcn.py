"""FCN-8s on CamVid road scenes at half size: 11 classes, 367 training and 233 test images of 360x480.

datasets/camvid.py tells where to get the data. Run

SEGJAX_DATA=/path/to segjax train --config configs/camvid_fcn.py --workdir runs/camvid_fcn

Published: FCN-8s (arXiv:1411.4038, section 4.3) starts from VGG-16's ImageNet weights, with batches of 20 full images,
no augmentation, SGD with momentum 0.9, a fixed learning rate of 1e-4, weight decay 5e-4 and dropout 0.5: mIoU 0.622 on
the VOC 2012 test set, and 0.672 when trained on single images with momentum 0.99 (shelhamer/fcn.berkeleyvision.org,
README). On CamVid, SegNet-Basic from scratch has a test mIoU of 0.463 (chainercv, examples/segnet/README).

Here: data, augmentation and loss are those of camvid_unet, for comparison. The head is the paper's: dense layers as
convolutions, skips of strides 16 and 8, upsampling initialised bilinearly. ResNet-18 instead of VGG-16, dense layers of
256 instead of 4096, AdamW and dropout 0.1 are chosen for 15 minutes from scratch on 2 CPU cores.
Test mIoU 0.443 over 11 classes, in 13 min 23 s (2026-11-24).
"""

from segjax.config import default_config

from .datasets import camvid


def get_config():
    """CamVid at 180x240."""
    config = default_config(source="folder", model="fcn")
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
    config.model.head = "8s"
    config.model.width = 256
    config.run.total = 1700
    config.run.warmup = 100
    config.ema.decay = 0.99
    config.eval.batch_size = 8
    return config
