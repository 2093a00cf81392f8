"""Predictions in files that any tool may have written, scored without a model."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segjax import metrics
from segjax.checks import UserError
from segjax.cli import main
from segjax.config import default_config
from segjax.data.coco import write
from segjax.data.coco.read import rgb_to_id
from segjax.data.predictions.names import SampleNames
from segjax.data.sources.coco import coco_instances, coco_panoptic
from segjax.data.sources.folder import folder
from segjax.data.sources.yolo import yolo
from segjax.metrics import coco_numbers
from segjax.metrics.panoptic import encode_panoptic
from segjax.report.mask_files import mask_pictures
from segjax.spec import DatasetSpec
from segjax.train.evaluate_predictions import evaluate_predictions

# What pycocotools 2.0.11 warns of when it decodes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

NAMES = [prefix + name for prefix in ("", "box_") for name in coco_numbers.NUMBERS]
CLASSES = ("road", "car", "sky")
IDS = {"7": "road", "26": "car", "23": "sky", "0": "ignore"}
COLOURS = {"road": (128, 64, 128), "car": (0, 0, 142), "sky": (70, 130, 180), "ignore": (0, 0, 0)}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)


def score(path, source, task="semantic", **options):
    config = default_config("folder")
    config.task.name = task
    if task != "semantic":
        config = default_config("folder", model="panoptic_deeplab", task=task)
    elif source.spec.mode == "multilabel":
        config.task.mode = "multilabel"
    return evaluate_predictions(path, config, sources={"test": source}, **options)


# Masks.


@pytest.fixture
def street(tmp_path):
    """A data set with ids of its own in folders by city, its labels, and predictions with some errors."""
    rng = np.random.default_rng(0)
    raw = np.array([0, 7, 26, 23], np.uint8)
    truth, found = {}, {}
    for i, name in enumerate(("aachen/1", "aachen/2", "bonn/3")):
        label = rng.integers(0, 4, (6 + i, 9)) - 1
        truth[name] = np.where(label < 0, 255, label).astype(np.uint8)
        found[name] = np.where(rng.random(label.shape) < 0.7, abs(label), rng.integers(0, 3, label.shape)).astype(
            np.uint8
        )
        save(tmp_path / "images" / f"{name}_left.png", np.zeros((*label.shape, 3), np.uint8))
        save(tmp_path / "masks" / f"{name}_ids.png", raw[label + 1])
    keys = {
        "root": str(tmp_path),
        "images": "images/{stem}_left.png",
        "classes": CLASSES,
        "fractions": {"test": (0, 1)},
    }
    return keys, truth, found


def iou(truth, found):
    """IoU of each class in numpy, over all images."""
    t, p = (np.concatenate([each[name].ravel() for name in truth]) for each in (truth, found))
    t, p = t[t != 255], p[t != 255]
    return {name: ((t == k) & (p == k)).sum() / ((t == k) | (p == k)).sum() for k, name in enumerate(CLASSES)}


@pytest.mark.parametrize(
    "place", ["{city}/{number}.png", "{number}.tif", "{number}_left.bmp", "{city}/{number}_left.png"]
)
def test_masks_are_found_by_any_name(street, tmp_path, place):
    """By the sample's name, by its last part, and by that of the image; in folders or not."""
    keys, truth, found = street
    source = folder("test", masks="masks/{stem}_ids.png", ids=IDS, **keys)
    for name, label in found.items():
        city, number = name.split("/")
        save(tmp_path / "out" / place.format(city=city, number=number), label)
    summary = score(tmp_path / "out", source)
    assert summary["iou_per_class"] == pytest.approx(iou(truth, found), abs=1e-12)
    assert summary["images"] == 3 and summary["pixels"] == sum((label != 255).sum() for label in truth.values())


def test_names():
    class Source:
        images = tuple(Path(f"/data/img/{name}_left.png") for name in ("a/1", "b/1", "b/02", "c.d", "c"))
        name = ("a/1", "b/1", "b/02", "c.d", "c").__getitem__

        def __len__(self):
            return 5

    find = SampleNames(Source()).find
    assert [find(name) for name in ("a/1.png", "b/1", "out/b/1.tif", "img/b/1_left.jpg", r"x\b\1.png")] == [
        0,
        1,
        1,
        1,
        1,
    ]
    assert [find(name) for name in ("02.png", "2", 2, "02_left.PNG", "c.d", "c.d.png", "c", "c.png")] == [2] * 4 + [
        3,
        3,
        4,
        4,
    ]
    assert [find(name) for name in ("1.png", 1, "c/1.png", "c/b.png", "c.e", "", "/", "d")] == [None] * 8


def test_masks_in_the_ids_of_the_data_set(street, tmp_path):
    keys, truth, found = street
    source = folder("test", masks="masks/{stem}_ids.png", ids=IDS, **keys)
    coloured = folder("test", masks="masks/{stem}_ids.png", colours=COLOURS, **keys)
    for name, label in found.items():
        save(tmp_path / "ids" / f"{name}.png", np.array([7, 26, 23], np.uint8)[label])
        save(tmp_path / "colours" / f"{name}.png", np.array(list(COLOURS.values()), np.uint8)[label])
        save(tmp_path / "palette" / f"{name}.png", mask_pictures(label, source.spec)[0][1])
    wanted = pytest.approx(iou(truth, found), abs=1e-12)
    assert score(tmp_path / "ids", source, ids="source")["iou_per_class"] == wanted
    assert score(tmp_path / "palette", source)["iou_per_class"] == wanted
    with pytest.raises(UserError, match=r"aachen/1\.png holds ids without a class: 7 \(\d+ pixels\)"):
        score(tmp_path / "ids", source)
    for name, label in truth.items():  # ground truth in colours
        save(tmp_path / "masks" / f"{name}_ids.png", np.array(list(COLOURS.values()), np.uint8)[np.minimum(label, 3)])
    assert score(tmp_path / "colours", coloured, ids="source")["iou_per_class"] == wanted
    with pytest.raises(UserError, match=r"aachen/1\.png holds colours"):
        score(tmp_path / "colours", coloured)


def test_class_indices_are_those_of_the_run(street, tmp_path):
    """The split lists its classes in another order than the run that predicted."""
    keys, truth, found = street
    source = folder("test", masks="masks/{stem}_ids.png", ids=IDS, **keys)
    trained = DatasetSpec(("sky", "road", "car", "bird"))
    for name, label in found.items():
        save(tmp_path / "out" / f"{name}.png", np.array([1, 2, 0], np.uint8)[label])
        save(tmp_path / "ids" / f"{name}.png", np.array([7, 26, 23], np.uint8)[label])
    wanted = iou(truth, found)
    summary = score(tmp_path / "out", source, trained=trained)
    assert summary["iou_per_class"] == pytest.approx(wanted | {"bird": None}, abs=1e-12)
    assert list(summary["iou_per_class"]) == list(trained.classes)
    assert score(tmp_path / "ids", source, ids="source", trained=trained)["iou_per_class"] == pytest.approx(wanted)


def test_pixels_without_a_prediction_are_misses(street, tmp_path):
    keys, truth, found = street
    source = folder("test", masks="masks/{stem}_ids.png", ids=IDS, **keys)
    for name, label in found.items():
        label[:2] = 255
        save(tmp_path / "out" / f"{name}.png", label)
    assert score(tmp_path / "out", source)["iou_per_class"] == pytest.approx(iou(truth, found), abs=1e-12)


def test_masks_that_are_missing_twice_or_of_another_size(street, tmp_path, caplog):
    keys, _, found = street
    source, out = folder("test", masks="masks/{stem}_ids.png", ids=IDS, **keys), tmp_path / "out"
    save(out / "1.png", found["aachen/1"])
    with pytest.raises(UserError, match=r"2 of 3 images of the split have no .*: aachen/2, bonn/3\."):
        score(out, source)
    for name in found:
        save(out / f"{name.split('/')[1]}.png", found[name])
        save(out / "overlays" / f"{name.split('/')[1]}.png", found[name])
    save(out / "4.png", found["bonn/3"])
    score(out, source)
    assert "1 files are of no image of the split: 4.png" in caplog.text
    save(out / "3.png", found["bonn/3"][:-1])
    with pytest.raises(UserError, match=r"8 x 9 .* its mask .*/3\.png has 7 x 9"):
        score(out, source)
    save(out / "3_left.png", found["bonn/3"])
    with pytest.raises(UserError, match=r"Both .* are predictions of bonn/3"):
        score(out, source)
    with pytest.raises(UserError, match="There is no folder or file of predictions"):
        score(tmp_path / "nowhere", source)


def test_masks_of_classes_that_overlap(tmp_path):
    """Names of files as `segjax predict` writes them; one class name ends as another does."""
    rng, classes = np.random.default_rng(0), ("car", "red.car", "a b")
    keys = {
        "root": str(tmp_path),
        "images": "images/{stem}.png",
        "masks": "masks/{class}/{stem}.png",
        "classes": classes,
    }
    truth, found = rng.integers(0, 2, (2, 2, 5, 6, 3)).astype(np.uint8)
    for i in range(2):
        save(tmp_path / "images" / f"{i}.png", np.zeros((5, 6, 3), np.uint8))
        for k, name in enumerate(classes):
            save(tmp_path / "masks" / name / f"{i}.png", truth[i, ..., k])
            save(tmp_path / "out" / f"{i}.{name.replace(' ', '_')}.png", found[i, ..., k])
    source = folder("test", fractions={"test": (0, 1)}, **keys)
    summary, both = score(tmp_path / "out", source), (truth & found).sum((0, 1, 2)) / (truth | found).sum((0, 1, 2))
    assert list(summary["iou_per_class"].values()) == pytest.approx(both.tolist())
    (tmp_path / "out" / "1.red.car.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images of the split have no mask <name>\.red\.car\.png: 1\."):
        score(tmp_path / "out", source)


# COCO's results.


def blob(rng, size):
    """A rough ellipse, as a mask."""
    (rows, columns), radius = size, rng.choice([6, 25, 70])
    y, x = rng.integers(0, rows), rng.integers(0, columns)
    tall, wide = radius * rng.uniform(0.6, 1.4, 2)
    yy, xx = np.ogrid[:rows, :columns]
    return ((yy - y) / tall) ** 2 + ((xx - x) / wide) ** 2 < 1


def encoded(mask):
    rle = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.fixture(scope="module")
def detection(tmp_path_factory):
    """COCO ground truth with polygons, run lengths, crowds, areas of their own and ids in no order; and results."""
    rng, root = np.random.default_rng(1), tmp_path_factory.mktemp("coco")
    categories = [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}, {"id": 17, "name": "yak"}]
    images, annotations, results = [], [], []
    for i in (31, 7, 8, 100):
        size = (int(rng.integers(150, 220)), int(rng.integers(150, 220)))
        images.append({"id": i, "file_name": f"{i:05}.png", "height": size[0], "width": size[1]})
        save(root / "val" / f"{i:05}.png", np.zeros((*size, 3), np.uint8))
        for n in range(14 if i != 100 else 0):
            mask, key = blob(rng, size), int(rng.choice([9, 4]))
            segmentation, box = encoded(mask), tools.toBbox(encoded(mask)).tolist()
            if n % 3 == 0:
                left, top, width, height = (value + 0.3 for value in box)
                segmentation = [[left, top, left + width, top, left + width / 2, top + height]]
            annotations.append({
                "id": 1000 - len(annotations), "image_id": i, "category_id": key, "segmentation": segmentation,
                "area": float(mask.sum() * rng.uniform(0.5, 1.5)), "bbox": [value + 0.25 for value in box],
                "iscrowd": int(n == 13 and not isinstance(segmentation, list)),
            })  # fmt: skip
            moved = np.roll(mask, rng.integers(-3, 4, 2), (0, 1)) if rng.random() < 0.8 else blob(rng, size)
            if moved.any():
                key = key if rng.random() < 0.9 else 17
                one = {"image_id": i, "category_id": key, "segmentation": encoded(moved)}
                results.append(one | {"score": float(rng.random().__round__(1))})
    for image in images[:1]:  # more than 100 of one class
        mask = blob(rng, (image["height"], image["width"]))
        for _ in range(120):
            one = {"image_id": 31, "category_id": 4, "segmentation": encoded(mask)}
            results.append(one | {"score": float(rng.random().__round__(2))})
    truth = root / "annotations" / "instances_val.json"
    truth.parent.mkdir()
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root, truth, results


def by_pycocotools(truth, results):
    with contextlib.redirect_stdout(io.StringIO()) as lines:
        coco = COCO(str(truth))
        found = coco.loadRes(results)
        for kind in ("segm", "bbox"):
            run = COCOeval(coco, found, kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
            yield from run.stats.tolist()
    yield [line for line in lines.getvalue().splitlines() if line.startswith(" Average")]


def boxed(results):
    """The same with boxes that are not those of the masks."""
    boxes = [tools.toBbox(one["segmentation"]).tolist() for one in results]
    return [one | {"bbox": [x + 1, y, w, h + 2]} for one, (x, y, w, h) in zip(results, boxes, strict=True)]


def boxes_only(results):
    return [{key: value for key, value in one.items() if key != "segmentation"} for one in boxed(results)]


def boxes_beyond(results):
    """Boxes that reach far outside of the image."""
    rng = np.random.default_rng(5)
    reach = rng.choice([0, 0, 0, 0.4, 3.7, 1000], (len(results), 2))
    boxes = [tools.toBbox(one["segmentation"]).tolist() for one in results]
    return [one | {"bbox": [x - a, y - b, w + a + b, h + a + b]}
            for one, (x, y, w, h), (a, b) in zip(boxes_only(results), boxes, reach.tolist(), strict=True)]  # fmt: skip


def box_later(results):
    """Boxes on all but the first: areas are those of masks, boxes those of the entries."""
    return results[:1] + boxed(results)[1:]


@pytest.mark.parametrize("form", [list, boxed, boxes_only, boxes_beyond, box_later])
def test_results_score_as_pycocotools_scores_them(detection, tmp_path, capsys, form):
    """All 24 numbers, bit by bit, and its lines."""
    root, truth, results = detection
    path = tmp_path / "results.json"
    path.write_text(json.dumps(form(results)))
    *wanted, lines = by_pycocotools(truth, str(path))
    (tmp_path / "c.py").write_text(f"""
from segjax.config import default_config
def get_config():
    config = default_config(source="coco_instances")
    config.source.root, config.splits.test = {str(root)!r}, "val"
    return config
""")
    assert main(["evaluate", f"--config={tmp_path / 'c.py'}", f"--predictions={path}"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [-1 if found[name] is None else found[name] for name in NAMES] == wanted
    assert [line for line in err.splitlines() if line.startswith(" Average")] == lines
    assert 0.01 < found["AP"] < found["AP50"] < 0.95 and found["box_AR100"] > 0.05 and found["split"] == "val"
    assert "nothing is detected in 1 of 4 images: 00100" in err


def test_annotation_id_0_as_pycocotools(detection, tmp_path, caplog):
    """pycocotools takes a match with id 0 for no match: the score is the same, and a warning says so."""
    root, truth, results = detection
    content = json.loads(truth.read_text())
    one = content["annotations"][1]
    one["id"] = 0
    found = {key: one[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 1}
    path, others = tmp_path / "results.json", tmp_path / "instances_val.json"
    others.write_text(json.dumps(content))
    path.write_text(json.dumps([found, *results]))
    source = coco_instances("val", root=str(root), annotations=str(others))
    found, (*wanted, _) = score(path, source, "instance"), by_pycocotools(others, str(path))
    assert [-1 if found[name] is None else found[name] for name in NAMES] == wanted
    assert found["AP"] != score(path, coco_instances("val", root=str(root)), "instance")["AP"]
    assert "instances_val.json: an annotation has id 0" in caplog.text


def test_results_of_one_category(detection, tmp_path):
    root, truth, results = detection
    content = json.loads(truth.read_text())
    content["categories"] = content["categories"][:1]
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] == 9]
    path, others = tmp_path / "results.json", tmp_path / "instances_val.json"
    others.write_text(json.dumps(content))
    path.write_text(json.dumps([one for one in results if one["category_id"] == 9]))
    found = score(path, coco_instances("val", root=str(root), annotations=str(others)), "instance")
    *wanted, _ = by_pycocotools(others, str(path))
    assert [-1 if found[name] is None else found[name] for name in NAMES] == wanted and found["AP"] > 0.02


@pytest.mark.parametrize("change, message", [
    ({"image_id": 5}, r"\[0\] has image_id 5, but no image of .*instances_val\.json has that id"),
    ({"category_id": 5}, r"\[0\] has category_id 5, but the categories of .* are: 9, 4, 17"),
    ({"score": None}, r"\[0\]: score must be a finite number, not None"),
    ({"score": 10**400}, r"\[0\]: score must be a finite number, not 1000"),
    ({"segmentation": {"size": [3, 4], "counts": "0"}}, r"\[0\].*\[3, 4\]"),
    ({"bbox": [1, 2, 3]}, r"\[0\]: bbox must be four numbers"),
])  # fmt: skip
def test_results_that_are_wrong(detection, tmp_path, change, message):
    root, _, results = detection
    path = tmp_path / "results.json"
    path.write_text(json.dumps([results[0] | change, *results[1:3]]))
    with pytest.raises(UserError, match=f"results.json: {message}"):
        score(path, coco_instances("val", root=str(root)), "instance")
    path.write_text(json.dumps([results[0] | {"score": float("nan")}]))
    with pytest.raises(UserError, match=r"results\.json, line 1: NaN"):
        score(path, coco_instances("val", root=str(root)), "instance")


def test_results_that_predict_writes_count_with_their_own_areas(detection, tmp_path):
    """An object with images, categories and annotations is known by names, and scored as COCO(file) is."""
    root, truth, results = detection
    names, sizes = {9: 1, 4: 2, 17: 3}, {31: 5, 7: 4, 8: 2, 100: 1}
    old = json.loads(truth.read_text())
    images = [one | {"id": sizes[one["id"]], "file_name": f"photos/{one['file_name']}"} for one in old["images"]]
    annotations = [
        one | {"image_id": sizes[one["image_id"]], "category_id": names[one["category_id"]], "area": 7.0 * n}
        for n, one in enumerate(boxed(results))
    ]
    source, path = coco_instances("val", root=str(root)), tmp_path / "instances.json"
    write.write_json(path, [*images, images[0] | {"id": 99, "file_name": "other.png"}], annotations, source.spec)
    with contextlib.redirect_stdout(io.StringIO()):
        found, coco = COCO(), COCO(str(truth))
        found.dataset = old | {"annotations": [one | {"area": 7.0 * n, "id": n + 1, "iscrowd": 0} for n, one in
                                               enumerate(boxed(results))]}  # fmt: skip
        found.createIndex()
        run = COCOeval(coco, found, "segm")
        for step in (run.evaluate, run.accumulate, run.summarize):
            step()
    summary = score(path, source, "instance")
    assert [-1 if summary[name] is None else summary[name] for name in NAMES[:12]] == run.stats.tolist()
    write.write_json(path, images[1:], annotations[-1:], source.spec)
    with pytest.raises(UserError, match=r"annotations\[0\] has image_id 5, but the file does not list that image"):
        score(path, source, "instance")
    write.write_json(path, images[1:], [], source.spec)
    with pytest.raises(UserError, match=r"1 of 4 images of the split have no prediction: 00031\."):
        score(path, source, "instance")


@pytest.fixture
def cells(tmp_path):
    """A folder with maps of objects and unlabelled pixels, and detections as label and instance maps with scores."""
    rng, spec, found = np.random.default_rng(0), DatasetSpec(("ground", "cat", "dog"), things=(1, 2)), {}
    for name in ("007", "012"):
        instance = np.kron(np.arange(1, 17).reshape(4, 4), np.ones((6, 7), int)) * (rng.random((24, 28)) < 0.9)
        label = np.where(instance > 0, 1 + instance % 2, 0)
        save(tmp_path / "images" / f"{name}.png", np.zeros((*label.shape, 3), np.uint8))
        save(tmp_path / "masks" / f"{name}.png", np.where(rng.random(label.shape) < 0.1, 255, label).astype(np.uint8))
        save(tmp_path / "objects" / f"{name}.png", instance.astype(np.uint16))
        found[name] = np.roll(label, 1, 1).astype(np.uint8), np.roll(instance, 1, 1).astype(np.uint16), rng.random(16)
    keys = {
        "root": str(tmp_path),
        "images": "images",
        "masks": "masks",
        "instances": "objects",
        "classes": spec.classes,
    }
    keys |= {"things": spec.things, "fractions": {"test": (0, 1)}, "ids": {0: 0, 1: 1, 2: 2, 255: "ignore"}}
    return folder("test", allow_crowds=True, **keys), found, spec


@pytest.mark.parametrize("key", [int, str, lambda name: f"images/{name}.jpg"])
def test_results_against_maps_of_objects(cells, tmp_path, key):
    """Masks alone count, on labelled pixels, as in a model's own evaluation; images are known by their names."""
    source, found, spec = cells
    state, results = metrics.instance.new(spec), []
    for i, (name, (label, instance, scores)) in enumerate(found.items()):
        true = source.read(i)
        state = metrics.instance.update(
            state,
            metrics.instance.objects_of_maps(true["label"], true["instance"], spec),
            metrics.instance.objects_of_maps(np.where(true["label"] == 255, 0, label), instance, spec, scores),
        )
        results += write.instance_annotations(label, instance, spec, key(name), scores)
    (tmp_path / "results.json").write_text(json.dumps(results))
    summary = score(tmp_path / "results.json", source, "instance")
    wanted = metrics.instance.summary(state, max_detections=None)
    assert summary | wanted == summary and 0.2 < summary["AP"] < 0.9
    (tmp_path / "results.json").write_text(json.dumps([results[0] | {"image_id": "x/8.png"}]))
    with pytest.raises(UserError, match=r"image_id 'x/8\.png', but no image of the split has that name"):
        score(tmp_path / "results.json", source, "instance")
    (tmp_path / "results.json").write_text(json.dumps([results[0] | {"category_id": 0}]))
    with pytest.raises(UserError, match="category_id 0, ground: that is no thing"):
        score(tmp_path / "results.json", source, "instance")


def test_results_of_ultralytics(tmp_path):
    """A list after a byte order mark, numbers for names, and class indices: 1 is the first class of the text files."""
    save(tmp_path / "images/val/000042.png", np.zeros((10, 10, 3), np.uint8))
    (tmp_path / "labels/val").mkdir(parents=True)
    (tmp_path / "labels/val/000042.txt").write_text("0 0 0 0.5 0 0.5 0.5 0 0.5\n")
    mask = np.zeros((10, 10), bool)
    mask[:5, :5] = True
    result = {"image_id": 42, "category_id": 1, "score": 0.5, "bbox": [0, 0, 5, 5], "segmentation": encoded(mask)}
    (tmp_path / "predictions.json").write_text(json.dumps([result]), encoding="utf-8-sig")
    source = yolo("val", root=str(tmp_path), classes=("cat", "dog"))
    summary = score(tmp_path / "predictions.json", source, "instance")
    assert summary["AP"] == summary["box_AP"] == pytest.approx(1) and summary["ap_per_class"]["dog"] is None


# COCO's panoptic format.


def pq_compute(truth, found, categories):
    """Panoptic quality as panopticapi's evaluation.py computes it, from (ids, segments_info) of each image."""
    iou, tp, fp, fn = (dict.fromkeys(categories, 0) for _ in range(4))
    for (true_ids, true_info), (ids, info) in zip(truth, found, strict=True):
        gt, pred = ({one["id"]: one | {"area": (m == one["id"]).sum()} for one in i}
                    for m, i in ((true_ids, true_info), (ids, info)))  # fmt: skip
        pairs = dict(zip(*np.unique(true_ids.astype(np.int64) << 24 | ids, return_counts=True), strict=True))
        pairs = {(int(key) >> 24, int(key) & 0xFFFFFF): n for key, n in pairs.items()}
        gt_matched, pred_matched = set(), set()
        for (g, p), both in pairs.items():
            if g not in gt or p not in pred or gt[g]["iscrowd"] or gt[g]["category_id"] != pred[p]["category_id"]:
                continue
            ratio = both / (pred[p]["area"] + gt[g]["area"] - both - pairs.get((0, p), 0))
            if ratio > 0.5:
                tp[gt[g]["category_id"]] += 1
                iou[gt[g]["category_id"]] += ratio
                gt_matched.add(g)
                pred_matched.add(p)
        crowds = {one["category_id"]: g for g, one in gt.items() if one["iscrowd"]}
        for g, one in gt.items():
            fn[one["category_id"]] += g not in gt_matched and not one["iscrowd"]
        for p, one in pred.items():
            covered = pairs.get((0, p), 0) + pairs.get((crowds.get(one["category_id"]), p), 0)
            fp[one["category_id"]] += p not in pred_matched and covered / one["area"] <= 0.5
    each = {c: iou[c] / n if (n := tp[c] + 0.5 * fp[c] + 0.5 * fn[c]) else None for c in categories}
    return np.mean([q for q in each.values() if q is not None]), each


@pytest.fixture
def scenes(tmp_path):
    """A COCO panoptic data set with crowds and void, and predictions in which some stuff is in two segments."""
    rng, spec = np.random.default_rng(3), DatasetSpec(("sky", "car", "road", "dog"), things=(1, 3))
    images, truth, found = [], [], []
    for i in (3, 1, 2):
        name, pair = f"{i:03}.png", []
        label = np.kron(rng.integers(0, 4, (5, 6)), np.ones((8, 8), int))
        instance = np.where(np.isin(label, spec.things), np.kron(np.arange(30).reshape(5, 6), np.ones((8, 8), int)), 0)
        for noise in (0, 1):
            changed = np.where(rng.random(label.shape) < 0.15 * noise, 1, label)
            void = np.kron(rng.random((5, 6)) < 0.2, np.ones((8, 8), bool))
            ids = encode_panoptic(np.where(void, 255, changed), np.where(changed == label, instance, 0), 100)
            ids = np.where(void, 25500, ids)
            if noise:
                ids[:, 24:] += np.where(np.isin(changed, [0, 2]) & ~void, 1, 0)[:, 24:]  # stuff in two segments
            pixels, annotation = write.panoptic_annotation(ids, spec, 100, i, name)
            save(tmp_path / ("pred" if noise else "annotations/panoptic_val") / name, pixels)
            pair.append((annotation, (rgb_to_id(pixels), annotation["segments_info"])))
        save(tmp_path / "val" / name, np.zeros((*label.shape, 3), np.uint8))
        images.append({"id": i, "file_name": name, "height": label.shape[0], "width": label.shape[1]})
        truth.append(pair[0])
        found.append(pair[1])
    write.write_json(tmp_path / "annotations/panoptic_val.json", images, [one for one, _ in truth], spec)
    (tmp_path / "pred.json").write_text(json.dumps({"annotations": [one for one, _ in found]}))
    return coco_panoptic("val", root=str(tmp_path)), [ids for _, ids in truth], [ids for _, ids in found]


def test_panoptic_files_score_as_panopticapi_scores_them(scenes, tmp_path):
    source, truth, found = scenes
    quality, each = pq_compute(truth, found, range(4))
    summary = score(tmp_path / "pred.json", source, "panoptic")
    assert summary["PQ"] == pytest.approx(quality, rel=1e-12) and 0.05 < quality < 0.95
    assert summary["pq_per_class"] == pytest.approx(dict(zip(source.spec.classes, each.values(), strict=True)))
    assert any(one["iscrowd"] for _, info in truth for one in info)
    assert any(len({one["category_id"] for one in info} & {0, 2}) < sum(one["category_id"] in (0, 2) for one in info)
               for _, info in found)  # fmt: skip
    labels = []
    for ids, info in truth + found:
        inside = [np.isin(ids, [one["id"] for one in info if one["category_id"] == k]) for k in range(4)]
        labels.append(np.select(inside, range(4), 255))
    t, p = np.concatenate(labels[:3]), np.concatenate(labels[3:])
    wanted = {n: ((t == k) & (p == k)).sum() / ((t == k) | ((p == k) & (t != 255))).sum()
              for k, n in enumerate(source.spec.classes)}  # fmt: skip
    assert summary["iou_per_class"] == pytest.approx(wanted)


@pytest.mark.parametrize("change, message", [
    (lambda all: all.pop(), "1 of 3 images of the split have no prediction: 002"),
    (lambda all: all.append(all[0]), r"annotations\[3\]: image 3 has a second entry"),
    (lambda all: all[0].update(image_id=9), r"annotations\[0\] has image_id 9, but no image of .*panoptic_val.json"),
    (lambda all: all[0].update(file_name="../x.png"), r"file_name '\.\./x\.png' leaves the folder"),
    (lambda all: all[0].update(file_name="x.png"), r"1 of 3 PNGs are neither in .* such as x\.png"),
    (lambda all: all[1]["segments_info"][0].update(category_id=8), r"has category_id 8, but the categories of"),
    (lambda all: all[1]["segments_info"].pop(), r"001\.png: id \d+ .* is not in .*pred\.json \(image 1\)"),
    (lambda all: all[1]["segments_info"][0].update(id=5), r"segment 5 has no pixel in .*001\.png"),
    (lambda all: all[1]["segments_info"][0].pop("id"), r"segments_info\[0\] lacks 'id'"),
])  # fmt: skip
def test_panoptic_files_that_are_wrong(scenes, tmp_path, change, message):
    path = tmp_path / "pred.json"
    content = json.loads(path.read_text())
    change(content["annotations"])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        score(path, scenes[0], "panoptic")


@pytest.mark.parametrize("text", ["torn", "3", '{"annotations": 3}', '{"images": []}', "[" * 100_000])
def test_files_that_are_no_predictions(cells, tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json (cannot be read as JSON|is nested too|must be a list)"):
        score(tmp_path / "a.json", cells[0], "instance")


@pytest.mark.parametrize("entry", [3, {}, {"image_id": 7}, {"image_id": [7], "category_id": 1, "score": 1}])
def test_entries_that_are_none(cells, tmp_path, entry):
    (tmp_path / "a.json").write_text(json.dumps([entry]))
    with pytest.raises(UserError, match=r"a\.json: \[0\]"):
        score(tmp_path / "a.json", cells[0], "instance")


def test_commands_say_what_they_need(capsys, tmp_path):
    assert main(["evaluate", "--predictions=x"]) == 2
    assert "segjax evaluate --predictions needs --config or --workdir" in capsys.readouterr().err
    assert main(["evaluate", "--predictions=x", "--predictions_ids=mine", f"--workdir={tmp_path}"]) == 2
