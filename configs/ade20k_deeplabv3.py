"""DeepLabV3 with ResNet-50 on ADE20K: 150 classes, 20,210 training and 2,000 validation images of many sizes.

The set is that of the scene parsing challenge, ADEChallengeData2016.zip, unpacked into $SEGJAX_DATA. Run it with

SEGJAX_DATA=/path/to segjax train --config configs/ade20k_deeplabv3.py --workdir runs/ade20k

and, as is published, from torchvision's ImageNet weights by adding

--config.init.weights=resnet50-0676ba61.pth --config.init.layout=torchvision

Published: mmsegmentation (configs/deeplabv3/README, R-50-D8 with 160,000 steps): batch 16, images scaled to a shorter
side of 512, crops of 512, zoom 0.5 to 2, mirroring, colour distortion, output stride 8, a pyramid of 512 channels,
dropout 0.1, an auxiliary head of weight 0.4, SGD with momentum 0.9, from 0.01 to 1e-4 with polynomial decay 0.9, weight
decay 5e-4, batch norm over all devices that keeps 0.9. Validation mIoU 0.4266 at one scale.

Here: all of that, but images keep their size, crops that one class fills are not drawn again, the colours of every
image are distorted, zooms are drawn evenly in their logarithm, weight decay is of kernels only, and the net is
torchvision's ResNet in bfloat16, whose stem is one 7x7 convolution and not three of 3x3.
Meant for accelerators; mIoU not yet measured.
"""

from segjax.config import base

# First name of each class, from objectInfo150.txt of CSAILVision/sceneparsing.
CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk",
    "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa",
    "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp",
    "bathtub", "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand",
    "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table",
    "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower",
    "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar",
    "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight",
    "booth", "television", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman",
    "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything",
    "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball",
    "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen",
    "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen",
    "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip


def get_config():
    """ADE20K in crops of 512."""
    config = base(source="folder", model="deeplabv3")
    config.splits.train = "training"
    config.splits.test = "validation"
    config.source.root = "$SEGJAX_DATA/ADEChallengeData2016"
    config.source.images = "images/{split}/{stem}.jpg"
    config.source.masks = "annotations/{split}/{stem}.png"
    config.source.classes = CLASSES
    config.source.ids = {str(k + 1): k for k in range(150)}
    config.source.ignore_ids = (0,)
    config.preprocess.mean = (123.675, 116.28, 103.53)
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.data.batch_size = 16
    config.data.crop = (512, 512)
    config.data.scale = (0.5, 2.0)
    config.augment.brightness = 0.125
    config.augment.contrast = 0.5
    config.augment.saturation = 0.5
    config.augment.hue = 0.1
    config.model.output_stride = 8
    config.model.width = 512
    config.model.dropout = 0.1
    config.model.aux = "c4"
    config.model.dtype = "bfloat16"
    config.objective.aux = 0.4
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "polynomial"
    config.optimizer.end = 0.01
    config.optimizer.weight_decay = 5e-4
    config.run.total = 160000
    config.eval.batch_size = 8
    config.eval.buckets = 8
    return config
