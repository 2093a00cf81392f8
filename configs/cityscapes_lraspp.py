"""LR-ASPP with MobileNetV3-Large on Cityscapes: 19 classes, 2,975 training and 500 validation images of 1024x2048.

The set is leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, unpacked into $SEGJAX_DATA/cityscapes. Run it with

SEGJAX_DATA=/path/to segjax train --config configs/cityscapes_lraspp.py --workdir runs/cityscapes_lraspp

from scratch, as the paper does, and from torchvision's ImageNet weights by adding

--config.init.weights=mobilenet_v3_large-8738ca79.pth --config.init.layout=torchvision

Published: the paper (arXiv:1905.02244, section 6.4) trains without ImageNet weights, with a head of 128 channels, at
output stride 16 or 32, and names no schedule. mmsegmentation (configs/mobilenet_v3: README and
mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py) does: batch 16, crops of 512x1024, zoom 0.5 to 2, mirroring,
colour distortion, SGD with momentum 0.9, 320,000 steps from 0.01 to 1e-4 with polynomial decay 0.9, weight decay 5e-4,
dropout 0.1, output stride 8, batch norm over all devices that keeps 0.9. Validation mIoU 0.6787 from scratch, 0.6954
from ImageNet weights.

Here: mmsegmentation's recipe with the paper's net as torchvision has it: output stride 16, one low-level branch of
stride 8 (mmsegmentation has two, of 2 and 4), no dropout. Crops that one class fills are not drawn again, the colours
of every image are distorted, zooms are drawn evenly in their logarithm, weight decay is of kernels only, and the
compute dtype is bfloat16. Meant for accelerators; mIoU not yet measured.
"""

from segjax.config import base

# Raw id, name and colour of each class: cityscapesScripts, cityscapesscripts/helpers/labels.py.
LABELS = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)


def get_config():
    """Cityscapes in crops of 512x1024, scored in whole images."""
    config = base(source="folder", model="lraspp")
    config.splits.test = "val"
    ids, names, colours = zip(*LABELS, strict=True)
    config.source.root = "$SEGJAX_DATA/cityscapes"
    config.source.images = "leftImg8bit/{split}/{stem}_leftImg8bit.png"
    config.source.masks = "gtFine/{split}/{stem}_gtFine_labelIds.png"
    config.source.classes = names
    config.source.ids = {str(k): name for k, name in zip(ids, names, strict=True)}
    config.source.ignore_ids = tuple(k for k in range(34) if k not in ids)
    config.source.palette = colours
    config.source.things = tuple(range(names.index("person"), len(names)))
    config.preprocess.mean = (123.675, 116.28, 103.53)
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.data.batch_size = 16
    config.data.crop = (512, 1024)
    config.data.scale = (0.5, 2.0)
    config.augment.brightness = 0.125
    config.augment.contrast = 0.5
    config.augment.saturation = 0.5
    config.augment.hue = 0.1
    config.model.dtype = "bfloat16"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "polynomial"
    config.optimizer.end = 0.01
    config.optimizer.weight_decay = 5e-4
    config.run.total = 320000
    config.eval.batch_size = 8
    return config
