"""Panoptic-DeepLab on the nuclei of the Data Science Bowl 2018 (BBBC038, stage 1), with instance maps only.

The data are 664 training and 65 test images, each with a 16-bit instance map (0 background, 1 .. n), in
$SEGJAX_DATA/dsb2018/{train,test}/{images,labels}/ID.png. Kaggle's own files hold one mask per nucleus: first merge
those of an image into one map. Images are upsampled twofold, or the network's small maps lose the smallest nuclei.

SEGJAX_DATA=/path/to segjax train --config configs/nuclei_instance.py --workdir runs/nuclei

AP 0.253, AP50 0.535 and the competition's own score 0.331 on the test images, with AP over up to 400 detections per
image, in 13 min 41 s on 2 CPU cores (2026-11-25).
"""

from segjax.config import default_config


def get_config():
    """Crops of 96 pixels, upsampled to 192; evaluated on full images."""
    config = default_config(source="folder", model="panoptic_deeplab", task="instance")
    config.source.root = "$SEGJAX_DATA/dsb2018"
    config.source.images = "{split}/images/{stem}.png"
    config.source.instances = "{split}/labels/{stem}.png"
    config.source.classes = ("background", "nucleus")
    config.preprocess.mean = (72.0, 72.0, 72.0)
    config.preprocess.std = (88.0, 88.0, 88.0)
    config.preprocess.resize = 2.0
    config.data.crop = (192, 192)
    config.data.scale = (0.7, 1.4)
    config.data.rotate = 180.0
    config.data.flip_vertical = True
    config.data.rare_class_fraction = 0.5
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    config.augment.hue = 0.1
    config.model.backbone = "resnet18_half"
    config.model.width = 64
    config.model.atrous_rates = (2, 4, 6)
    config.objective.ohem_fraction = 0.5
    config.objective.offset = 0.05
    config.objective.small_area = 512
    config.objective.nms_kernel = 5
    config.objective.top_k = 400  # a test image has 329; AP uses all detections
    config.optimizer.learning_rate = 2e-3
    config.ema.decay = 0.99
    config.run.total = 1400
    config.run.warmup = 50
    config.eval.batch_size = 2
    config.eval.buckets = 4
    config.checkpoint.evaluate = "last"  # there is no validation split to select the best checkpoint
    return config
