"""Panoptic and instance segmentation: classes, centres of objects, and offsets to them, scored in two ways."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax import losses, postprocess, targets
from segjax.checks import UserError
from segjax.metrics import confusion, instance, panoptic
from segjax.nn.resize import fit, resize
from segjax.spec import DatasetSpec, encode
from segjax.tasks.task import Task


class Scores(NamedTuple):
    """How objects are scored.

    new: spec -> an empty score.
    update: (score, image, spec, divisor) -> score, with what was measured of one image: "label" and "instance" [y, x],
        "found_label" and "found_instance" [y, x], and "scores" float32 [n] of the objects 1 .. n that were found.
    summary: (score, spec, top_k) -> figures, `top_k` being the greatest number of objects in an image.
    """

    new: Callable[[DatasetSpec], Any]
    update: Callable[..., Any]
    summary: Callable[..., dict[str, Any]]


def create(
    spec: DatasetSpec,
    *,
    scores: Scores,
    cross_entropy: float = 1.0,
    centre: float = 200.0,
    offset: float = 0.01,
    hardest: float = 0.2,
    sigma: float | None = None,
    small_area: int = 4096,
    small_weight: float = 3.0,
    divisor: int = 1000,
    threshold: float = 0.1,
    nms_kernel: int = 7,
    top_k: int = 200,
    stuff_area: int = 2048,
) -> Task:
    """Makes the task, whose loss is that of Panoptic-DeepLab, section 3.1 (arXiv:1911.10194).

        cross_entropy * softmax cross-entropy of the hardest pixels of each image
        + centre * squared error of the centre map
        + offset * (|dy error| + |dx error|) of the pixels of objects

    at the size of the label, each a sum over all images by one sum of weights.

    Args:
        spec: the data set, as its source describes it.
        scores: how objects are scored.
        cross_entropy: weight of the cross-entropy.
        centre: weight of the squared error of the centre map; 200 in the paper.
        offset: weight of the absolute error of the offsets, in pixels; 0.01 in the paper.
        hardest: share of each image's pixels, those of the largest cross-entropy, that count; 0.2 in deeplab2.
        sigma: standard deviation of a centre's Gaussian in pixels; None for 8 in crops of 1025 rows and columns or
            more (deeplab2), in proportion in smaller ones, and at least 4, a pixel of the network's maps.
        small_area: objects of fewer pixels weigh more in the cross-entropy; 4096 in deeplab2.
        small_weight: by so much; 3 in the paper.
        divisor: more than there are objects in an image.
        threshold: least value of a centre, see `segjax.postprocess.panoptic`.
        nms_kernel: rows and columns in which a centre is the largest value, odd.
        top_k: greatest number of objects that are found in an image; average precision looks at that many, and at
            COCO's 100 at least.
        stuff_area: stuff of fewer pixels is void.

    Returns:
        The task.

    Raises:
        UserError: a data set without things, or a number out of range.
    """
    if not spec.things:
        raise UserError(
            f"Objects need classes that are things, and of {', '.join(spec.classes)} none is one. Set source.things, "
            "or use task.name='semantic'."
        )
    if spec.mode == "multilabel":
        raise UserError("Objects need masks of one class a pixel: leave {class} out of source.masks.")
    if min(cross_entropy, centre, offset, small_weight, small_area, stuff_area) < 0 or cross_entropy + centre == 0:
        raise UserError(
            "task.cross_entropy, centre, offset, small_weight, small_area and stuff_area must not be negative, nor the "
            "first two both 0."
        )
    if not 0 < hardest <= 1 or (sigma is not None and sigma <= 0):
        raise UserError(f"task.hardest={hardest} must be in (0, 1], and task.sigma={sigma} None or more than 0.")
    if nms_kernel < 1 or nms_kernel % 2 == 0 or top_k < 1:
        raise UserError(f"task.nms_kernel={nms_kernel} must be odd and positive, task.top_k={top_k} positive.")
    largest = min(1 << 16, (2**31 - 1) // (max(spec.ignore, len(spec.classes)) + 1))  # ids are int32
    if not top_k < divisor <= largest:
        raise UserError(
            f"task.divisor={divisor} must be more than task.top_k={top_k}, and at most {largest} with these classes."
        )
    factors = {"cross_entropy": cross_entropy, "centre": centre, "offset": offset}
    settings = {"threshold": threshold, "nms_kernel": nms_kernel, "top_k": top_k, "stuff_area": stuff_area}

    def make_targets(label, instance):
        return targets.make(
            label,
            instance,
            things=spec.things,
            ignore=spec.ignore,
            count=divisor,
            sigma=max(4.0, 8.0 * min(1.0, min(label.shape[1:]) / 1025)) if sigma is None else sigma,
            small_area=small_area,
            small_weight=small_weight,
        )

    def loss(outputs, batch, axis_name=None):
        label, valid = losses.split_ignore(batch["label"], spec.ignore)
        wanted = make_targets(batch["label"], batch["instance"])
        found = _at_size(outputs, label.shape[1:])
        values = losses.cross_entropy(found["logits"], label) * wanted.semantic_weight
        hard = losses.hardest(values, valid, hardest)
        error = jnp.abs(found["offset"] - wanted.offset).sum(-1)
        terms = {
            "cross_entropy": losses.weighted_mean(values, hard, axis_name),
            "centre": losses.weighted_mean(
                jnp.square(found["centre"] - wanted.centre), wanted.centre_weight, axis_name
            ),
            "offset": losses.weighted_mean(error, wanted.offset_weight, axis_name),
        }
        return sum(factors[name] * value for name, value in terms.items()), terms

    def find(outputs, content, canvas, size, exact):
        maps = _at_size(outputs, size) if exact else _fitted(outputs, content, canvas, size)
        rows, columns = (jnp.arange(n, dtype=jnp.int32)[None] < content[:, i + 2, None] for i, n in enumerate(size))
        inside = rows[:, :, None] & columns[:, None, :]
        found = postprocess.panoptic(**maps, inside=inside, things=spec.things, ignore=spec.ignore, **settings)
        return maps, found

    def predict(outputs, content, canvas, size, exact):
        maps, found = find(outputs, content, canvas, size, exact)
        return {
            "label": found.label,
            "instance": found.instance,
            "score": found.scores,
            "probability": jax.nn.softmax(maps["logits"]),
            "centre": maps["centre"],
            "offset": maps["offset"],
        }

    def measure(outputs, batch, canvas, exact):
        label, valid = losses.split_ignore(batch["label"], spec.ignore)
        _, found = find(outputs, batch["content"], canvas, label.shape[1:3], exact)
        return {
            "index": batch["index"],
            # As small as they come: maps go to the host, for it scores them.
            "label": batch["label"],
            "instance": batch["instance"],
            "found_label": found.label.astype(spec.label_dtype),
            "found_instance": found.instance.astype(jnp.uint16),
            "scores": found.scores,
            "confusion": confusion.confusion_matrix(found.semantic, label, valid, len(spec.classes)),
        }

    def update(score, found):
        matrices, score = confusion.update(score[0], found["confusion"]), score[1]
        for i in np.flatnonzero(found["index"] >= 0):
            one = {key: value[i] for key, value in found.items()}
            if (one["label"] != spec.ignore).any():
                score = scores.update(score, one, spec, divisor)
        return matrices, score

    def summary(score):
        figures = confusion.summary(score[0], spec.classes)
        kept = {key: figures[key] for key in ("mIoU", "iou_per_class", "pixels")}
        return scores.summary(score[1], spec, top_k) | kept

    return Task(
        spec=spec,
        divisor=divisor,
        loss=loss,
        predict=predict,
        measure=measure,
        new_metric=lambda: (confusion.new_state(len(spec.classes)), scores.new(spec)),
        update=update,
        summary=summary,
        targets=make_targets,
    )


def _at_size(outputs, size):
    """Logits, centres and offsets at another size; offsets in its pixels."""
    h, w = outputs["centre"].shape[1:3]
    return _split(resize(_joined(outputs, jnp.array([[size[0] / h, size[1] / w]], jnp.float32)), size))


def _fitted(outputs, content, canvas, size):
    """The same for the part of each image that `content` tells."""
    h, w = outputs["centre"].shape[1:3]
    shown = content.astype(jnp.float32)
    factor = shown[:, 2:] * jnp.array([[canvas[0] / h, canvas[1] / w]], jnp.float32) / shown[:, :2]
    return _split(fit(_joined(outputs, factor), content, canvas, size))


def _joined(outputs, factor):
    """All maps in one, to be resized at once; offsets times `factor` [b or 1, 2]."""
    parts = (outputs["logits"], outputs["centre"][..., None], outputs["offset"] * factor[:, None, None])
    return jnp.concatenate([x.astype(jnp.float32) for x in parts], -1)


def _split(maps):
    return {"logits": maps[..., :-3], "centre": maps[..., -3], "offset": maps[..., -2:]}


def _update_panoptic(score, image, spec, divisor):
    truth = encode(image["label"], image["instance"], divisor)
    found = encode(image["found_label"], image["found_instance"], divisor)
    crowds = [thing * divisor for thing in spec.things]
    return panoptic.update(score, truth, found, divisor=divisor, ignore=spec.ignore, crowd=crowds)


def _summarise_panoptic(score, spec, top_k):
    found = panoptic.summary(score, spec)
    figures = {kind.upper(): found[kind] for kind in ("pq", "sq", "rq")}
    figures |= {f"PQ_{group}": found[group]["pq"] for group in ("things", "stuff")}
    for kind in ("pq", "sq", "rq"):
        figures[f"{kind}_per_class"] = {name: each[kind] for name, each in found["per_class"].items()}
    return figures


def _update_instance(score, image, spec, divisor):
    # Average precision knows no pixels without truth: what was found there is left out.
    found = np.where(image["label"] == spec.ignore, image["label"], image["found_label"])
    truths = instance.objects(image["label"], image["instance"], spec)
    return instance.update(
        score, truths, instance.objects(found, image["found_instance"], spec, scores=image["scores"])
    )


def _summarise_instance(score, spec, top_k):
    # COCO looks at the 100 surest objects of an image; who sets top_k to more of them wants them scored.
    return instance.summary(score, spec, max_detections=max(100, top_k))


PANOPTIC = Scores(lambda spec: panoptic.new_state(len(spec.classes)), _update_panoptic, _summarise_panoptic)
INSTANCE = Scores(lambda spec: instance.new_state(), _update_instance, _summarise_instance)
