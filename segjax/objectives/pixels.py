"""Learning the class of each pixel: cross-entropy and Dice, for one class a pixel, one of two, or any number."""

from typing import Annotated

import jax
import jax.numpy as jnp

from segjax import losses
from segjax.checks import Key, UserError
from segjax.objectives.maps import Maps, to_output, to_size
from segjax.objectives.objective import Decoded, Objective
from segjax.spec import DatasetSpec


def create(
    spec: DatasetSpec,
    *,
    cross_entropy: Annotated[float, Key("weight of the (binary) cross-entropy in the loss", "[0, inf)")] = 1.0,
    dice: Annotated[float, Key("weight of soft Dice in the loss", "[0, inf)")] = 0.0,
    dice_over: Annotated[str, Key("the pixels that one Dice is taken over", ("image", "batch"))] = "image",
    dice_smooth: Annotated[float, Key("pixels added to Dice's numerator and denominator", "[0, inf)")] = 1.0,
    class_weights: Annotated[tuple[float, ...], Key("one a class; `segjax inspect` prints some", "[0, inf)")] = (),
    label_smoothing: Annotated[float, Key("share of the target spread over all classes", "[0, 1)")] = 0.0,
    hardest: Annotated[float, Key("share of each image's pixels that count, by largest loss", "(0, 1]")] = 1.0,
    aux: Annotated[float, Key("weight of an auxiliary head's loss (0.4: PSPNet, section 5.2)", "[0, inf)")] = 0.4,
) -> Objective:
    """Makes the objective; the mode of the data set sets the loss.

        mode         logits   loss
        multiclass   k        softmax cross-entropy
        binary       1        binary cross-entropy
        multilabel   k        binary cross-entropy

    and the loss is cross_entropy * that + dice * soft Dice of the softmax or sigmoid. The same loss of an auxiliary
    head's logits, where the model has one, is added `aux` times. The keyword arguments are keys of the section
    `objective`.

    Args:
        spec: the data set, as the task reads it.

    Returns:
        The objective.

    Raises:
        UserError: no loss, or a wrong number of weights.
    """
    if cross_entropy + dice == 0:
        raise UserError("objective.cross_entropy and objective.dice are both 0: give one of them a weight.")
    if class_weights and len(class_weights) != len(spec.classes):
        raise UserError(f"objective.class_weights has {len(class_weights)} values for {len(spec.classes)} classes.")
    classes, mode = len(spec.classes), spec.mode

    def loss(outputs, batch, key=None, progress=None, axis_name=None):
        total, terms = loss_of(outputs["logits"], batch, axis_name)
        if "aux" in outputs:
            terms["aux"], _ = loss_of(outputs["aux"], batch, axis_name)
            total += aux * terms["aux"]
        return total, terms

    def loss_of(logits, batch, axis_name):
        label, valid = losses.split_ignore(batch["label"], spec.ignore)
        logits = to_size(logits, label.shape[1 : logits.ndim - 1])
        if mode == "multiclass":
            values = losses.cross_entropy(logits, label, label_smoothing=label_smoothing)
            probabilities, target = jax.nn.softmax(logits), jax.nn.one_hot(label, classes, dtype=bool)
        else:
            target = label == 1 if mode == "multilabel" else (label == 1)[..., None]
            values = losses.binary_cross_entropy(logits, target, label_smoothing=label_smoothing)
            probabilities = jax.nn.sigmoid(logits)
        if mode == "multilabel":
            per_class = jnp.array(class_weights or (1.0,) * classes, jnp.float32)
            weights = jnp.where(valid, jnp.broadcast_to(per_class, label.shape), 0.0)
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

    return Objective(
        outputs=frozenset({"logits"}),
        loss=loss,
        maps=lambda outputs, geometry: Maps({"logits": outputs["logits"]}),
        decode=lambda maps, geometry: Decoded(to_output(maps, geometry).scalars["logits"]),
    )
