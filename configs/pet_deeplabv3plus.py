"""DeepLabV3+ with ResNet-50 on Oxford-IIIT Pet through TensorFlow Datasets: pet, background and the border between.

3,680 training and 3,669 test photographs of many sizes, fitted into 256x256; scores are at the photographs' own
size. TFDS downloads and prepares the set (0.8 GB) at the first start.

segjax train --config configs/pet_deeplabv3plus.py --workdir runs/pet_deeplabv3plus

From torchvision's ImageNet weights, with a lower rate, by adding

--config.init.weights=resnet50-0676ba61.pth --config.init.layout=torchvision --config.optimizer.learning_rate=2e-4

Published: no agreed split of scores in three classes exists. segmentation_models.pytorch (examples/
binary_segmentation_intro.ipynb) trains pet and border against background, FPN with ResNet-34 from ImageNet weights:
256x256, batch 64, 10 epochs, Adam at 2e-4 with a cosine, Dice loss, no augmentation; IoU of the foreground 0.914.

Here: its size and batch, the net of DeepLabV3+ (arXiv:1802.02611) at output stride 16, and data, augmentation, loss and
schedule of pet_unet, to be compared with it: AdamW, 60 epochs, zoom 0.75 to 1.5, batch norm that keeps 0.9.
Meant for an accelerator; mIoU not yet measured.
"""

from segjax.config import base


def get_config():
    """Pets at 256x256."""
    config = base(source="tfds", model="deeplabv3plus")
    config.source.builder = "oxford_iiit_pet:4.*.*"
    config.source.classes = ("pet", "background", "border")
    config.source.ids = {"1": "pet", "2": "background", "3": "border"}
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
