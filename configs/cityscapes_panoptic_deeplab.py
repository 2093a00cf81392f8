"""Panoptic-DeepLab with ResNet-50 on Cityscapes: 11 kinds of stuff and 8 of things, images of 1024x2048.

The set is leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, unpacked into $SEGJAX_DATA/cityscapes: classes
are read from labelIds, objects from instanceIds, where numbers below 1000 are stuff or groups of things (crowds). Run
it with

SEGJAX_DATA=/path/to segjax train --config configs/cityscapes_panoptic_deeplab.py --workdir runs/cityscapes

and, as is published, from torchvision's ImageNet weights by adding

--config.init.weights=resnet50-0676ba61.pth --config.init.layout=torchvision

Published: deeplab2 (configs/cityscapes/panoptic_deeplab/resnet50_os32_merge_with_pure_tf_func.textproto and
g3doc/projects/panoptic_deeplab.md): batch 32, crops of 1025x2049, zoom 0.5 to 2, mirroring, output stride 32, Adam
for 60,000 steps from 2.5e-4 with polynomial decay 0.9, cross-entropy of the hardest 20 % of the pixels with small
objects (under 4,096 pixels) weighing 3, centres weighing 200, offsets 0.01, sigma 8, centres above 0.1 that are the
largest in 13x13 pixels, stuff of 2,048 pixels or more, batch norm that keeps 0.99 (batch 32: the file of
resnet50_beta_os32; this one has 8). Validation PQ 0.598, mIoU 0.760; AP 0.300 by deeplab2's own code.

Here: all of that, but epsilon of batch norm is 1e-5 for 1e-3, zooms are drawn evenly in their logarithm and the compute
dtype is bfloat16. Meant for accelerators; PQ not yet measured.
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
    """Cityscapes in crops of the whole image, scored in whole images."""
    config = base(source="folder", model="panoptic_deeplab", task="panoptic")
    config.splits.test = "val"
    ids, names, colours = zip(*LABELS, strict=True)
    config.source.root = "$SEGJAX_DATA/cityscapes"
    config.source.images = "leftImg8bit/{split}/{stem}_leftImg8bit.png"
    config.source.masks = "gtFine/{split}/{stem}_gtFine_labelIds.png"
    config.source.instances = "gtFine/{split}/{stem}_gtFine_instanceIds.png"
    config.source.instance_base = 1000
    config.source.crowds = True
    config.source.classes = names
    config.source.ids = {str(k): name for k, name in zip(ids, names, strict=True)}
    config.source.ignore_ids = tuple(k for k in range(34) if k not in ids)
    config.source.palette = colours
    config.source.things = tuple(range(names.index("person"), len(names)))
    config.preprocess.mean = (123.675, 116.28, 103.53)
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.data.batch_size = 32
    config.data.crop = (1025, 2049)
    config.data.scale = (0.5, 2.0)
    config.model.backbone = "resnet50"
    config.model.output_stride = 32
    config.model.pooling = (1025, 2049)
    config.model.momentum = 0.99
    config.model.dtype = "bfloat16"
    config.objective.nms_kernel = 13
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2.5e-4
    config.optimizer.schedule = "polynomial"
    config.optimizer.weight_decay = 0.0
    config.run.total = 60000
    config.eval.batch_size = 8
    return config
