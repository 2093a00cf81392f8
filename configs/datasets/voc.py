"""PASCAL VOC 2012: photos of many sizes, 1,464 training and 1,449 validation images, 20 classes and background.

Unpack VOCtrainval_11-May-2012.tar to get $SEGJAX_DATA/VOCdevkit/VOC2012 with the folders JPEGImages, SegmentationClass
and ImageSets/Segmentation. The 10,582 images of "trainaug" (Hariharan et al., ICCV 2011) must be listed in
ImageSets/Segmentation/trainaug.txt, with their masks in SegmentationClassAug.
"""

# In the order of the masks' palette; 255, the outlines, is unlabelled.
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def apply(config, train="train"):
    """Sets `config.splits` and `config.source`, a folder.

    `train` is the list of training images: train, or trainaug, which reads all masks from SegmentationClassAug.
    """
    config.splits.train = train
    config.splits.test = "val"
    config.source.root = "$SEGJAX_DATA/VOCdevkit/VOC2012"
    config.source.images = "JPEGImages/{stem}.jpg"
    config.source.masks = f"SegmentationClass{'Aug' if train == 'trainaug' else ''}/{{stem}}.png"
    config.source.lists = "ImageSets/Segmentation/{split}.txt"
    config.source.classes = CLASSES
    config.source.things = tuple(range(1, 21))
