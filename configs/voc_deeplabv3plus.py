"""DeepLabV3+ with ResNet-101 on PASCAL VOC 2012: 20 classes and background, 1,464 training and 1,449 validation images.

datasets/voc.py tells where to get the data. Run

SEGJAX_DATA=/path/to segjax train --config configs/voc_deeplabv3plus.py --workdir runs/voc

and, to start from torchvision's ImageNet weights as published, add

--config.init.weights=resnet101-63fe2227.pth --config.init.layout=torchvision

To train on the 10,582 images of "trainaug", pass --config configs/voc_deeplabv3plus.py:trainaug.

Published: DeepLabV3+ (arXiv:1802.02611, section 4), with the protocol of DeepLabV3 (arXiv:1706.05587, section 4.1) and
the code of tensorflow/models, research/deeplab/train.py and model.py: trainaug, batch 16, crops of 513, zoom 0.5 to 2
in steps of 0.25, mirroring, output stride 16, multi-grid (1, 2, 4), dropout 0.1 after ASPP, SGD with momentum 0.9,
30,000 steps from 0.007 with polynomial decay 0.9, weight decay 1e-4, batch norm momentum 0.9997. Validation mIoU 0.7885
at one scale, 0.7935 when evaluated at output stride 8 (table 3); 0.792 in tensorflow/models, official/vision/README.

Here: the same, except that zooms are uniform in their logarithm, weight decay applies only to kernels, and the network
is torchvision's ResNet in bfloat16, with one 7x7 convolution as its stem instead of three 3x3 ones. Meant for
accelerators; mIoU not yet measured.
"""

from segjax.config import default_config

from .datasets import voc


def get_config(train="train"):
    """VOC with crops of 513x513; `train` is the list of training images, train or trainaug."""
    config = default_config(source="folder", model="deeplabv3plus")
    voc.apply(config, train)
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
