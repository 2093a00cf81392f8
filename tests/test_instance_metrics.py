import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segjax.checks import UserError
from segjax.metrics import coco_numbers, instance
from segjax.metrics.panoptic import decode_panoptic
from segjax.spec import DatasetSpec

SPEC = DatasetSpec(("ground", "cat", "dog"), things=(1, 2))
ONE = pytest.approx(1, abs=1e-12)  # pycocotools adds a rounding error to its divisors
CELLS = DatasetSpec(("ground", "cell"), things=(1,))
# What pycocotools 2.0.11 decodes masks into follows the rules of NumPy 1.
OLD_NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def cells(numbers, scores=None):
    """Objects of one class from a hand-drawn map of numbers."""
    numbers = np.array(numbers)
    return instance.objects_of_maps((numbers > 0).astype(int), numbers, CELLS, scores)


def row(*stretches, length=400):
    """A map of one row: (number, first pixel, past the last) of each object."""
    numbers = np.zeros((1, length), int)
    for number, start, stop in stretches:
        numbers[0, start:stop] = number
    return numbers


def figures(truth, detections, spec=CELLS, **options):
    return instance.summary(instance.update(instance.new(spec), truth, detections), **options)


def random_maps(rng, size=(160, 200), n=12):
    """Label and instance maps of squares of both classes and all of COCO's sizes, a crowd among them."""
    label, numbers = np.zeros(size, np.uint8), np.zeros(size, np.uint16)
    for number in range(1, n + 1):
        y, x = rng.integers(0, size)
        side = rng.choice([8, 25, 110])
        at = np.s_[y : y + side, x : x + side]
        label[at], numbers[at] = rng.integers(1, 3), number
    numbers[numbers == n] = 0
    found = np.roll(numbers, rng.integers(0, 4, 2), (0, 1))
    predicted = np.roll(label, rng.integers(0, 2, 2), (0, 1))
    return (label, numbers), (predicted, found), rng.random(n).round(1)


def annotations(i, label, numbers, boxes=False):
    """COCO's annotations of an image and the number of each, from masks encoded one by one."""
    for number, c in np.ndindex(int(numbers.max()) + 1, 3):
        mask = (label == c) & (numbers == number)
        if c and mask.any():
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {**rle, "counts": rle["counts"].decode()}
            box = {"bbox": coco_mask.toBbox(rle).tolist()} if boxes else {}
            annotation = {"image_id": i, "category_id": c, "area": int(mask.sum()), "segmentation": segmentation}
            yield number, annotation | box


def by_hand(images, tmp_path):
    """The numbers of pycocotools for masks and for boxes, called as its manual does, on files."""
    truths, detections = [], []
    for i, (truth, prediction, scores) in enumerate(images):
        for number, annotation in annotations(i, *truth, boxes=True):
            truths.append({**annotation, "id": len(truths) + 1, "iscrowd": int(number == 0)})
        for number, annotation in annotations(i, *prediction):
            if number:
                detections.append({**annotation, "score": float(scores[number - 1])})
    images = [{"id": i, "height": 160, "width": 200} for i in range(len(images))]
    data = {"images": images, "annotations": truths, "categories": [{"id": c, "name": str(c)} for c in SPEC.things]}
    (tmp_path / "truth.json").write_text(json.dumps(data))
    coco = COCO(tmp_path / "truth.json")
    found = coco.loadRes(detections)
    for kind in ("segm", "bbox"):
        run = COCOeval(coco, found, kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
        yield from run.stats


def gathered(images):
    state = instance.new(SPEC)
    for truth, prediction, scores in images:
        state = instance.update(
            state, instance.objects_of_maps(*truth, SPEC), instance.objects_of_maps(*prediction, SPEC, scores=scores)
        )
    return state


def test_as_pycocotools_on_files(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = [random_maps(rng) for _ in range(6)]
    state = gathered(images)
    capsys.readouterr()
    found = instance.summary(state)
    assert capsys.readouterr().out == ""
    names = [prefix + name for prefix in ("", "box_") for name in coco_numbers.NUMBERS]
    assert [found[name] for name in names] == list(by_hand(images, tmp_path))
    assert found["AP"] != found["box_AP"] and found["AR1"] < found["AR10"] == found["AR100"]
    assert 0.05 < found["AP"] < found["AP50"] < 0.99
    assert found["AP"] == pytest.approx(np.mean(list(found["ap_per_class"].values())))
    assert any(truth.crowd.any() for truth in state.ground_truths) and not any(d.crowd.any() for d in state.detections)
    assert json.loads(json.dumps(found)) == found


def test_perfect():
    truth = cells(row((1, 0, 10), (2, 10, 30)))
    twelve = {
        "AP": 1, "AP50": 1, "AP75": 1, "AP_small": 1, "AP_medium": None, "AP_large": None,
        "AR1": 0.5, "AR10": 1, "AR100": 1, "AR_small": 1, "AR_medium": None, "AR_large": None,
    }  # fmt: skip
    boxes = {f"box_{name}": value for name, value in twelve.items()}
    others = {"ap_per_class": {"cell": 1}, "bowl_score": 1, "images": 1, "objects": 2}
    assert figures(truth, truth) == twelve | boxes | others


def test_half_missing():
    """Precision is 1 up to a recall of 1/2: 51 of COCO's 101 recalls."""
    found = figures(cells(row((1, 0, 10), (2, 10, 30))), cells(row((1, 0, 10))))
    assert found["AP"] == found["AP50"] == pytest.approx(51 / 101) and found["bowl_score"] == 0.5


def test_one_false():
    """A false detection halves the precision if it is surer than the right one, and costs nothing if it is not."""
    truth, both = cells(row((1, 0, 10))), row((1, 0, 10), (2, 100, 120))
    assert figures(truth, cells(both, [0.3, 0.9]))["AP"] == pytest.approx(0.5)
    assert figures(truth, cells(both, [0.9, 0.3]))["AP"] == ONE


def test_thresholds():
    """IoU 0.83 is a match at 0.50, 0.55 .. 0.80: seven of ten thresholds."""
    found = figures(cells(row((1, 0, 100))), cells(row((1, 0, 83))))
    assert (found["AP"], found["AP50"], found["AP75"]) == pytest.approx((0.7, 1, 1))
    assert found["bowl_score"] == pytest.approx(0.7)


def test_crowds_excuse_detections_and_are_not_missed():
    label = np.array([[1] * 10 + [1] * 20 + [0] * 10])
    truth = instance.objects_of_maps(label, row((1, 0, 10), length=40), SPEC)
    assert truth.crowd.tolist() == [True, False] and truth.classes.tolist() == [1, 1]
    numbers = row((1, 0, 10), (2, 12, 20), (3, 20, 28), length=40)
    cats = instance.objects_of_maps(np.where(numbers > 0, 1, 0), numbers, SPEC, [0.1, 0.9, 0.8])
    dogs = instance.objects_of_maps(np.where(numbers > 1, 2, 1), numbers, SPEC, [0.1, 0.9, 0.8])
    assert figures(truth, cats, SPEC)["AP"] == figures(truth, dogs, SPEC)["AP"] == ONE
    elsewhere = row((1, 0, 10), (2, 32, 40), length=40)
    surer = instance.objects_of_maps(np.where(elsewhere > 0, 1, 0), elsewhere, SPEC, [0.1, 0.9])
    found = figures(truth, surer, SPEC)
    assert found["AP"] == pytest.approx(0.5) and found["objects"] == 1
    assert found["ap_per_class"] == {"cat": pytest.approx(0.5), "dog": None}


def test_crowds_are_no_detections():
    truth = cells(row((1, 0, 10)))
    label, numbers = np.ones((1, 400), int), row((1, 0, 10))
    found = figures(truth, instance.objects_of_maps(label, numbers, CELLS, [0.5]))
    assert found["AP"] == ONE and found["bowl_score"] == 1


def test_images_with_many_objects_need_many_detections():
    truth = cells(row(*((n, 3 * n, 3 * n + 2) for n in range(1, 121))))
    assert figures(truth, truth)["AP"] == pytest.approx(84 / 101)  # recalls up to 100/120
    assert figures(truth, truth, max_detections=120)["AP"] == 1
    every = figures(truth, truth, max_detections=None)
    assert every["AP"] == every["AR_small"] == 1 and every["AR100"] == pytest.approx(100 / 120)
    assert figures(truth, truth, max_detections=5)["AR10"] == pytest.approx(10 / 120)


def test_areas_and_boxes_of_the_annotations_count():
    """An object of 20 pixels whose annotation says 2000 is medium; a box that is given is matched, not the mask's."""
    truth = cells(row((1, 0, 20)))
    given = truth._replace(areas=np.array([2000.0]), boxes=np.array([[0.0, 0.0, 40.0, 1.0]]))
    found = figures(given, truth)
    assert found["AP_small"] is None
    assert [found["AP_medium"], found["AP50"], found["box_AP50"]] == [ONE] * 3
    assert found["box_AP75"] == 0 and figures(given, given)["box_AP75"] == ONE
    assert figures(given._replace(ids=[0]), truth)["AP"] == 0  # as pycocotools, which takes 0 for no match


def test_bowl_score_of_objects_that_overlap():
    """Two true objects in one place and one detection are one match and one miss at each threshold."""
    one = cells(row((1, 0, 10)))
    both = one._replace(rles=one.rles * 2, classes=np.ones(2, int), scores=np.ones(2), crowd=np.zeros(2, bool))
    assert figures(both, one)["bowl_score"] == figures(one, both)["bowl_score"] == 0.5
    assert figures(both, both)["bowl_score"] == 1


def test_nothing():
    nothing, one = cells(row()), cells(row((1, 0, 9)))
    assert nothing.rles == [] and figures(nothing, nothing)["AP"] is None
    assert figures(nothing, nothing)["bowl_score"] == 1
    assert figures(nothing, one)["AP"] is None and figures(nothing, one)["bowl_score"] == 0
    assert figures(one, nothing)["AP"] == figures(one, nothing)["bowl_score"] == 0
    empty = instance.summary(instance.new(CELLS))
    assert empty["AP"] is empty["bowl_score"] is empty["ap_per_class"]["cell"] is None


@OLD_NUMPY
def test_masks_survive_encoding():
    """Objects that touch corners and lie in pieces; more than 255 of them."""
    rng = np.random.default_rng(0)
    label, numbers = rng.integers(0, 3, (40, 30)).astype(np.uint8), rng.integers(0, 200, (40, 30)).astype(np.uint16)
    found = instance.objects_of_maps(label, numbers, SPEC)
    keys = sorted({(int(n), int(c)) for n, c in zip(numbers.flat, label.flat, strict=True) if c})
    assert len(found.rles) == len(keys) > 255
    assert found.classes.tolist() == [c for _, c in keys] and found.crowd.tolist() == [not n for n, _ in keys]
    for rle, (n, c) in zip(found.rles, keys, strict=True):
        inside = (label == c) & (numbers == n)
        np.testing.assert_array_equal(coco_mask.decode(rle), inside)
        assert rle == coco_mask.encode(np.asfortranarray(inside, np.uint8))


@OLD_NUMPY
def test_masks_of_coco(test_data):
    """The masks of COCO's own panoptic map are those of its file in the detection format."""
    root = pathlib.Path(test_data) / "coco_panoptic" / "sample_data"
    segments = json.loads((root / "panoptic_examples.json").read_text())["annotations"]
    wanted = json.loads((root / "panoptic_coco_detection_format.json").read_text())["annotations"]
    for annotation in segments:
        png = (root / "panoptic_examples" / annotation["file_name"]).with_suffix(".png")
        ids = np.array(Image.open(png).convert("RGB")).astype(int) @ [1, 256, 65536]
        keys = [s["id"] for s in annotation["segments_info"]]
        numbers = np.sum([(ids == key) * n for n, key in enumerate(keys, 1)], axis=0)
        found = instance.objects_of_maps(*decode_panoptic((numbers > 0) * 1000 + numbers, 1000), CELLS)
        masks = [a["segmentation"] for a in wanted if a["image_id"] == annotation["image_id"]]
        assert len(masks) == len(found.rles) == len(keys)
        for rle, mask in zip(found.rles, masks, strict=True):
            np.testing.assert_array_equal(coco_mask.decode(rle), coco_mask.decode(mask))


def test_bowl_score_by_hand():
    """IoU 3/4 matches at 0.50 .. 0.70 and not at 0.75; 3/5 at 0.50 and 0.55; a false one counts at every threshold."""
    truth, prediction = row((1, 0, 4), (2, 10, 15)), row((8, 0, 3), (9, 10, 13), (3, 30, 31))
    wanted = (2 * 2 / 3 + 3 * 1 / 4) / 10
    assert instance.bowl_score(truth, prediction) == pytest.approx(wanted)
    assert figures(cells(truth), cells(prediction))["bowl_score"] == pytest.approx(wanted)
    assert instance.bowl_score(truth, truth * 7) == 1
    assert instance.bowl_score(row(), row()) == 1
    assert instance.bowl_score(row(), truth) == instance.bowl_score(truth, row()) == 0


@pytest.mark.parametrize("seed", range(10))
def test_bowl_score_is_brute_force(seed):
    (_, truth), (_, prediction), _ = random_maps(np.random.default_rng(seed))
    a, b = (np.stack([m == n for n in np.unique(m[m > 0])]) for m in (truth, prediction))
    iou = [[(x & y).sum() / (x | y).sum() for y in b] for x in a]
    hits = [(np.array(iou) > t / 100).sum() for t in range(50, 100, 5)]
    wanted = np.mean([n / (len(a) + len(b) - n) for n in hits])
    assert 0 < wanted < 1 and instance.bowl_score(truth, prediction) == pytest.approx(wanted)
    assert figures(cells(truth), cells(prediction))["bowl_score"] == pytest.approx(wanted)


def test_sets_merge_as_a_whole():
    rng = np.random.default_rng(1)
    images = [random_maps(rng) for _ in range(5)]
    images = [(*maps, scores + 0.01 * i) for i, (*maps, scores) in enumerate(images)]
    whole = instance.summary(gathered(images))
    parts = instance.merge(instance.merge(gathered(images[:1]), gathered(images[1:3])), gathered(images[3:]))
    swapped = instance.merge(gathered(images[3:]), gathered(images[:3]))
    for state in (parts, swapped):
        found = instance.summary(state)
        assert found.pop("ap_per_class") == pytest.approx(whole["ap_per_class"], rel=1e-12)
        assert found == pytest.approx({k: v for k, v in whole.items() if k != "ap_per_class"}, rel=1e-12)
    assert whole["images"] == 5 and whole["objects"] == sum(int((~t.crowd).sum()) for t in parts.ground_truths)


def test_errors_name_what_is_wrong(monkeypatch):
    one = cells(row((1, 0, 9)))
    with pytest.raises(UserError, match=r"\(1, 400\) .* \(1, 50\)"):
        instance.update(instance.new(CELLS), one, cells(row(length=50)))
    with pytest.raises(UserError, match=r"Sizes differ, \(2, 3\) and \(2, 4\)"):
        instance.objects_of_maps(np.zeros((2, 3), int), np.zeros((2, 4), int), CELLS)
    with pytest.raises(UserError, match="not float64"):
        instance.bowl_score(row(), row() / 2)
    with pytest.raises(UserError, match=r"numbered 1 \.\. 3, but there are 2 scores"):
        cells(row((1, 0, 9), (3, 10, 20)), [0.5, 0.6])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r'pip install "segjax\[coco\]"'):
        instance.summary(instance.new(CELLS))
