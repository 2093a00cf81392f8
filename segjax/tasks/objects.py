"""Shared code of panoptic and instance segmentation: objects vote on their class, and images are scored one by one."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from segjax import losses, spatial
from segjax.checks import UserError
from segjax.metrics import confusion
from segjax.objectives import Decoded, Objective
from segjax.objectives.objective import require_things
from segjax.spec import DatasetSpec, Segments, valid_pixels
from segjax.tasks.task import Task


def make_object_task(
    spec: DatasetSpec,
    objective: Objective,
    *,
    divisor: int,
    stuff_area: int,
    overlap: bool,
    new: Callable[[], Any],
    score: Callable[[Any, dict[str, np.ndarray]], Any],
    merge: Callable[[Any, Any], Any],
    summary: Callable[[Any], dict[str, Any]],
) -> Task:
    """Makes a task that predicts objects, and that scores them along with the confusion of classes.

    Args:
        spec: the data set.
        objective: an objective whose `decode` finds objects.
        divisor: divisor of written panoptic ids.
        stuff_area: stuff with fewer pixels becomes void.
        overlap: keep masks that overlap; otherwise each pixel goes to the mask with the highest score.
        new: () -> an empty metric state of objects.
        score: (state, image) -> state, where `image` holds the measured arrays of one image.
        merge: (state, state) -> state.
        summary: state -> metrics.

    Returns:
        The task.

    Raises:
        UserError: the data set has no things or several classes per pixel, or the objective finds no objects.
    """
    require_things(spec)
    if not objective.needs_instances:
        raise UserError("The task needs objects, which the objective does not learn: set objective.name='centres'.")
    limit = min(1 << 16, (2**31 - 1) // (max(spec.ignore, len(spec.classes)) + 1))  # ids are int32
    if divisor > limit:
        raise UserError(f"task.divisor={divisor} must be at most {limit}: ids of these classes must fit in 32 bits.")
    k = len(spec.classes)

    def decide_all(maps, geometry):
        decoded, inside = objective.decode(maps, geometry), valid_pixels(geometry)
        logits = decoded.logits
        if decoded.masks is not None:
            decoded = flatten(decoded, inside)
        if decoded.instance is None:
            raise UserError("The task needs objects, which the objective does not find: choose another objective.name.")
        label, instance, semantic, _, scores = vote(
            decoded.logits,
            decoded.instance,
            decoded.confidence,
            inside,
            things=spec.things,
            ignore=spec.ignore,
            stuff_area=stuff_area,
        )
        segments = Segments(label, instance, scores, maps=decoded.shown)
        if decoded.masks is not None:
            segments = segments.replace(score=decoded.score)
            if overlap:
                segments = segments.replace(masks=decoded.masks & inside[:, None], classes=decoded.classes)
        return segments, semantic, logits

    def decide(maps, geometry, probabilities=False):
        segments, _, logits = decide_all(maps, geometry)
        return segments.replace(probability=jax.nn.softmax(logits)) if probabilities else segments

    def measure(maps, batch, geometry):
        label, valid = losses.split_ignore(batch["label"], spec.ignore)
        segments, semantic, _ = decide_all(maps, geometry)
        measured = {
            "index": batch["index"],
            # In the smallest dtypes, because maps are copied to the host for scoring.
            "label": batch["label"],
            "instance": batch["instance"],
            "found_label": segments.label.astype(spec.label_dtype),
            "found_instance": segments.instance.astype(jnp.uint16),
            "scores": segments.score,
            "confusion": confusion.confusion_matrix(label, semantic, valid, k),
        }
        if segments.masks is not None:
            measured |= {"masks": segments.masks, "classes": segments.classes}
        return measured, segments

    def update(state, measured):
        matrices, scored = confusion.update(state[0], measured["confusion"]), state[1]
        for i in np.flatnonzero(measured["index"] >= 0):
            image = {key: value[i] for key, value in measured.items()}
            if (image["label"] != spec.ignore).any():
                scored = score(scored, image)
        return matrices, scored

    return Task(
        spec=spec,
        objective=objective,
        decide=decide,
        measure=measure,
        new_metric=lambda: (confusion.new(spec), new()),
        update=update,
        merge=lambda a, b: (confusion.merge(a[0], b[0]), merge(a[1], b[1])),
        summary=lambda state: summary(state[1]) | pixel_metrics(state[0]),
        needs_instances=True,
        divisor=divisor,
    )


def pixel_metrics(state: confusion.ConfusionState) -> dict[str, Any]:
    """Returns the metrics of classes that stand beside those of objects."""
    metrics = confusion.summary(state)
    return {key: metrics[key] for key in ("mIoU", "iou_per_class", "pixels")}


def vote(
    logits: Float[Array, "b y x k"],
    instance: Int32[Array, "b y x"],
    confidence: Float[Array, "b n"],
    inside: Bool[Array, "b y x"],
    *,
    things: Sequence[int],
    ignore: int,
    stuff_area: int,
) -> tuple[
    Int32[Array, "b y x"], Int32[Array, "b y x"], Int32[Array, "b y x"], Int32[Array, "b n"], Float32[Array, "b n"]
]:
    """Merges classes and objects into one map by majority vote: Panoptic-DeepLab, section 3.2 (arXiv:1911.10194).

    Thing pixels are assigned to objects; an object gets the majority class of its pixels, the first on ties. Thing
    pixels without an object, and stuff with fewer than `stuff_area` pixels, become void.

    Args:
        logits: class logits.
        instance: object number of each pixel, 1 .. n, or 0 for none; ignored on stuff.
        confidence: confidence of the objects.
        inside: True for pixels of the image; other pixels are void and do not vote.
        things: indices of the thing classes.
        ignore: label of void.
        stuff_area: minimum pixels of a stuff class; 2048 for Cityscapes in Panoptic-DeepLab's code.

    Returns:
        Class of each pixel, `ignore` for void; object number, 0 for stuff and void; class of the largest logit; class
        of each object, -1 if it has no pixels; and its score, the mean probability of its class over its pixels times
        its confidence.

    Example:
        >>> logits = jnp.array([[[[0.0, 9.0], [0.0, 9.0], [9.0, 0.0]]]])
        >>> found = vote(logits, jnp.array([[[1, 1, 1]]]), jnp.array([[0.9]]), jnp.ones((1, 1, 3), bool),
        ...     things=(1,), ignore=255, stuff_area=0)
        >>> found[0].tolist(), found[1].tolist(), round(found[4].item(), 3)
        ([[[1, 1, 0]]], [[[1, 1, 0]]], 0.9)
    """
    b, _, _, k = logits.shape
    n = confidence.shape[1]
    logits = logits.astype(jnp.float32)
    semantic = jnp.argmax(logits, -1).astype(jnp.int32)
    # The thing classes are known at trace time, which avoids a gather.
    is_thing = jnp.zeros(semantic.shape, bool)
    for thing in things:
        is_thing |= semantic == thing
    instance = jnp.where(is_thing & inside, instance, 0)

    # One count of (object, class) pairs gives the votes and the areas of stuff, and from them the class of each pair.
    pairs = instance * k + semantic
    counted = spatial.pad_rows_to_shards(jnp.where(inside, pairs, (n + 1) * k), (n + 1) * k)
    counts = jax.vmap(lambda i: jnp.zeros((n + 1) * k, jnp.int32).at[i].add(1, mode="drop"))(counted)
    counts = counts.reshape(b, n + 1, k)
    is_stuff = jnp.array([i not in things for i in range(k)])[None]
    has_pixels = counts[:, 1:].sum(-1) > 0
    classes = jnp.where(has_pixels, jnp.argmax(counts[:, 1:], -1).astype(jnp.int32), -1)
    stuff = jnp.where(is_stuff & (counts[:, 0] >= stuff_area), jnp.arange(k, dtype=jnp.int32)[None], ignore)
    decided = jnp.concatenate([stuff[:, None], jnp.broadcast_to(classes[..., None], (b, n, k))], 1)
    label = jax.vmap(lambda table, i: table[i])(decided.reshape(b, -1), pairs)
    label = jnp.where(inside, label, ignore)

    picked = jnp.where(jax.nn.one_hot(label, k, dtype=bool), logits, 0.0).sum(-1)
    probability = jnp.exp(picked - jax.nn.logsumexp(logits, -1))
    totals = jax.vmap(lambda i, p: jnp.zeros(n + 1, jnp.float32).at[i].add(p))(
        *map(spatial.pad_rows_to_shards, (instance, probability))
    )
    totals = totals[:, 1:]
    area = jnp.maximum(counts[:, 1:].sum(-1), 1).astype(jnp.float32)
    scores = jnp.where(has_pixels, totals / area * confidence, 0.0)
    return label, instance, semantic, classes, scores


def flatten(decoded: Decoded, inside: Bool[Array, "b y x"]) -> Decoded:
    """Flattens masks that may overlap: each pixel goes to the mask with the highest score that covers it.

    The class of each mask replaces the logits of its pixels, so its pixels all vote for that class.

    Args:
        decoded: decoded maps with `masks`, `classes` and `score`.
        inside: True for pixels of the image.

    Returns:
        The same with `instance` and `confidence`.
    """
    taken = decoded.classes >= 0
    sure = jnp.where(decoded.masks & taken[..., None, None], decoded.score[..., None, None], -jnp.inf)
    holds = jnp.isfinite(sure.max(1)) & inside
    instance = jnp.where(holds, sure.argmax(1).astype(jnp.int32) + 1, 0)
    classes = jnp.pad(decoded.classes, ((0, 0), (1, 0)))
    own = jax.vmap(lambda table, i: table[i])(classes, instance)
    certain = jnp.where(jax.nn.one_hot(own, decoded.logits.shape[-1], dtype=bool), 0.0, -1e9)
    logits = jnp.where(holds[..., None], certain, decoded.logits)
    return decoded._replace(logits=logits, instance=instance, confidence=decoded.score)
