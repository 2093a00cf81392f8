"""Scores of detected objects: COCO average precision, computed by pycocotools, and the Data Science Bowl 2018 score."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from segjax.checks import UserError
from segjax.metrics.pairs import check_maps, compact, count_pairs
from segjax.rle import coco_tools, encode
from segjax.spec import DatasetSpec

# Hundredths over 100 are the floats nearest to the thresholds, so that an IoU of exactly 0.6 is never above 0.6.
_THRESHOLDS = np.arange(50, 100, 5) / 100


class Objects(NamedTuple):
    """The objects of one image, true or detected; they may overlap.

    Args:
        rles: mask of each object as pycocotools encodes it, `{"size": [y, x], "counts": bytes}`.
        classes: class index of each object.
        scores: how sure a detection is; without meaning for the truth.
        crowd: True for a region of objects that are not told apart; without meaning for detections, whose crowds are
            dropped.
        size: rows and columns of the image.
    """

    rles: list[dict[str, Any]]
    classes: Integer[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"]
    crowd: Bool[np.ndarray, "n"]
    size: tuple[int, int]


class State(NamedTuple):
    """What has been gathered so far; two states of disjoint images merge by addition.

    Args:
        truths: true objects of each image.
        detections: detected ones.
        bowl: sum of the images' bowl scores.
        images: number of images.
    """

    truths: tuple[Objects, ...]
    detections: tuple[Objects, ...]
    bowl: float
    images: int


def objects(
    label: np.ndarray,
    instance: np.ndarray,
    spec: DatasetSpec,
    scores: Sequence[float] | Float[np.ndarray, "n"] | None = None,
) -> Objects:
    """Takes the objects out of an image's maps.

    An object is the pixels of one number and one thing class; number 0 of a thing class is a crowd. The masks of all
    objects are encoded in one pass. For a panoptic map, `objects(*decode(panoptic, divisor), spec)`.

    Args:
        label: class of each pixel, integers [y, x].
        instance: number of the object of each pixel, integers [y, x]; 1 .. n if there are scores.
        spec: says which classes are things.
        scores: score of objects 1 .. n, float [n]; all 1 when left out.

    Returns:
        The objects in the order of their number.

    Raises:
        UserError: sizes differ, a map does not hold whole numbers, an object without a score, or no pycocotools.

    Example:
        >>> spec = DatasetSpec(("ground", "cell"), things=(1,))
        >>> label, instance = np.array([[0, 1, 1], [0, 1, 1]]), np.array([[0, 1, 0], [0, 1, 0]])
        >>> found = objects(label, instance, spec, scores=[0.9])
        >>> found.scores.tolist(), found.crowd.tolist(), [rle["size"] for rle in found.rles]
        ([1.0, 0.9], [True, False], [[2, 3], [2, 3]])
    """
    check_maps(label, instance)
    rles, classes, numbers = encode(label, instance, spec.things)
    return Objects(rles, classes, _scores(scores, numbers), numbers == 0, label.shape)


def objects_of_masks(
    masks: Bool[np.ndarray, "n y x"], classes: Integer[np.ndarray, "n"], scores: Float[np.ndarray, "n"]
) -> Objects:
    """Takes objects whose masks may overlap.

    Args:
        masks: pixels of each object.
        classes: its class.
        scores: how sure it is.

    Returns:
        The objects that have a pixel, in the same order.

    Raises:
        UserError: there are objects, but no pycocotools.

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


def new_state() -> State:
    """A state that has gathered nothing.

    Returns:
        The empty state.

    Example:
        >>> new_state().images
        0
    """
    return State((), (), 0.0, 0)


def update(state: State, truth: Objects, detections: Objects) -> State:
    """Adds one image.

    Args:
        state: what has been gathered so far.
        truth: true objects, from `objects`. Where the image has no truth nothing says so here, as in COCO: what is
            detected there is wrong. Set the predicted label to `spec.ignore` on those pixels first.
        detections: detected objects.

    Returns:
        The state with the image added.

    Raises:
        UserError: the images are of different sizes, or pycocotools is not installed.

    Example:
        >>> spec = DatasetSpec(("ground", "cell"), things=(1,))
        >>> cells = objects(np.array([[0, 1, 1]]), np.array([[0, 1, 2]]), spec)
        >>> update(new_state(), cells, cells).bowl
        1.0
    """
    if truth.size != detections.size:
        raise UserError(f"The truth is of size {truth.size} but the prediction of {detections.size} (rows, columns).")
    single, found = _without_crowds(truth), _without_crowds(detections)
    best = np.zeros(len(single.rles))
    if single.rles and found.rles:
        best = coco_tools().mask.iou(found.rles, single.rles, single.crowd).max(axis=0)
    bowl = _bowl(best, len(single.rles) + len(found.rles))
    return merge(state, State((truth,), (found,), bowl, 1))


def merge(a: State, b: State) -> State:
    """The state of the images of both, which must share none.

    Args:
        a: one state.
        b: another.

    Returns:
        Their sum. The order matters only to AP and only where detections have equal scores.

    Example:
        >>> merge(new_state(), new_state()) == new_state()
        True
    """
    return State(*(x + y for x, y in zip(a, b, strict=True)))


def summary(state: State, spec: DatasetSpec, max_detections: int = 100) -> dict[str, Any]:
    """Average precision over IoU 0.50:0.05:0.95 and its parts, by pycocotools, and the mean bowl score.

    Args:
        state: what has been gathered.
        spec: classes; AP is that of the thing classes.
        max_detections: detections an image and class, by score, that count; images with more objects need more.

    Returns:
        A dict that `json.dumps` takes. Fractions in 0..1, None where there is nothing to divide by:

        - `AP`, `AP50`, `AP75`: means over the thing classes that have a true object.
        - `AP_small`, `AP_medium`, `AP_large`: AP of objects below 32^2 pixels, up to 96^2, and beyond.
        - `ap_per_class`: by name of the thing class.
        - `bowl_score`: mean over images, see `bowl_score`; without regard to classes, scores and crowds.
        - `images`, and `objects`: true ones that are not crowds.

    Raises:
        UserError: pycocotools is not installed.

    Example:
        >>> spec = DatasetSpec(("ground", "cell"), things=(1,))
        >>> cells = objects(np.array([[0, 1, 1]]), np.array([[0, 1, 2]]), spec)
        >>> figures = summary(update(new_state(), cells, cells), spec)
        >>> figures["AP"], figures["AP_large"], figures["objects"]
        (1.0, None, 2)
    """
    tools = coco_tools()
    with contextlib.redirect_stdout(io.StringIO()):
        truths, detections = (_coco(tools, images, spec) for images in (state.truths, state.detections))
        run = tools.cocoeval.COCOeval(truths, detections, "segm")
        run.params.maxDets = [max_detections]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][..., 0]  # [threshold, recall, class, size]; -1 where there is no true object

    def mean(values):
        values = values[values > -1]
        return float(values.mean()) if values.size else None

    every, small, medium, large = (precision[..., size] for size in range(4))
    return {
        "AP": mean(every),
        "AP50": mean(every[0]),
        "AP75": mean(every[5]),
        "AP_small": mean(small),
        "AP_medium": mean(medium),
        "AP_large": mean(large),
        "ap_per_class": {spec.classes[c]: mean(every[..., i]) for i, c in enumerate(run.params.catIds)},
        "bowl_score": state.bowl / state.images if state.images else None,
        "images": state.images,
        "objects": sum(int((~truth.crowd).sum()) for truth in state.truths),
    }


def bowl_score(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Score of one image in the Data Science Bowl 2018: mean of `TP / (TP + FP + FN)` over IoU 0.50:0.05:0.95.

    A true and a predicted object match at threshold t if `IoU > t`.

    Args:
        truth: number of the object of each pixel, 0 for none, integers [y, x].
        prediction: the same of the prediction.

    Returns:
        A fraction in 0..1: 1 where both maps are empty, 0 where only one is.

    Raises:
        UserError: sizes differ, or a map does not hold whole numbers.

    Example:
        >>> bowl_score(np.array([[1, 1, 2]]), np.array([[7, 7, 0]]))
        0.5
    """
    truth, prediction, pixels = count_pairs(truth, prediction)
    (truth_ids, g), (ids, p) = compact(truth), compact(prediction)
    union = np.bincount(g, pixels)[g] + np.bincount(p, pixels)[p] - pixels
    best = (pixels / union)[(truth != 0) & (prediction != 0)]
    return _bowl(best, np.count_nonzero(truth_ids) + np.count_nonzero(ids))


def _bowl(ious, objects):
    """The bowl score, from IoUs of true with predicted objects (one above 1/2 each at most) and the number of both.

    Masks of the truth do not overlap, so that above 1/2 no prediction is the best of two of them.
    """
    hits = (ious[:, None] > _THRESHOLDS).sum(axis=0)
    return float((hits / (objects - hits)).mean()) if objects else 1.0


def _scores(scores, numbers):
    """Score of each object by its number; 1 for crowds."""
    if scores is None:
        return np.ones(len(numbers))
    scores = np.asarray(scores, np.float64)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() <= len(scores):
        raise UserError(
            f"Objects are numbered {numbers.min()} .. {numbers.max()}, but there are {len(scores)} scores: one is "
            f"needed for each of the objects 1 .. n."
        )
    return np.append(1.0, scores)[numbers]


def _without_crowds(objects):
    kept = np.flatnonzero(~objects.crowd)
    rles = [objects.rles[i] for i in kept]
    return Objects(rles, objects.classes[kept], objects.scores[kept], objects.crowd[kept], objects.size)


def _coco(tools, images, spec):
    """The images' objects as pycocotools holds them; annotations are numbered from 1, for it takes 0 for none."""
    coco, annotations = tools.coco.COCO(), []
    for i, (rles, classes, scores, crowd, _) in enumerate(images):
        for rle, c, score, is_crowd in zip(rles, classes, scores, crowd, strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": int(c), "segmentation": rle,
                 "area": int(tools.mask.area(rle)), "iscrowd": int(is_crowd), "score": float(score)}
            )  # fmt: skip
    coco.dataset = {
        "images": [{"id": i, "height": o.size[0], "width": o.size[1]} for i, o in enumerate(images)],
        "categories": [{"id": c} for c in sorted(spec.things)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
