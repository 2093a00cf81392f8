"""The objective of semantic segmentation: cross-entropy and Dice for multi-class, binary or multi-label pixels."""

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
    cross_entropy: Annotated[float, Key("loss weight of the (binary) cross-entropy", "[0, inf)")] = 1.0,
    dice: Annotated[float, Key("loss weight of soft Dice", "[0, inf)")] = 0.0,
    dice_over: Annotated[str, Key("pixels that Dice sums over", ("image", "batch"))] = "image",
    dice_smooth: Annotated[float, Key("added to Dice's numerator and denominator", "[0, inf)")] = 1.0,
    class_weights: Annotated[tuple[float, ...], Key("one per class; see `segjax inspect`", "[0, inf)")] = (),
    label_smoothing: Annotated[float, Key("fraction of the target spread over all classes", "[0, 1)")] = 0.0,
    ohem_fraction: Annotated[float, Key("OHEM: fraction of each image's pixels, by largest loss", "(0, 1]")] = 1.0,
    aux: Annotated[float, Key("loss weight of the auxiliary head (0.4: PSPNet, section 5.2)", "[0, inf)")] = 0.4,
) -> Objective:
    """Makes the objective; the mode of the data set selects the loss.

        mode         logits   loss
        multiclass   k        softmax cross-entropy
        binary       1        binary cross-entropy
        multilabel   k        binary cross-entropy

    The total is cross_entropy * this loss + dice * soft Dice of the softmax or sigmoid. If the model has an auxiliary
    head, the same loss of its logits is added with weight `aux`. The keyword arguments are keys of the section
    `objective`.

    Args:
        spec: the data set, as the task reads it.

    Returns:
        The objective.

    Raises:
        UserError: all loss weights are 0, or the number of class weights is wrong.
    """
    if cross_entropy + dice == 0:
        raise UserError("objective.cross_entropy and objective.dice are both 0: set one of them above 0.")
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
        if ohem_fraction < 1:
            weights = weights.astype(jnp.float32)
            weights = jnp.where(losses.ohem_mask(values * weights, weights > 0, ohem_fraction), weights, 0.0)
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
