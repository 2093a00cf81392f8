"""DeepLabV3+ with ResNet-101 on PASCAL VOC 2012: 20 classes and background, 1,464 training and 1,449 validation images.

The set is VOCtrainval_11-May-2012.tar, unpacked: $SEGJAX_DATA/VOCdevkit/VOC2012 with the folders JPEGImages,
SegmentationClass and ImageSets/Segmentation. Run it with

SEGJAX_DATA=/path/to segjax train --config configs/voc_deeplabv3plus.py --workdir runs/voc

and, as is published, from torchvision's ImageNet weights by adding

--config.init.weights=resnet101-63fe2227.pth --config.init.layout=torchvision

and on the 10,582 images of "trainaug" (Hariharan et al., ICCV 2011) by --config configs/voc_deeplabv3plus.py:trainaug,
which reads ImageSets/Segmentation/trainaug.txt, and all masks from SegmentationClassAug.

Published: DeepLabV3+ (arXiv:1802.02611, section 4) by the protocol of DeepLabV3 (arXiv:1706.05587, section 4.1) and the
code of tensorflow/models, research/deeplab/train.py and model.py: trainaug, batch 16, crops of 513, zoom 0.5 to 2 in
steps of 0.25, mirroring, output stride 16, multi-grid (1, 2, 4), dropout 0.1 after the pyramid, SGD with momentum 0.9,
30,000 steps from 0.007 with polynomial decay 0.9, weight decay 1e-4, batch norm that keeps 0.9997. Validation mIoU
0.7885 at one scale, 0.7935 when evaluated at output stride 8 (table 3); tensorflow/models, official/vision/README, has
0.792.

Here: all of that, with zooms drawn evenly in their logarithm, weight decay of kernels only, and torchvision's ResNet in
bfloat16, whose stem is one 7x7 convolution and not three of 3x3. Meant for accelerators; mIoU not yet measured.
"""

from segjax.config import base

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def get_config(train="train"):
    """VOC in crops of 513; `train` is the list of training images, train or trainaug."""
    config = base(source="folder", model="deeplabv3plus")
    config.splits.train = train
    config.splits.test = "val"
    config.source.root = "$SEGJAX_DATA/VOCdevkit/VOC2012"
    config.source.images = "JPEGImages/{stem}.jpg"
    config.source.masks = f"SegmentationClass{'Aug' if train == 'trainaug' else ''}/{{stem}}.png"
    config.source.lists = "ImageSets/Segmentation/{split}.txt"
    config.source.classes = CLASSES  # palette index of each; 255, the outlines, has no truth
    config.source.things = tuple(range(1, 21))
    config.preprocess.mean = (123.675, 116.28, 103.53)
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.data.batch_size = 16
    config.data.crop = (513, 513)
    config.data.scale = (0.5, 2.0)
    config.model.backbone = "resnet101"
    config.model.multi_grid = (1, 2, 4)
    config.model.separable = False
    config.model.dropout = 0.1
    config.model.momentum = 0.9997
    config.model.dtype = "bfloat16"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.007
    config.optimizer.schedule = "polynomial"
    config.optimizer.weight_decay = 1e-4
    config.run.total = 30000
    config.eval.batch_size = 16
    config.eval.buckets = 4
    return config
