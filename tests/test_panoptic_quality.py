import collections
import json
import pathlib

import numpy as np
import pytest
from parts import spec_of
from PIL import Image

from segjax.checks import UserError
from segjax.metrics import pairs, panoptic, panoptic_quality
from segjax.spec import DatasetSpec

D = 100
VOID = 255 * D
SPEC = DatasetSpec(("ground", "cat", "dog"), things=(1, 2))
CAT, DOG = D, 2 * D


def plain(truth, prediction, k, divisor, ignore, crowd=()):
    """COCO's evaluation step by step, on dicts of segments: sums of IoU, tp, fp, fn of each class."""

    def segments(image):
        ids, areas = np.unique(image, return_counts=True)
        return {int(i): int(n) for i, n in zip(ids, areas, strict=True) if i // divisor != ignore}

    offset = 2**24
    true, predicted = segments(truth), segments(prediction)
    codes = truth.astype(np.uint64) * np.uint64(offset) + prediction.astype(np.uint64)
    shared = collections.defaultdict(int)
    for code, n in zip(*np.unique(codes, return_counts=True), strict=True):
        i = int(code) // offset
        shared[i if i // divisor != ignore else "void", int(code) % offset] += int(n)
    iou, tp, fp, fn = np.zeros(k), *np.zeros((3, k), int)
    matched = set()
    for (i, j), n in shared.items():
        if i not in true or j not in predicted or i in crowd or i // divisor != j // divisor:
            continue
        overlap = n / (true[i] + predicted[j] - n - shared.get(("void", j), 0))
        if overlap > 0.5:
            tp[i // divisor] += 1
            iou[i // divisor] += overlap
            matched |= {("t", i), ("p", j)}
    crowd_of_class = {i // divisor: i for i in crowd if i in true}
    for i in true:
        if i not in crowd and ("t", i) not in matched:
            fn[i // divisor] += 1
    for j, area in predicted.items():
        elsewhere = shared.get(("void", j), 0) + shared.get((crowd_of_class.get(j // divisor), j), 0)
        if ("p", j) not in matched and elsewhere / area <= 0.5:
            fp[j // divisor] += 1
    return iou, tp, fp, fn


def counts(truth, prediction, crowd=()):
    """[tp, fp, fn] of the three classes, and sums of IoU, of hand-drawn maps: rows of ids."""
    state = panoptic.new(SPEC)
    state = panoptic.update(state, np.array(truth), np.array(prediction), divisor=D, ignore=255, crowd=crowd)
    return [x.tolist() for x in state[2:]], state.iou.tolist()


def random_maps(rng, size=(48, 64), k=4):
    """Blocks of segments with ragged edges, void included, and a prediction that is the ground truth disturbed."""
    ids = np.append(rng.integers(0, k, 9) * D + rng.integers(0, 4, 9), VOID)
    truth = np.kron(rng.choice(ids, (size[0] // 8, size[1] // 8)), np.ones((8, 8), int))
    prediction = np.roll(truth, rng.integers(0, 2, 2), (0, 1))
    for i in ids:
        if rng.random() < 0.4:
            prediction[prediction == i] = rng.choice(ids)
    noise = rng.random(size) < rng.choice([0.0, 0.1])
    return truth.astype(np.int32), np.where(noise, rng.choice(ids, size), prediction).astype(np.int32)


@pytest.mark.parametrize("seed", range(60))
def test_random_maps_are_as_in_coco_evaluation(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = random_maps(rng)
    present = np.unique(truth[truth != VOID])
    crowd = rng.permutation(present)[: rng.integers(0, 4)].tolist()
    state = panoptic.update(panoptic.new(spec_of(4)), truth, prediction, divisor=D, ignore=255, crowd=crowd)
    for found, wanted in zip(state[1:], plain(truth, prediction, 4, D, 255, crowd), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_the_random_maps_hold_every_case():
    """Matches, both kinds of errors, crowds, and several crowds of a class, or the comparison above says little."""
    total, doubled = np.zeros(4), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth, prediction = random_maps(rng)
        crowd = rng.permutation(np.unique(truth[truth != VOID]))[: rng.integers(0, 4)]
        total += [x.sum() for x in plain(truth, prediction, 4, D, 255, crowd.tolist())]
        doubled += len(np.unique(crowd // D)) < len(crowd)
    assert (total > 50).all() and doubled > 5


def test_a_match_needs_more_than_half():
    """IoU 2/4 is no match; 3/5 is."""
    truth = [[CAT + 1, CAT + 1, CAT + 1, 0]]
    assert counts(truth, [[0, CAT + 1, CAT + 1, CAT + 1]]) == ([[0, 0, 0], [1, 1, 0], [1, 1, 0]], [0, 0, 0])
    tally, iou = counts([[CAT + 1] * 4 + [0]], [[0] + [CAT + 7] * 4])
    assert tally == [[0, 1, 0], [1, 0, 0], [1, 0, 0]] and iou == [0, 0.6, 0]


def test_classes_do_not_match():
    assert counts([[CAT + 1] * 4], [[DOG + 1] * 4]) == ([[0, 0, 0], [0, 0, 1], [0, 1, 0]], [0, 0, 0])


def test_pixels_without_truth_are_not_in_the_union():
    """The cat covers 2 true pixels and 4 without ground truth: its IoU is 2/2."""
    assert counts([[CAT + 1] * 2 + [VOID] * 4], [[CAT + 1] * 6]) == ([[0, 1, 0], [0, 0, 0], [0, 0, 0]], [0, 1, 0])


def test_predictions_mostly_on_pixels_without_truth_are_not_counted():
    """3 of 5 pixels of the cat have no ground truth; of the dog's 4 pixels 2: exactly half is counted."""
    assert counts([[0, 0, VOID, VOID, VOID]], [[CAT + 1] * 5])[0] == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert counts([[0, 0, VOID, VOID]], [[DOG + 1] * 4])[0] == [[0, 0, 0], [0, 0, 1], [1, 0, 0]]


def test_pixels_without_prediction_are_no_segment():
    """The ground truth that is left out is missed, but nothing is predicted wrongly; what there is fits to 4/5."""
    truth, prediction = [[CAT + 1] * 5 + [DOG + 1]], [[CAT + 1] * 4 + [VOID] * 2]
    assert counts(truth, prediction) == ([[0, 1, 0], [0, 0, 0], [0, 0, 1]], [0, 0.8, 0])


def test_crowds_match_nothing_and_are_not_missed():
    truth = [[CAT] * 4 + [DOG + 1] * 2]
    assert counts(truth, [[VOID] * 4 + [DOG + 1] * 2], [CAT])[0] == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert counts(truth, [[CAT] * 4 + [DOG + 1] * 2], [CAT])[0] == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert counts(truth, [[CAT] * 4 + [DOG + 1] * 2])[0] == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_predictions_on_a_crowd_are_excused_in_its_class_only():
    truth = [[CAT] * 4 + [0] * 4]
    cats, dogs = [[CAT + 1, CAT + 1, CAT + 2, CAT + 2] + [0] * 4], [[DOG + 1] * 4 + [0] * 4]
    assert counts(truth, cats, [CAT])[0] == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert counts(truth, dogs, [CAT])[0] == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_crowd_and_pixels_without_truth_count_together():
    """2 of 5 pixels on the crowd and 1 without ground truth excuse the cat, either alone does not."""
    prediction = [[CAT + 1] * 5]
    assert counts([[CAT, CAT, VOID, 0, 0]], prediction, [CAT])[0][1] == [0, 0, 0]
    assert counts([[CAT, CAT, 0, 0, 0]], prediction, [CAT])[0][1] == [0, 1, 0]


def test_the_last_of_several_crowds_counts():
    """The cat lies on the first crowd: excused only if that is the last listed of those in the image."""
    truth, prediction = [[CAT + 8] * 3 + [CAT + 9] * 3], [[CAT + 1] * 3 + [VOID] * 3]
    assert counts(truth, prediction, [CAT + 9, CAT + 8, CAT + 7])[0] == [[0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert counts(truth, prediction, [CAT + 8, CAT + 9])[0] == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_figures_by_hand():
    """The ground shares 2 of 5 pixels; the cat 3 of 5, and another is predicted falsely; there is no dog."""
    truth = np.array([[CAT + 1] * 4 + [0] + [0] * 3])
    prediction = np.array([[0] + [CAT + 7] * 4 + [CAT + 8] + [0] * 2])
    figures = panoptic_quality(truth, prediction, SPEC, divisor=D, ignore=255)
    assert figures == {
        "pq": pytest.approx((0 + 0.6 / 1.5) / 2),
        "sq": pytest.approx((0 + 0.6) / 2),
        "rq": pytest.approx((0 + 1 / 1.5) / 2),
        "classes": 2,
        "things": {"pq": pytest.approx(0.4), "sq": 0.6, "rq": pytest.approx(2 / 3), "classes": 1},
        "stuff": {"pq": 0, "sq": 0, "rq": 0, "classes": 1},
        "per_class": {
            "ground": {"pq": 0, "sq": 0, "rq": 0, "tp": 0, "fp": 1, "fn": 1},
            "cat": {"pq": pytest.approx(0.4), "sq": 0.6, "rq": pytest.approx(2 / 3), "tp": 1, "fp": 1, "fn": 0},
            "dog": {"pq": None, "sq": None, "rq": None, "tp": 0, "fp": 0, "fn": 0},
        },
    }
    assert json.loads(json.dumps(figures)) == figures


def test_nothing_to_score():
    nothing = np.full((3, 4), VOID)
    figures = panoptic_quality(nothing, nothing, SPEC, divisor=D, ignore=255)
    assert figures["pq"] is figures["things"]["sq"] is figures["stuff"]["rq"] is None and figures["classes"] == 0
    assert panoptic_quality([], [], SPEC, divisor=D, ignore=255) == figures


def test_minus_one_can_mean_void():
    truth, prediction = np.array([[CAT + 1, CAT + 1, -1, -1]]), np.array([[CAT + 2, CAT + 2, CAT + 2, -1]])
    assert panoptic_quality(truth, prediction, SPEC, divisor=D, ignore=-1)["pq"] == 1


def test_sets_merge_as_a_whole():
    rng = np.random.default_rng(0)
    images = [random_maps(rng, k=3) for _ in range(5)]
    truths, predictions = zip(*images, strict=True)

    def counted(images):
        state = panoptic.new(SPEC)
        for truth, prediction in images:
            state = panoptic.update(state, truth, prediction, divisor=D, ignore=255, crowd=[CAT])
        return state

    parts = panoptic.merge(counted(images[3:]), panoptic.merge(counted(images[:1]), counted(images[1:3])))
    np.testing.assert_allclose(np.stack(parts[1:]), np.stack(counted(images)[1:]), rtol=1e-12)
    whole = panoptic_quality(truths, predictions, SPEC, divisor=D, ignore=255, crowd=[CAT])
    assert whole["pq"] == pytest.approx(panoptic.summary(parts)["pq"], rel=1e-12)
    each = panoptic_quality(
        truths, predictions, SPEC, divisor=D, ignore=255, crowd=[[CAT], (CAT,), {CAT}, [CAT], [CAT]]
    )
    assert each == whole
    none = panoptic_quality(truths, predictions, SPEC, divisor=D, ignore=255)
    assert none == panoptic_quality(truths, predictions, SPEC, divisor=D, ignore=255, crowd=[[]] * 5) != whole


@pytest.mark.parametrize("high", [5, 10**7])
def test_pairs_are_counted_whatever_the_range(high):
    rng = np.random.default_rng(0)
    a, b = rng.integers(-3, 4, (2, 30, 50)) * [[[high]], [[1]]]
    found = [x.tolist() for x in pairs.count_pairs(a, b)]
    wanted, n = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_counts=True)
    assert found == [*wanted.tolist(), n.tolist()]


def test_errors_name_what_is_wrong():
    def score(truths, predictions, **options):
        return panoptic_quality(truths, predictions, SPEC, **{"divisor": D, "ignore": 255, **options})

    good = np.full((4, 6), CAT + 1)
    with pytest.raises(UserError, match=r"Map 1: Sizes differ, \(4, 6\) and \(4, 5\)"):
        score([good, good], [good, good[:, :5]])
    with pytest.raises(UserError, match=r"2 maps of ground truth, 1 of predictions"):
        score([good, good], [good])
    with pytest.raises(UserError, match=r"3 collections of crowds"):
        score([good, good], [good, good], crowd=[[], [], []])
    bad = good.copy()
    bad[0, :3] = 7 * D + 3
    with pytest.raises(
        UserError, match=r"Map 0: The prediction holds id 703 \(3 pixels\), of class 7 with divisor 100"
    ):
        score(good, bad)
    with pytest.raises(UserError, match=r"holds id -1 \(24 pixels\), of class -1"):
        score(good * 0 - 1, good)
    with pytest.raises(UserError, match=r"not float64"):
        score(good, good / 2)


def coco(test_data, file, pngs, index):
    """A map of COCO's files (each segment numbered by its place in the JSON), its segments and its crowds' ids."""
    root = pathlib.Path(test_data) / "coco_panoptic"
    annotation = json.loads((root / file).read_text())["annotations"][index]
    png = (root / pngs / annotation["file_name"]).with_suffix(".png")
    ids = np.array(Image.open(png).convert("RGB")).astype(np.int64) @ [1, 256, 65536]
    categories = json.loads((root / "panoptic_coco_categories.json").read_text())
    classes = [c["id"] for c in categories]
    spec = DatasetSpec(
        tuple(c["name"] for c in categories), things=tuple(i for i, c in enumerate(categories) if c["isthing"])
    )
    panoptic_map = np.full(ids.shape, 255 * 1000)
    segments = {}
    for number, s in enumerate(annotation["segments_info"], 1):
        key = classes.index(s["category_id"]) * 1000 + number
        panoptic_map[ids == s["id"]] = key
        segments[key] = s
    return panoptic_map.astype(np.int32), segments, [key for key, s in segments.items() if s["iscrowd"]], spec


IMAGES = [
    ("sample_data/panoptic_examples.json", "sample_data/panoptic_examples", 0),
    ("sample_data/panoptic_examples.json", "sample_data/panoptic_examples", 1),
    ("hf_fixture/panoptic_39769.json", "hf_fixture/coco_panoptic", 0),
]


@pytest.mark.parametrize("image", IMAGES)
def test_coco_against_itself(image, test_data):
    truth, segments, crowd, spec = coco(test_data, *image)
    figures = panoptic_quality(truth, truth, spec, divisor=1000, ignore=255, crowd=crowd)
    wanted = collections.Counter(spec.classes[key // 1000] for key in segments if key not in crowd)
    assert figures["pq"] == figures["things"]["pq"] == figures["stuff"]["sq"] == 1
    assert {name: c["tp"] for name, c in figures["per_class"].items() if c["tp"]} == wanted
    assert all(c["fp"] == c["fn"] == 0 for c in figures["per_class"].values())
    assert figures["classes"] == len(wanted)


@pytest.mark.parametrize("image", IMAGES)
def test_coco_disturbed_is_as_in_coco_evaluation(image, test_data):
    truth, _, crowd, spec = coco(test_data, *image)
    for shift in (3, 20):
        prediction = np.roll(truth, (shift, shift), (0, 1))
        state = panoptic.new(spec)
        state = panoptic.update(state, truth, prediction, divisor=1000, ignore=255, crowd=crowd)
        wanted = plain(truth, prediction, len(spec.classes), 1000, 255, crowd)
        assert state.tp.sum() and state.fp.sum() and state.fn.sum()
        for a, b in zip(state[1:], wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_coco_corrupted_by_hand(test_data):
    """Two cats, two remotes, a couch and a blanket, whose areas in the JSON say what each corruption costs."""
    truth, segments, _, spec = coco(test_data, *IMAGES[2])
    cat, big_cat, couch, _, _, rug = keys = list(segments)
    area = {key: s["area"] for key, s in segments.items()}
    assert [area[key] for key in keys] == [53306, 59627, 174579, 4068, 2118, 2750]
    names = [spec.classes[key // 1000] for key in keys]

    def score(prediction):
        figures = panoptic_quality(truth, prediction, spec, divisor=1000, ignore=255)
        assert figures["classes"] == 4
        return figures["pq"], {name: figures["per_class"][name] for name in set(names)}

    def figures(pq, sq, rq, tp, fp, fn):
        return {**{k: pytest.approx(v, rel=1e-12) for k, v in (("pq", pq), ("sq", sq), ("rq", rq))},
                "tp": tp, "fp": fp, "fn": fn}  # fmt: skip

    dropped = np.where(truth == cat, 255 * 1000, truth)
    pq, by_class = score(dropped)
    assert pq == pytest.approx((1 / 1.5 + 3) / 4) and by_class["cat"] == figures(1 / 1.5, 1, 1 / 1.5, 1, 0, 1)

    merged = np.where(truth == cat, big_cat, truth)
    pq, by_class = score(merged)
    iou = 59627 / (59627 + 53306)
    assert pq == pytest.approx((iou / 1.5 + 3) / 4) and by_class["cat"] == figures(iou / 1.5, iou, 1 / 1.5, 1, 0, 1)

    moved = truth.copy()
    moved.flat[np.flatnonzero(truth == couch)[:1000]] = cat
    pq, by_class = score(moved)
    couch_iou, cat_iou = 173579 / 174579, 53306 / 54306
    assert by_class["couch"] == figures(couch_iou, couch_iou, 1, 1, 0, 0)
    assert by_class["cat"] == figures((1 + cat_iou) / 2, (1 + cat_iou) / 2, 1, 2, 0, 0)
    assert pq == pytest.approx((couch_iou + (1 + cat_iou) / 2 + 2) / 4)

    grown = np.where(truth == 255 * 1000, couch, truth)
    assert (grown != truth).sum() == 480 * 640 - sum(area.values()) and score(grown)[0] == 1

    wrong = np.where(truth == rug, couch // 1000 * 1000 + 9, truth)
    pq, by_class = score(wrong)
    assert by_class["couch"] == figures(1 / 1.5, 1, 1 / 1.5, 1, 1, 0) and by_class[names[5]] == figures(
        0, 0, 0, 0, 0, 1
    )
    assert pq == pytest.approx((1 / 1.5 + 0 + 2) / 4)


@pytest.mark.parametrize("image", IMAGES)
def test_what_each_segment_of_coco_is_worth(test_data, image):
    """Of n segments of a class one is lost, PQ (n - 1) / (n - 1/2); or a third of its pixels, (n - 1/3) / n or so."""
    truth, segments, crowd, spec = coco(test_data, *image)
    classes = [key // 1000 for key in segments if key not in crowd]
    count = len(set(classes))

    def score(prediction):
        return panoptic_quality(truth, prediction, spec, divisor=1000, ignore=255, crowd=crowd)["pq"]

    for key, segment in segments.items():
        n = classes.count(key // 1000)
        lost = np.where(truth == key, 255 * 1000, truth)
        worth = 1 - (n - 1) / (n - 0.5) if key not in crowd else 0
        assert score(lost) == pytest.approx(1 - worth / count)
        if key not in crowd:
            third = segment["area"] // 3
            cut = truth.copy()
            cut.flat[np.flatnonzero(truth == key)[:third]] = 255 * 1000
            assert score(cut) == pytest.approx(1 - third / segment["area"] / n / count)


def scene(rng, size, segments, k=20, divisor=1000):
    """A tiling of the image by the nearest of random centres, each a segment."""
    y, x = np.mgrid[: size[0], : size[1]]
    nearest, ids = np.full(size, np.inf), np.zeros(size, np.int32)
    for number in range(segments):
        cy, cx = rng.random(2) * size
        distance = (y - cy) ** 2 + (x - cx) ** 2
        ids[distance < nearest] = rng.integers(k) * divisor + number
        nearest = np.minimum(nearest, distance)
    return ids


def test_a_large_map_of_many_segments():
    """At 640x480 with 60 segments, as the plain algorithm has it."""
    truth = scene(np.random.default_rng(0), (480, 640), 60)
    prediction = np.roll(truth, (9, 13), (0, 1))
    state = panoptic.update(panoptic.new(spec_of(20)), truth, prediction, divisor=1000, ignore=255)
    for found, wanted in zip(state[1:], plain(truth, prediction, 20, 1000, 255), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
