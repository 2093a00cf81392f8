"""Instance metrics: COCO's average precision and recall, and the score of the Data Science Bowl 2018."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from segjax.checks import UserError
from segjax.metrics import coco_numbers
from segjax.metrics.pairs import check_maps, compact, count_pairs
from segjax.rle import coco_tools, encode_masks
from segjax.spec import DatasetSpec

# Integers over 100 give the floats nearest to the thresholds: an IoU of exactly 0.6 is then never above 0.6.
_THRESHOLDS = np.arange(50, 100, 5) / 100


class Objects(NamedTuple):
    """The objects of one image, ground truth or detections; they may overlap.

    Args:
        rles: mask of each object in pycocotools' encoding, `{"size": [y, x], "counts": bytes}`.
        classes: class index of each object.
        scores: score of each detection; ignored for ground truth.
        crowd: True for a region of objects that are not annotated separately; crowds among detections are dropped.
        size: rows and columns of the image.
        areas: area of each object in pixels, which says whether it is small, medium or large; None: that of its mask.
        boxes: left, top, width and height of each object in pixels; None: those of its mask.
        ids: id of each annotation; None: 1 .. n. pycocotools takes a match with an annotation of id 0 for no match.
    """

    rles: list[dict[str, Any]]
    classes: Integer[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"]
    crowd: Bool[np.ndarray, "n"]
    size: tuple[int, int]
    areas: Float[np.ndarray, "n"] | None = None
    boxes: Float[np.ndarray, "n 4"] | None = None
    ids: list[int | str] | None = None


class InstanceState(NamedTuple):
    """The objects collected so far; states of disjoint images are merged by addition.

    Args:
        spec: the classes.
        ground_truths: true objects of each image.
        detections: detected objects of each image.
        bowl: sum of the images' bowl scores.
        images: number of images.
    """

    spec: DatasetSpec
    ground_truths: tuple[Objects, ...]
    detections: tuple[Objects, ...]
    bowl: float
    images: int


def objects_of_maps(
    label: np.ndarray,
    instance: np.ndarray,
    spec: DatasetSpec,
    scores: Sequence[float] | Float[np.ndarray, "n"] | None = None,
) -> Objects:
    """Extracts the objects from an image's maps.

    An object consists of the pixels with one number and one thing class; number 0 on a thing class is a crowd. All
    masks are encoded in one pass. For a panoptic map, use `objects_of_maps(*decode_panoptic(panoptic, divisor), spec)`.

    Args:
        label: class of each pixel, integers [y, x].
        instance: object number of each pixel, integers [y, x]; 1 .. n if there are scores.
        spec: tells which classes are things.
        scores: scores of objects 1 .. n, float [n]; all 1 by default.

    Returns:
        The objects in the order of their numbers.

    Raises:
        UserError: sizes differ, a map does not hold integers, an object has no score, or pycocotools is missing.

    Example:
        >>> spec = DatasetSpec(("ground", "cell"), things=(1,))
        >>> label, instance = np.array([[0, 1, 1], [0, 1, 1]]), np.array([[0, 1, 0], [0, 1, 0]])
        >>> found = objects_of_maps(label, instance, spec, scores=[0.9])
        >>> found.scores.tolist(), found.crowd.tolist(), [rle["size"] for rle in found.rles]
        ([1.0, 0.9], [True, False], [[2, 3], [2, 3]])
    """
    check_maps(label, instance)
    rles, classes, numbers = encode_masks(label, instance, spec.things)
    return Objects(rles, classes, _scores(scores, numbers), numbers == 0, label.shape)


def objects_of_masks(
    masks: Bool[np.ndarray, "n y x"], classes: Integer[np.ndarray, "n"], scores: Float[np.ndarray, "n"]
) -> Objects:
    """Makes objects from masks, which may overlap.

    Args:
        masks: pixels of each object.
        classes: class of each object.
        scores: score of each object.

    Returns:
        The objects that have at least one pixel, in the same order.

    Raises:
        UserError: there are objects, but pycocotools is missing.

    Example:
        >>> masks = np.array([[[True, True, False]], [[False, True, True]]])
        >>> objects_of_masks(masks, np.array([1, 1]), np.array([0.9, 0.5])).scores.tolist()
        [0.9, 0.5]
    """
    kept = np.flatnonzero(masks.any((1, 2)))
    columns = np.asfortranarray(masks[kept].transpose(1, 2, 0).astype(np.uint8))
    rles = coco_tools().mask.encode(columns) if len(kept) else []
    scores = scores[kept].astype(np.float64)
    return Objects(rles, classes[kept], scores, np.zeros(len(kept), bool), masks.shape[1:])


def new(spec: DatasetSpec) -> InstanceState:
    """Makes an empty state.

    Args:
        spec: the classes; AP is computed for the things.

    Returns:
        The empty state.

    Example:
        >>> new(DatasetSpec(("ground", "cell"), things=(1,))).images
        0
    """
    return InstanceState(spec, (), (), 0.0, 0)


def update(state: InstanceState, ground_truth: Objects, detections: Objects) -> InstanceState:
    """Adds one image.

    Args:
        state: the objects collected so far.
        ground_truth: true objects, from `objects_of_maps`. COCO's AP has no ignored region: detections on unlabelled
            pixels count as false positives. Set the predicted label to `spec.ignore` on those pixels first.
        detections: detected objects.

    Returns:
        The state with the image added.

    Raises:
        UserError: the image sizes differ, or pycocotools is not installed.

    Example:
        >>> spec = DatasetSpec(("ground", "cell"), things=(1,))
        >>> cells = objects_of_maps(np.array([[0, 1, 1]]), np.array([[0, 1, 2]]), spec)
        >>> update(new(spec), cells, cells).bowl
        1.0
    """
    if ground_truth.size != detections.size:
        raise UserError(
            f"The ground truth has {ground_truth.size} rows and columns, but the prediction has {detections.size}."
        )
    single, found = _without_crowds(ground_truth), _without_crowds(detections)
    ious = np.zeros((len(found.rles), len(single.rles)))
    if ious.size:
        ious = coco_tools().mask.iou(found.rles, single.rles, single.crowd)
    bowl = _bowl(_matches(ious), sum(ious.shape))
    return merge(state, InstanceState(state.spec, (ground_truth,), (found,), bowl, 1))


def merge(a: InstanceState, b: InstanceState) -> InstanceState:
    """Merges two states of disjoint images.

    Args:
        a: one state.
        b: another one.

    Returns:
        Their sum. The order affects only AP, and only if detections have equal scores.

    Example:
        >>> spec = DatasetSpec(("ground", "cell"), things=(1,))
        >>> merge(new(spec), new(spec)) == new(spec)
        True
    """
    return InstanceState(a.spec, *(x + y for x, y in zip(a[1:], b[1:], strict=True)))


def summary(state: InstanceState, *, max_detections: int | None = 100) -> dict[str, Any]:
    """Computes COCO's average precision and recall of masks and of boxes with pycocotools, and the mean bowl score.

    Args:
        state: the collected objects.
        max_detections: how many detections per image and class count, by score: 100 in COCO; None counts all. AR1, AR10
            and AR100 count 1, 10 and 100 all the same.

    Returns:
        A dict that `json.dumps` accepts. Fractions in 0..1, None if the divisor is 0, where pycocotools prints -1:

        - `AP`, `AP50`, `AP75`: means over the thing classes that have a true object, AP also over IoU 0.50:0.05:0.95.
        - `AP_small`, `AP_medium`, `AP_large`: AP of objects below 32^2 pixels, up to 96^2, and above.
        - `AR1`, `AR10`, `AR100`: average recall with 1, 10 and 100 detections per image and class.
        - `AR_small`, `AR_medium`, `AR_large`: average recall by size, with `max_detections`.
        - `box_AP` .. `box_AR_large`: the same twelve, where boxes are matched instead of masks.
        - `ap_per_class`: by name of the thing class.
        - `bowl_score`: mean over images, see `bowl_score`; ignores classes, scores and crowds.
        - `images`, and `objects`: the number of true objects that are not crowds.

    Raises:
        UserError: pycocotools is not installed.

    Example:
        >>> spec = DatasetSpec(("ground", "cell"), things=(1,))
        >>> cells = objects_of_maps(np.array([[0, 1, 1]]), np.array([[0, 1, 2]]), spec)
        >>> metrics = summary(update(new(spec), cells, cells))
        >>> metrics["AP"], metrics["AP_large"], metrics["box_AR1"], metrics["objects"]
        (1.0, None, 0.5, 2)
    """
    spec = state.spec
    most = max([1, *(len(image.rles) for image in state.detections)])
    cap = most if max_detections is None else max_detections
    pair = [coco_numbers.as_coco(images, spec.things) for images in (state.ground_truths, state.detections)]
    (masks, ap_per_class), (boxes, _) = (coco_numbers.evaluate(pair, kind, cap) for kind in ("segm", "bbox"))
    return {
        **masks,
        **{f"box_{name}": value for name, value in boxes.items()},
        "ap_per_class": {spec.classes[c]: value for c, value in ap_per_class.items()},
        "bowl_score": state.bowl / state.images if state.images else None,
        "images": state.images,
        "objects": sum(int((~image.crowd).sum()) for image in state.ground_truths),
    }


def average_precision(
    ground_truths: Sequence[Objects], detections: Sequence[Objects], spec: DatasetSpec
) -> dict[str, Any]:
    """Computes the average precision and recall of a set of images that fits in memory.

    Args:
        ground_truths: true objects of each image, from `objects_of_maps` or `objects_of_masks`.
        detections: detected objects of each image, with scores.
        spec: the classes; AP is computed for the things.

    Returns:
        The metrics of `summary`.

    Raises:
        UserError: the numbers of images differ, or `update` raises.

    Example:
        >>> spec = DatasetSpec(("ground", "cell"), things=(1,))
        >>> cells = objects_of_maps(np.array([[0, 1, 1]]), np.array([[0, 1, 2]]), spec)
        >>> average_precision([cells], [cells], spec)["AP"]
        1.0
    """
    if len(ground_truths) != len(detections):
        raise UserError(f"There are {len(ground_truths)} images of ground truth, but {len(detections)} of detections.")
    state = new(spec)
    for true, found in zip(ground_truths, detections, strict=True):
        state = update(state, true, found)
    return summary(state)


def bowl_score(ground_truth: np.ndarray, prediction: np.ndarray) -> float:
    """Scores an image as in the Data Science Bowl 2018: mean of `TP / (TP + FP + FN)` over IoU 0.50:0.05:0.95.

    A true and a predicted object match at threshold t if `IoU > t`.

    Args:
        ground_truth: object number of each pixel, 0 for none, integers [y, x].
        prediction: predicted object number of each pixel, 0 for none, integers [y, x].

    Returns:
        A fraction in 0..1: 1 if both maps are empty, 0 if only one is.

    Raises:
        UserError: sizes differ, or a map does not hold integers.

    Example:
        >>> bowl_score(np.array([[1, 1, 2]]), np.array([[7, 7, 0]]))
        0.5
    """
    ground_truth, prediction, pixels = count_pairs(ground_truth, prediction)
    (truth_ids, g), (ids, p) = compact(ground_truth), compact(prediction)
    union = np.bincount(g, pixels)[g] + np.bincount(p, pixels)[p] - pixels
    ious = (pixels / union)[(ground_truth != 0) & (prediction != 0)]
    # The objects of a map do not overlap, so each is in at most one pair with an IoU above 1/2.
    hits = (ious[:, None] > _THRESHOLDS).sum(axis=0)
    return _bowl(hits, np.count_nonzero(truth_ids) + np.count_nonzero(ids))


def _matches(ious):
    """Counts the pairs of a largest matching at each threshold; both true and detected objects may overlap."""
    close = ious > _THRESHOLDS[0]
    if (close.sum(0) <= 1).all() and (close.sum(1) <= 1).all():
        return (ious[close][:, None] > _THRESHOLDS).sum(axis=0)
    return np.array([(maximum_bipartite_matching(csr_array(ious > t)) >= 0).sum() for t in _THRESHOLDS])


def _bowl(hits, objects):
    """Computes the bowl score from the number of matches at each threshold, and that of true and predicted objects."""
    return float((hits / (objects - hits)).mean()) if objects else 1.0


def _scores(scores, numbers):
    """Looks up the score of each object by its number; 1 for crowds."""
    if scores is None:
        return np.ones(len(numbers))
    scores = np.asarray(scores, np.float64)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() <= len(scores):
        raise UserError(
            f"Objects are numbered {numbers.min()} .. {numbers.max()}, but there are {len(scores)} scores: objects "
            "1 .. n need one each."
        )
    return np.append(1.0, scores)[numbers]


def _without_crowds(objects):
    kept = np.flatnonzero(~objects.crowd)
    areas, boxes = (None if x is None else x[kept] for x in (objects.areas, objects.boxes))
    ids = None if objects.ids is None else [objects.ids[i] for i in kept]
    rles = [objects.rles[i] for i in kept]
    single = (objects.classes[kept], objects.scores[kept], objects.crowd[kept])
    return Objects(rles, *single, objects.size, areas, boxes, ids)
