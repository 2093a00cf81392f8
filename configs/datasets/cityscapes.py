"""Cityscapes: street scenes of German cities, 2,975 training and 500 validation images of 1024x2048, 19 classes.

Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com into
$SEGJAX_DATA/cityscapes. The test split has no public masks.
"""

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


def apply(config, instances=False):
    """Sets `config.splits` and `config.source`, a folder; with `instances`, the objects too.

    Classes are read from labelIds, objects from instanceIds, in which values below 1000 are stuff or groups of things
    (crowds).
    """
    ids, names, colours = zip(*LABELS, strict=True)
    config.splits.test = "val"
    config.source.root = "$SEGJAX_DATA/cityscapes"
    config.source.images = "leftImg8bit/{split}/{stem}_leftImg8bit.png"
    config.source.masks = "gtFine/{split}/{stem}_gtFine_labelIds.png"
    config.source.classes = names
    config.source.ids = {str(k): name for k, name in zip(ids, names, strict=True)}
    config.source.ignore_ids = tuple(k for k in range(34) if k not in ids)
    config.source.palette = colours
    config.source.things = tuple(range(names.index("person"), len(names)))
    if instances:
        config.source.instances = "gtFine/{split}/{stem}_gtFine_instanceIds.png"
        config.source.instance_base = 1000
        config.source.allow_crowds = True
