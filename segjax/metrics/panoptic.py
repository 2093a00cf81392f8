"""Panoptic quality (Kirillov et al. 2019, arXiv:1801.00868), by the rules of the COCO evaluation (panopticapi).

A panoptic map holds class and object of each pixel in one number, `class * divisor + instance`: see `encode`.
"""

import numbers
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from segjax.checks import UserError
from segjax.metrics.pairs import compact, count_pairs
from segjax.spec import DatasetSpec


def encode(label: Any, instance: Any, divisor: int) -> Any:
    """Panoptic map of class and object: `class * divisor + instance`.

    Args:
        label: class indices [...], of numpy or JAX.
        instance: numbers of the objects [...], 0 .. divisor - 1.
        divisor: more than there are objects in an image.

    Returns:
        int32 [...].

    Example:
        >>> encode(np.array([3, 3, 255]), np.array([0, 12, 0]), 1000).tolist()
        [3000, 3012, 255000]
    """
    return label.astype(np.int32) * np.int32(divisor) + instance.astype(np.int32)


def decode(panoptic: Any, divisor: int) -> tuple[Any, Any]:
    """Class and object of a panoptic map.

    Args:
        panoptic: `class * divisor + instance`, integers [...], of numpy or JAX.
        divisor: that of the map.

    Returns:
        Class indices and numbers of the objects, of the map's dtype and shape.

    Example:
        >>> [x.tolist() for x in decode(np.array([3000, 3012]), 1000)]
        [[3, 3], [0, 12]]
    """
    return panoptic // divisor, panoptic % divisor


class State(NamedTuple):
    """What has been counted so far, by class; two states of disjoint images merge by addition.

    Args:
        iou: sum of the IoU of the matches.
        tp: matches.
        fp: predicted segments that match nothing.
        fn: true segments that nothing matches.
    """

    iou: Float64[np.ndarray, "k"]
    tp: Int64[np.ndarray, "k"]
    fp: Int64[np.ndarray, "k"]
    fn: Int64[np.ndarray, "k"]


def new_state(classes: int) -> State:
    """A state that has counted nothing.

    Args:
        classes: number of classes k.

    Returns:
        The empty state.

    Example:
        >>> new_state(3).tp.tolist()
        [0, 0, 0]
    """
    return State(np.zeros(classes), *np.zeros((3, classes), np.int64))


def update(
    state: State,
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    divisor: int,
    ignore: int,
    crowd: Collection[int] = (),
) -> State:
    """Adds one image.

    Segments match if they are of one class and `IoU > 1/2`, which lets a segment match but once. Pixels without truth
    count for nothing: `union = |p| + |g| - |p & g| - |p & void|`. A crowd is no segment: it matches nothing and is
    not missed. A prediction that matches nothing is not counted if more than half of it lies on pixels without truth
    and the crowd of its class. Of several crowds of one class in an image the last in `crowd` counts there, as in
    panopticapi, which overwrites the earlier ones.

    Args:
        state: what has been counted so far.
        truth: `class * divisor + instance`, int32 [y, x].
        prediction: the same of the prediction; its pixels of class `ignore` are no segment.
        divisor: that of both maps.
        ignore: class of pixels without truth or prediction.
        crowd: ids of crowds in `truth`; those that are not in it mean nothing.

    Returns:
        The state with the image counted.

    Raises:
        UserError: sizes differ, a map does not hold whole numbers, or an id of a class that does not exist.

    Example:
        >>> truth, prediction = np.array([[1001, 1001, 1001, 1002]]), np.array([[1007, 1007, 1002, 1002]])
        >>> state = update(new_state(2), truth, prediction, divisor=1000, ignore=255)
        >>> state.iou.round(2).tolist(), state.tp.tolist(), state.fp.tolist(), state.fn.tolist()
        ([0.0, 0.67], [0, 1], [0, 1], [0, 1])
    """
    k = len(state.tp)
    truth_ids, prediction_ids, pixels = count_pairs(truth, prediction)
    (truth_ids, g), (prediction_ids, p) = compact(truth_ids), compact(prediction_ids)
    truth_area, area = _total(g, pixels, len(truth_ids)), _total(p, pixels, len(prediction_ids))
    truth_class, of_class = truth_ids // divisor, prediction_ids // divisor
    for name, ids, areas in (("truth", truth_ids, truth_area), ("prediction", prediction_ids, area)):
        _check_classes(name, ids, areas, divisor, ignore, k)

    crowd_of_class = {i // divisor: i for i in crowd if i in truth_ids}
    is_crowd = np.isin(truth_ids, list(crowd))
    void = (truth_class == ignore)[g]
    on_crowd = np.isin(truth_ids, list(crowd_of_class.values()))[g] & (truth_class[g] == of_class[p])
    on_void = _total(p, pixels * void, len(area))
    unlabelled = on_void + _total(p, pixels * on_crowd, len(area))

    union = area[p] + truth_area[g] - pixels - on_void[p]
    match = (truth_class[g] == of_class[p]) & ~void & ~is_crowd[g] & (2 * pixels > union)
    iou = np.bincount(of_class[p][match], pixels[match] / union[match], k)
    missed = (truth_class != ignore) & ~is_crowd
    missed[g[match]] = False
    wrong = (of_class != ignore) & (2 * unlabelled <= area)
    wrong[p[match]] = False
    counts = (
        np.bincount(classes, minlength=k) for classes in (of_class[p][match], of_class[wrong], truth_class[missed])
    )
    return merge(state, State(iou, *counts))


def merge(a: State, b: State) -> State:
    """The state of the images of both, which must share none.

    Args:
        a: one state.
        b: another, of as many classes.

    Returns:
        Their sum.

    Example:
        >>> merge(new_state(2), new_state(2)).fn.tolist()
        [0, 0]
    """
    return State(*(x + y for x, y in zip(a, b, strict=True)))


def summary(state: State, spec: DatasetSpec) -> dict[str, Any]:
    """Panoptic quality and its two factors: how well matches fit and how many segments match.

    `SQ = sum IoU / TP`, `RQ = TP / (TP + FP/2 + FN/2)`, `PQ = SQ RQ`, of each class; then means over the classes that
    have a segment in the truth or the prediction. SQ of such a class without a match is 0, as in panopticapi.

    Args:
        state: what has been counted.
        spec: its classes and which of them are things.

    Returns:
        A dict that `json.dumps` takes. Fractions in 0..1, None where there is nothing to divide by:

        - `pq`, `sq`, `rq`: means over classes; `classes`: how many these are.
        - `things`, `stuff`: the same four of these classes alone.
        - `per_class`: by name `pq`, `sq`, `rq` and the counts `tp`, `fp`, `fn`.

    Example:
        >>> state = State(np.array([0.8, 0.0]), np.array([1, 0]), np.array([0, 0]), np.array([2, 0]))
        >>> figures = summary(state, DatasetSpec(("cell", "ground"), things=(0,)))
        >>> figures["pq"], figures["things"], figures["stuff"]["pq"]
        (0.4, {'pq': 0.4, 'sq': 0.8, 'rq': 0.5, 'classes': 1}, None)
    """
    iou, tp, fp, fn = state
    segments = tp + (fp + fn) / 2
    present = segments > 0
    whole = np.where(present, segments, 1)
    figures = {"pq": iou / whole, "sq": iou / np.maximum(tp, 1), "rq": tp / whole}

    def mean(kept):
        kept = kept & present
        means = {name: float(figure[kept].mean()) if kept.any() else None for name, figure in figures.items()}
        return {**means, "classes": int(kept.sum())}

    def one(c):
        quality = {name: float(figure[c]) if present[c] else None for name, figure in figures.items()}
        return {**quality, "tp": int(tp[c]), "fp": int(fp[c]), "fn": int(fn[c])}

    things = np.isin(np.arange(len(tp)), spec.things)
    per_class = {name: one(c) for c, name in enumerate(spec.classes)}
    return {**mean(present), "things": mean(things), "stuff": mean(~things), "per_class": per_class}


def panoptic_quality(
    truths: np.ndarray | Sequence[np.ndarray],
    predictions: np.ndarray | Sequence[np.ndarray],
    spec: DatasetSpec,
    *,
    divisor: int,
    ignore: int,
    crowd: Collection[int] | Sequence[Collection[int]] | None = None,
) -> dict[str, Any]:
    """Panoptic quality of a set of images that fits in memory; see `update` for the rules.

    Args:
        truths: `class * divisor + instance`, one int32 map [y, x] or a list of them.
        predictions: as many maps.
        spec: classes and things.
        divisor: that of all maps.
        ignore: class of pixels without truth or prediction: those where `map // divisor == ignore`.
        crowd: ids of the crowds in the truth: one collection for all maps, or a list with one collection a map. No
            crowds when left out. Maps that `encode` made of a source's label and instance have the crowds
            `[thing * divisor for thing in spec.things]`.

    Returns:
        The figures of `summary`.

    Raises:
        UserError: unequal numbers of maps, or what `update` refuses, with the place of the map in its list.

    Example:
        >>> spec = DatasetSpec(("ground", "cell"), things=(1,))
        >>> truth = np.array([[0, 0, 1001, 1002]])
        >>> panoptic_quality(truth, truth, spec, divisor=1000, ignore=255)["pq"]
        1.0
    """
    if len(truths) and np.ndim(truths[0]) == 1:  # rows: a single map
        truths, predictions = [truths], [predictions]
    crowd = [] if crowd is None else list(crowd)
    crowds = [crowd] * len(truths) if all(isinstance(i, numbers.Integral) for i in crowd) else crowd
    if not len(truths) == len(predictions) == len(crowds):
        raise UserError(
            f"{len(truths)} maps of truth, {len(predictions)} of predictions and {len(crowds)} collections of crowds: "
            f"there must be as many of each."
        )
    state = new_state(len(spec.classes))
    for i, (truth, prediction, ids) in enumerate(zip(truths, predictions, crowds, strict=True)):
        try:
            state = update(state, truth, prediction, divisor=divisor, ignore=ignore, crowd=ids)
        except UserError as error:
            raise UserError(f"Map {i}: {error}") from None
    return summary(state, spec)


def _total(where, pixels, length):
    """Sum of the pixels of each place."""
    return np.bincount(where, pixels, length).astype(np.int64)


def _check_classes(name, ids, areas, divisor, ignore, k):
    classes = ids // divisor
    bad = (classes != ignore) & ((classes < 0) | (classes >= k))
    if bad.any():
        i = bad.argmax()
        raise UserError(
            f"The {name} holds id {ids[i]} ({areas[i]} pixels), of class {classes[i]} with divisor {divisor}, but "
            f"classes are 0 .. {k - 1}, and {ignore} for none. Give the divisor and `ignore` of the map."
        )
