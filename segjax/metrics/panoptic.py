"""Panoptic quality (Kirillov et al. 2019, arXiv:1801.00868), with the rules of COCO's panopticapi.

A panoptic map stores the class and object of each pixel as one id, `class * divisor + instance`: see `encode_panoptic`.
"""

import numbers
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from segjax.checks import UserError
from segjax.metrics.pairs import compact, count_pairs
from segjax.spec import DatasetSpec


def encode_panoptic(label: Any, instance: Any, divisor: int) -> Any:
    """Encodes class and object number as panoptic ids: `class * divisor + instance`.

    Args:
        label: class indices [...], a NumPy or JAX array.
        instance: object numbers [...], 0 .. divisor - 1.
        divisor: larger than any object number.

    Returns:
        int32 [...].

    Example:
        >>> encode_panoptic(np.array([3, 3, 255]), np.array([0, 12, 0]), 1000).tolist()
        [3000, 3012, 255000]
    """
    return label.astype(np.int32) * np.int32(divisor) + instance.astype(np.int32)


def decode_panoptic(panoptic: Any, divisor: int) -> tuple[Any, Any]:
    """Decodes a panoptic map to class and object number.

    Args:
        panoptic: ids `class * divisor + instance`, integers [...], a NumPy or JAX array.
        divisor: divisor of the map.

    Returns:
        Class indices and object numbers, of the map's dtype and shape.

    Example:
        >>> [x.tolist() for x in decode_panoptic(np.array([3000, 3012]), 1000)]
        [[3, 3], [0, 12]]
    """
    return panoptic // divisor, panoptic % divisor


class PanopticState(NamedTuple):
    """The counts so far, per class; states of disjoint images are merged by addition.

    Args:
        spec: the classes.
        iou: sum of the IoUs of the matches.
        tp: number of matches.
        fp: number of unmatched predicted segments.
        fn: number of unmatched true segments.
    """

    spec: DatasetSpec
    iou: Float64[np.ndarray, "k"]
    tp: Int64[np.ndarray, "k"]
    fp: Int64[np.ndarray, "k"]
    fn: Int64[np.ndarray, "k"]


def new(spec: DatasetSpec) -> PanopticState:
    """Makes an empty state.

    Args:
        spec: the classes, and which of them are things.

    Returns:
        The empty state.

    Example:
        >>> new(DatasetSpec(("ground", "cell"), things=(1,))).tp.tolist()
        [0, 0]
    """
    k = len(spec.classes)
    return PanopticState(spec, np.zeros(k), *np.zeros((3, k), np.int64))


def update(
    state: PanopticState,
    ground_truth: np.ndarray,
    prediction: np.ndarray,
    *,
    divisor: int,
    ignore: int | None = None,
    crowd: Collection[int] = (),
) -> PanopticState:
    """Adds one image.

    Segments match if they have the same class and `IoU > 1/2`, so a segment matches at most once. Unlabelled pixels are
    ignored: `union = |p| + |g| - |p & g| - |p & void|`. A crowd is not a segment: it is never a match or a miss. An
    unmatched prediction is ignored if more than half of it lies on unlabelled pixels and the crowd of its class. If an
    image has several crowds of one class, the last in `crowd` is used, as in panopticapi, which overwrites the earlier
    ones.

    Args:
        state: the counts so far.
        ground_truth: ids `class * divisor + instance`, int32 [y, x].
        prediction: predicted ids, int32 [y, x]; pixels of class `ignore` belong to no segment.
        divisor: divisor of both maps.
        ignore: class of unlabelled pixels; None: `spec.ignore`.
        crowd: ids of crowds in `ground_truth`; ids that do not occur are ignored.

    Returns:
        The state with the image counted.

    Raises:
        UserError: sizes differ, a map does not hold integers, or an id has an unknown class.

    Example:
        >>> ground_truth, prediction = np.array([[1001, 1001, 1001, 1002]]), np.array([[1007, 1007, 1002, 1002]])
        >>> spec = DatasetSpec(("ground", "cell"), things=(1,))
        >>> state = update(new(spec), ground_truth, prediction, divisor=1000)
        >>> state.iou.round(2).tolist(), state.tp.tolist(), state.fp.tolist(), state.fn.tolist()
        ([0.0, 0.67], [0, 1], [0, 1], [0, 1])
    """
    k, ignore = len(state.tp), state.spec.ignore if ignore is None else ignore
    truth_ids, prediction_ids, pixels = count_pairs(ground_truth, prediction)
    (truth_ids, g), (prediction_ids, p) = compact(truth_ids), compact(prediction_ids)
    truth_area, area = _total(g, pixels, len(truth_ids)), _total(p, pixels, len(prediction_ids))
    truth_class, of_class = truth_ids // divisor, prediction_ids // divisor
    for name, ids, areas in (("ground truth", truth_ids, truth_area), ("prediction", prediction_ids, area)):
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
    return merge(state, PanopticState(state.spec, iou, *counts))


def merge(a: PanopticState, b: PanopticState) -> PanopticState:
    """Merges two states of disjoint images.

    Args:
        a: one state.
        b: another one, with the same classes.

    Returns:
        Their sum.

    Example:
        >>> spec = DatasetSpec(("ground", "cell"), things=(1,))
        >>> merge(new(spec), new(spec)).fn.tolist()
        [0, 0]
    """
    return PanopticState(a.spec, *(x + y for x, y in zip(a[1:], b[1:], strict=True)))


def summary(state: PanopticState) -> dict[str, Any]:
    """Computes panoptic quality and its two factors, segmentation quality (SQ) and recognition quality (RQ).

    `SQ = sum IoU / TP`, `RQ = TP / (TP + FP/2 + FN/2)`, `PQ = SQ RQ` for each class, then means over the classes that
    have a segment in the ground truth or the prediction. SQ of such a class without a match is 0, as in panopticapi.

    Args:
        state: the counts.

    Returns:
        A dict that `json.dumps` accepts. Fractions in 0..1, None if the divisor is 0:

        - `pq`, `sq`, `rq`: means over classes; `classes`: the number of these classes.
        - `things`, `stuff`: the same four for things or stuff only.
        - `per_class`: by class name, `pq`, `sq`, `rq` and the counts `tp`, `fp`, `fn`.

    Example:
        >>> spec = DatasetSpec(("cell", "ground"), things=(0,))
        >>> state = PanopticState(spec, np.array([0.8, 0.0]), np.array([1, 0]), np.array([0, 0]), np.array([2, 0]))
        >>> metrics = summary(state)
        >>> metrics["pq"], metrics["things"], metrics["stuff"]["pq"]
        (0.4, {'pq': 0.4, 'sq': 0.8, 'rq': 0.5, 'classes': 1}, None)
    """
    spec, iou, tp, fp, fn = state
    segments = tp + (fp + fn) / 2
    present = segments > 0
    divisor = np.where(present, segments, 1)
    quality = {"pq": iou / divisor, "sq": iou / np.maximum(tp, 1), "rq": tp / divisor}

    def mean(kept):
        kept = kept & present
        means = {name: float(values[kept].mean()) if kept.any() else None for name, values in quality.items()}
        return {**means, "classes": int(kept.sum())}

    def one(c):
        scores = {name: float(values[c]) if present[c] else None for name, values in quality.items()}
        return {**scores, "tp": int(tp[c]), "fp": int(fp[c]), "fn": int(fn[c])}

    things = np.isin(np.arange(len(tp)), spec.things)
    per_class = {name: one(c) for c, name in enumerate(spec.classes)}
    return {**mean(present), "things": mean(things), "stuff": mean(~things), "per_class": per_class}


def panoptic_quality(
    ground_truths: np.ndarray | Sequence[np.ndarray],
    predictions: np.ndarray | Sequence[np.ndarray],
    spec: DatasetSpec,
    *,
    divisor: int,
    ignore: int | None = None,
    crowd: Collection[int] | Sequence[Collection[int]] | None = None,
) -> dict[str, Any]:
    """Computes the panoptic quality of a set of images that fits in memory; see `update` for the rules.

    Args:
        ground_truths: ids `class * divisor + instance`, one int32 map [y, x] or a list of them.
        predictions: as many maps of predicted ids.
        spec: classes and things.
        divisor: divisor of all maps.
        ignore: class of unlabelled pixels, those where `map // divisor == ignore`; None: `spec.ignore`.
        crowd: ids of the crowds in the ground truth: one collection for all maps, or a list of one collection per map;
            None for no crowds. Maps that `encode_panoptic` made from a source's label and instance maps have the crowds
            `[thing * divisor for thing in spec.things]`.

    Returns:
        The metrics of `summary`.

    Raises:
        UserError: the numbers of maps differ, or `update` raises; the message gives the index of the map.

    Example:
        >>> spec = DatasetSpec(("ground", "cell"), things=(1,))
        >>> ground_truth = np.array([[0, 0, 1001, 1002]])
        >>> panoptic_quality(ground_truth, ground_truth, spec, divisor=1000)["pq"]
        1.0
    """
    if len(ground_truths) and np.ndim(ground_truths[0]) == 1:  # rows: a single map
        ground_truths, predictions = [ground_truths], [predictions]
    crowd = [] if crowd is None else list(crowd)
    crowds = [crowd] * len(ground_truths) if all(isinstance(i, numbers.Integral) for i in crowd) else crowd
    if not len(ground_truths) == len(predictions) == len(crowds):
        raise UserError(
            f"There are {len(ground_truths)} maps of ground truth, {len(predictions)} of predictions and {len(crowds)} "
            "collections of crowds: pass equal numbers."
        )
    state = new(spec)
    for i, (ground_truth, prediction, ids) in enumerate(zip(ground_truths, predictions, crowds, strict=True)):
        try:
            state = update(state, ground_truth, prediction, divisor=divisor, ignore=ignore, crowd=ids)
        except UserError as error:
            raise UserError(f"Map {i}: {error}") from None
    return summary(state)


def _total(where, pixels, length):
    """Sums the pixels of each index."""
    return np.bincount(where, pixels, length).astype(np.int64)


def _check_classes(name, ids, areas, divisor, ignore, k):
    classes = ids // divisor
    bad = (classes != ignore) & ((classes < 0) | (classes >= k))
    if bad.any():
        i = bad.argmax()
        raise UserError(
            f"The {name} holds id {ids[i]} ({areas[i]} pixels), of class {classes[i]} with divisor {divisor}, but "
            f"classes are 0 .. {k - 1}, or {ignore} for unlabelled. Pass the map's own `divisor` and `ignore`."
        )
