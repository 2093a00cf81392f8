"""DeepLabV3+ with ResNet-101 on Cityscapes: 19 classes, 2,975 training and 500 validation images of 1024x2048.

The set is leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, unpacked into $SEGJAX_DATA/cityscapes. Run it with

SEGJAX_DATA=/path/to segjax train --config configs/cityscapes_deeplabv3plus.py --workdir runs/cityscapes

and, as is published, from torchvision's ImageNet weights by adding

--config.init.weights=resnet101-63fe2227.pth --config.init.layout=torchvision

Published: detectron2 (projects/DeepLab, README and configs/Cityscapes-SemanticSegmentation/*.yaml): batch 16, crops of
512x1024, zoom 0.5 to 2, mirroring, output stride 16, multi-grid (1, 2, 4), image pooling over windows of the crop's
size, dropout 0.1, SGD with momentum 0.9, 90,000 steps from 0.01 with polynomial decay 0.9 after 1,000 of warm-up,
weight decay 1e-4, batch norm over all devices that keeps 0.9, cross-entropy of the hardest 20 % of the pixels.
Validation mIoU 0.781 with this ResNet-101, 0.800 with one whose stem is three 3x3 convolutions; tensorflow/models,
official/vision/README, has 0.7879.

Here: all of that, but the hardest pixels are those of each image (there of the whole batch), zooms are drawn evenly in
their logarithm, weight decay is of kernels only, and the compute dtype is bfloat16. Meant for accelerators; mIoU not
yet measured.
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
    config = base(source="folder", model="deeplabv3plus")
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
    config.model.backbone = "resnet101"
    config.model.multi_grid = (1, 2, 4)
    config.model.separable = False
    config.model.pooling = (512, 1024)
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.objective.hardest = 0.2
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "polynomial"
    config.optimizer.weight_decay = 1e-4
    config.run.total = 90000
    config.run.warmup = 1000
    config.eval.batch_size = 8
    return config
