"""The objective of semantic segmentation: cross-entropy and Dice for multi-class, binary or multi-label pixels."""

from typing import Annotated

import jax
import jax.numpy as jnp

from segjax import losses
from segjax.checks import Key, UserError
from segjax.objectives.maps import Maps, to_output, to_size
from segjax.objectives.objective import Decoded, LossOfMeans, Objective
from segjax.spec import DatasetSpec


def create(
    spec: DatasetSpec,
    *,
    cross_entropy: Annotated[float, Key("loss weight of the (binary) cross-entropy", "[0, inf)")] = 1.0,
    dice: Annotated[float, Key("loss weight of soft Dice", "[0, inf)")] = 0.0,
    dice_over: Annotated[
        str, Key("pixels that Dice sums over; batch: not with accumulation", ("image", "batch"))
    ] = "image",
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
    factors = {"cross_entropy": cross_entropy, "dice": dice}

    def loss(outputs, batch, key=None, progress=None, axis_name=None):
        means, divisors = means_of(outputs["logits"], batch, axis_name)
        total, terms = weighted_sum(means), dict(means)
        shares = {name: factors[name] * mean for name, mean in means.items()}
        if "aux" in outputs:
            beside, _ = means_of(outputs["aux"], batch, axis_name)
            terms["aux"] = weighted_sum(beside)
            total += aux * terms["aux"]
            shares = {name: share + aux * factors[name] * beside[name] for name, share in shares.items()}
        return total, terms, {name: (share, divisors[name]) for name, share in shares.items()}

    def weighted_sum(means):
        return sum(factors[name] * mean for name, mean in means.items())

    def means_of(logits, batch, axis_name):
        label, valid = losses.split_ignore(batch["label"], spec.ignore)
        logits = to_size(logits, label.shape[1 : logits.ndim - 1])
        makers = {"cross_entropy": cross_entropy_of, "dice": dice_of}
        means = {name: makers[name](logits, label, valid, axis_name) for name, factor in factors.items() if factor}
        return [{name: pair[i] for name, pair in means.items()} for i in (0, 1)]

    def cross_entropy_of(logits, label, valid, axis_name):
        # With smoothing, a pixel's target has a share of each class, and each share the weight of its class.
        of_shares = class_weights if label_smoothing and mode != "multilabel" else ()
        settings = {"label_smoothing": label_smoothing, "class_weights": of_shares}
        if mode == "multiclass":
            values = losses.cross_entropy(logits, label, **settings)
        else:
            target = (label == 1).reshape(logits.shape)
            values = losses.binary_cross_entropy(logits, target, **settings).reshape(valid.shape)
        if mode == "multilabel":
            per_class = jnp.array(class_weights or (1.0,) * classes, jnp.float32)
            weights = jnp.where(valid, jnp.broadcast_to(per_class, label.shape), 0.0)
        else:
            weights = losses.pixel_weights(label, valid, class_weights) if class_weights else valid
        counted, divided_by = (valid, weights) if of_shares else (weights, None)
        if ohem_fraction < 1:
            counted = counted.astype(jnp.float32)
            counted = jnp.where(losses.ohem_mask(values * counted, counted > 0, ohem_fraction), counted, 0.0)
            divided_by = counted * weights if of_shares else None
        return losses.mean_and_divisor(values, counted, axis_name, divided_by)

    def dice_of(logits, label, valid, axis_name):
        valid = valid if mode == "multilabel" else valid[..., None]
        logits = jnp.where(valid, logits, 0.0)  # else NaN logits of ignored pixels would have NaN gradients
        if mode == "multiclass":
            probabilities, target = jax.nn.softmax(logits), jax.nn.one_hot(label, classes, dtype=bool)
        else:
            probabilities, target = jax.nn.sigmoid(logits), (label == 1).reshape(logits.shape)
        scores, present = losses.dice(
            probabilities, target, valid, over=dice_over, smooth=dice_smooth, axis_name=axis_name
        )
        return losses.mean_and_divisor(scores, present, axis_name)

    return Objective(
        outputs=frozenset({"logits"}),
        loss=LossOfMeans(
            parts=tuple(name for name, factor in factors.items() if factor),
            compute=loss,
            whole_batch="objective.dice_over='batch'" if dice_over == "batch" else "",
        ),
        maps=lambda outputs, geometry: Maps({"logits": outputs["logits"]}),
        decode=lambda maps, geometry: Decoded(to_output(maps, geometry).scalars["logits"]),
    )
