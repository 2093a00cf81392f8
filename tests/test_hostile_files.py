"""Annotation files that nobody need trust: whatever stands where, they are read or refused in words."""

import base64
import copy
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as tools

from segjax.checks import UserError
from segjax.data.sources.coco import coco_instances, coco_panoptic
from segjax.data.sources.labelme import labelme
from segjax.data.sources.yolo import yolo

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

DEEP = 1
for _ in range(900):
    DEEP = [DEEP]
JUNK = [
    None,
    True,
    -1,
    2**63,
    10**400,
    -1e308,
    0.5,
    "\0",
    "../x",
    "/etc/passwd",
    "\ud800",
    [],
    {},
    [None],
    DEEP,
    [1e9] * 6,
]

INSIDE = np.asfortranarray(np.eye(9, 14, dtype=np.uint8))
PNG = io.BytesIO()
Image.new("1", (5, 5), 1).save(PNG, "PNG")
IMAGES = [{"id": 1, "file_name": "1.png", "height": 9, "width": 14}]
CATEGORIES = [
    {"id": 7, "name": "cat", "supercategory": "none", "color": [1, 2, 3], "isthing": 1},
    {"id": 8, "name": "sky", "isthing": 0},
]
SEGMENTATIONS = [
    [[1, 1, 5, 1, 5, 5]],
    {"size": [9, 14], "counts": [10, 5, 111]},
    {"size": [9, 14], "counts": tools.encode(INSIDE)["counts"].decode()},
]
POINTS = [[1, 1], [5, 5]]
FILES = {
    "instances_val.json": {
        "images": IMAGES,
        "categories": CATEGORIES,
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 7, "iscrowd": 0, "segmentation": each}
            for i, each in enumerate(SEGMENTATIONS)
        ],
    },
    "panoptic_val.json": {
        "images": IMAGES,
        "categories": CATEGORIES,
        "annotations": [
            {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 1, "category_id": 7, "iscrowd": 0}]}
        ],
    },
    "labelme.json": {
        "shapes": [
            {"label": "cat", "points": [[1, 1], [5, 1], [5, 5]], "shape_type": "polygon", "group_id": 1},
            {"label": "cat", "points": POINTS, "shape_type": "circle"},
            {"label": "cat", "points": POINTS, "shape_type": "mask", "mask": base64.b64encode(PNG.getvalue()).decode()},
        ],
        "imagePath": "1.png",
        "imageData": None,
        "imageHeight": 9,
        "imageWidth": 14,
    },
    "data.yaml": {"path": ".", "val": ["images"], "nc": 1, "names": {"0": "cat"}},
}


def opened(root, name):
    if name == "data.yaml":
        return yolo("val", root=root, yaml=name)
    if name == "labelme.json":
        return labelme("val", root=root, annotations="{stem}me.json", classes=("cat",), fractions={"val": (0, 1)})
    make = coco_instances if "instances" in name else coco_panoptic
    return make("val", root=root, images=".", annotations=name, **({"masks": "pan"} if "panoptic" in name else {}))


def places(value, path=()):
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def changed(content, path, junk):
    if not path:
        return junk
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = junk
    return content


@pytest.mark.parametrize("name", FILES)
def test_every_value_may_be_anything(tmp_path, name):
    for folder in ("images", "labels", "pan"):
        (tmp_path / folder).mkdir()
    for place in ("1.png", "images/1.png"):
        Image.new("RGB", (14, 9)).save(tmp_path / place)
    Image.fromarray(np.stack([INSIDE, INSIDE * 0, INSIDE * 0], -1)).save(tmp_path / "pan/1.png")
    (tmp_path / "labels/1.txt").write_text("0 .1 .1 .5 .1 .5 .5")

    def read(content):
        (tmp_path / name).write_text(json.dumps(content))
        source = opened(str(tmp_path), name)
        return [source.read(i)["label"].max() for i in range(len(source)) if source.name(i) and source.size(i)]

    assert read(FILES[name]) == [255 if "panoptic" in name else 1]
    refused = 0
    for path in places(FILES[name]):
        for junk in JUNK if name != "data.yaml" else JUNK[:-2]:  # PyYAML takes half a second to refuse DEEP
            try:
                read(changed(FILES[name], path, junk))
            except UserError:
                refused += 1
    assert refused > len(JUNK)
