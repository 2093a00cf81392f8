"""Semantic segmentation: a class for each pixel, one of two, or any number at once."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from segjax import losses
from segjax.checks import UserError, check_choice
from segjax.metrics import confusion
from segjax.nn.resize import fit, resize
from segjax.spec import DatasetSpec
from segjax.tasks.task import Task


def create(
    spec: DatasetSpec,
    *,
    mode: str = "multiclass",
    cross_entropy: float = 1.0,
    dice: float = 0.0,
    dice_over: str = "image",
    dice_smooth: float = 1.0,
    class_weights: Sequence[float] = (),
    label_smoothing: float = 0.0,
    hardest: float = 1.0,
    aux: float = 0.4,
) -> Task:
    """Makes the task; `mode` sets head, loss, activation and metric together.

        mode         logits   loss                      prediction
        multiclass   k        softmax cross-entropy     largest logit
        binary       1        binary cross-entropy      logit above 0
        multilabel   k        binary cross-entropy      each logit above 0

    and the loss is cross_entropy * that + dice * soft Dice of the softmax or sigmoid. The same loss of an auxiliary
    head's logits, where the model has one, is added `aux` times.

    Args:
        spec: the data set, as its source describes it.
        mode: how many classes a pixel has.
        cross_entropy: weight of the cross-entropy.
        dice: weight of soft Dice.
        dice_over: pixels that one Dice is taken over: each "image", or the global "batch".
        dice_smooth: added to numerator and denominator of Dice, in pixels.
        class_weights: weight of each class in the cross-entropy; empty for equal ones.
        label_smoothing: share of the target that is spread evenly over the classes.
        hardest: share of each image's values, the largest, that count in the cross-entropy, see `losses.hardest`.
        aux: weight of the auxiliary head's loss; 0.4 in PSPNet, section 5.2 (arXiv:1612.01105).

    Returns:
        The task.

    Raises:
        UserError: an unknown choice, labels of another kind than the mode, no loss, or a wrong number of weights.
    """
    check_choice("task.mode", mode, ("multiclass", "binary", "multilabel"))
    check_choice("task.dice_over", dice_over, ("image", "batch"))
    if (spec.mode == "multilabel") != (mode == "multilabel"):
        raise UserError(
            f"task.mode={mode!r} does not fit the data set, whose labels are {spec.mode}: set task.mode={spec.mode!r}."
        )
    if min(cross_entropy, dice, aux) < 0 or cross_entropy + dice == 0:
        raise UserError("task.cross_entropy, task.dice and task.aux must not be negative, nor the first two both 0.")
    if not 0 < hardest <= 1:
        raise UserError(f"task.hardest={hardest} must be more than 0 and at most 1.")
    if class_weights and len(class_weights) != len(spec.classes):
        raise UserError(f"task.class_weights has {len(class_weights)} values for {len(spec.classes)} classes.")
    spec = dataclasses.replace(spec, mode=mode)
    classes = len(spec.classes)

    def loss(outputs, batch, axis_name=None):
        total, terms = loss_of(outputs["logits"], batch, axis_name)
        if "aux" in outputs:
            terms["aux"], _ = loss_of(outputs["aux"], batch, axis_name)
            total += aux * terms["aux"]
        return total, terms

    def loss_of(logits, batch, axis_name):
        label, valid = losses.split_ignore(batch["label"], spec.ignore)
        logits = resize(logits, label.shape[1:3])
        if mode == "multiclass":
            values = losses.cross_entropy(logits, label, label_smoothing=label_smoothing)
            probabilities, target = jax.nn.softmax(logits), jax.nn.one_hot(label, classes, dtype=bool)
        else:
            target = label == 1 if mode == "multilabel" else (label == 1)[..., None]
            values = losses.binary_cross_entropy(logits, target, label_smoothing=label_smoothing)
            probabilities = jax.nn.sigmoid(logits)
        if mode == "multilabel":
            per_class = jnp.array(class_weights or (1.0,) * classes, jnp.float32).reshape(1, 1, 1, -1)
            weights = jnp.where(valid, per_class, 0.0)
        else:
            weights = losses.pixel_weights(label, valid, class_weights) if class_weights else valid
            values, valid = values.reshape(valid.shape), valid[..., None]
        if hardest < 1:
            weights = weights.astype(jnp.float32)
            weights = jnp.where(losses.hardest(values * weights, weights > 0, hardest), weights, 0.0)
        terms = {}
        if cross_entropy:
            terms["cross_entropy"] = losses.weighted_mean(values, weights, axis_name)
        if dice:
            scores, present = losses.dice(
                probabilities, target, valid, over=dice_over, smooth=dice_smooth, axis_name=axis_name
            )
            terms["dice"] = losses.weighted_mean(scores, present, axis_name)
        factors = {"cross_entropy": cross_entropy, "dice": dice}
        return sum(factors[name] * value for name, value in terms.items()), terms

    def label_logits(outputs, content, canvas, size, exact):
        logits = outputs["logits"].astype(jnp.float32)
        return resize(logits, size) if exact else fit(logits, content, canvas, size)

    def predict(outputs, content, canvas, size, exact):
        logits = label_logits(outputs, content, canvas, size, exact)
        return {"label": _decide(logits, mode), "probability": _activate(logits, mode)}

    def measure(outputs, batch, canvas, exact):
        label, valid = losses.split_ignore(batch["label"], spec.ignore)
        logits = label_logits(outputs, batch["content"], canvas, label.shape[1:3], exact)
        if mode == "multilabel":
            return confusion.multilabel_confusion(_decide(logits, mode), label == 1, valid)
        return confusion.confusion_matrix(_decide(logits, mode), label, valid, classes)

    return Task(
        spec=spec,
        divisor=0,
        loss=loss,
        predict=predict,
        measure=measure,
        new_metric=functools.partial(confusion.new_state, classes, multilabel=mode == "multilabel"),
        update=confusion.update,
        summary=functools.partial(confusion.summary, names=spec.classes),
    )


def _decide(logits, mode):
    """Class index of each pixel int32 [b, y, x]; multi-label: whether each class is there, bool [b, y, x, k]."""
    if mode == "multiclass":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return logits > 0 if mode == "multilabel" else (logits[..., 0] > 0).astype(jnp.int32)


def _activate(logits, mode):
    """Probabilities [b, y, x, k]; binary: of the foreground, [b, y, x, 1]."""
    return jax.nn.softmax(logits) if mode == "multiclass" else jax.nn.sigmoid(logits)
