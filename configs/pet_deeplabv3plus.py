"""DeepLabV3+ with ResNet-50 on Oxford-IIIT Pet from TensorFlow Datasets: pet, background and the border between them.

datasets/pet.py tells where to get the data. Photos are fitted into 256x256, and evaluated at native size.

segjax train --config configs/pet_deeplabv3plus.py --workdir runs/pet_deeplabv3plus

To start from torchvision's ImageNet weights, with a lower learning rate, add

--config.init.weights=resnet50-0676ba61.pth --config.init.layout=torchvision --config.optimizer.learning_rate=2e-4

Published: there is no agreed split or score for three classes. segmentation_models.pytorch (examples/
binary_segmentation_intro.ipynb) trains pet and border against background, with an FPN on ResNet-34 from ImageNet
weights, 256x256, batch 64, 10 epochs, Adam at 2e-4 with a cosine, Dice loss, no augmentation: foreground IoU 0.914.

Here: its size and batch, DeepLabV3+ (arXiv:1802.02611) at output stride 16, and for comparison the data, augmentation,
loss and schedule of pet_unet: AdamW, 60 epochs, zoom 0.75 to 1.5, batch norm momentum 0.9.
Meant for an accelerator; mIoU not yet measured.
"""

from segjax.config import default_config

from .datasets import pet


def get_config():
    """Pets at 256x256."""
    config = default_config(source="tfds", model="deeplabv3plus")
    pet.apply(config)
    config.preprocess.mean = (123.675, 116.28, 103.53)
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.preprocess.resize = (256, 256)
    config.data.batch_size = 64
    config.data.crop = (256, 256)
    config.data.scale = (0.75, 1.5)
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    config.augment.saturation = 0.2
    config.augment.hue = 0.02
    config.model.dtype = "bfloat16"
    config.objective.dice = 0.5
    config.optimizer.learning_rate = 1e-3
    config.ema.decay = 0.998
    config.run.unit = "epochs"
    config.run.total = 60
    config.run.warmup = 2
    config.eval.batch_size = 64
    config.eval.buckets = 4
    return config
