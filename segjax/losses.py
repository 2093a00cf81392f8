"""Losses as pure functions: float32 inside, per pixel or per class, averaged by one function.

A loss returns its terms, not their mean. `weighted_mean` divides them by one global sum of weights, so that unlabelled
pixels weigh nothing and a batch spread over devices gives the loss of the whole batch: sum over sum, never
mean of means.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt


def split_ignore(label: UInt[Array, "*shape"], ignore: int) -> tuple[Int32[Array, "*shape"], Bool[Array, "*shape"]]:
    """Splits a label map as stored into classes that are safe to look up and a mask of where they are labelled.

    Args:
        label: class indices, or 0 and 1 per class in multi-label sets; unsigned, any shape.
        ignore: value that marks unlabelled pixels.

    Returns:
        The label as int32, 0 where it was `ignore`, and a bool mask of the same shape, True where it is labelled.

    Example:
        >>> label, valid = split_ignore(jnp.array([3, 255], jnp.uint8), ignore=255)
        >>> label.tolist(), valid.tolist()
        ([3, 0], [True, False])
    """
    label = label.astype(jnp.int32)
    valid = label != ignore
    return jnp.where(valid, label, 0), valid


def cross_entropy(
    logits: Float[Array, "*space k"], label: Int32[Array, "*space"], *, label_smoothing: float = 0.0
) -> Float32[Array, "*space"]:
    """Softmax cross-entropy of each pixel, or voxel.

    With `p = softmax(logits)`, class `y` and smoothing `s`: `-(1 - s) log p[y] - s mean_k(log p[k])`.

    Args:
        logits: unnormalised scores [*space, k], one channel a class; any float dtype.
        label: class index of each pixel [*space], in [0, k).
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2016, section 7).

    Returns:
        Loss of each pixel, in nats.

    Example:
        >>> cross_entropy(jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32)).round(3).tolist()
        [1.3860000371932983, 1.3860000371932983]
    """
    # Not from jax.nn.log_softmax, whose result would lie in memory for two uses: the largest map of a training step.
    logits = logits.astype(jnp.float32)
    logits -= jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    # Picked by comparison: a gather along the minor axis is slow on TPU and its gradient is a scatter.
    is_truth = jax.nn.one_hot(label, logits.shape[-1], dtype=jnp.bool_)
    picked = jnp.where(is_truth, logits, 0.0).sum(axis=-1)
    if label_smoothing:
        picked = (1 - label_smoothing) * picked + label_smoothing * logits.mean(axis=-1)
    return jnp.log(jnp.exp(logits).sum(axis=-1)) - picked


def binary_cross_entropy(
    logits: Float[Array, "*shape"],
    target: Bool[Array, "*shape"] | Float[Array, "*shape"],
    *,
    label_smoothing: float = 0.0,
) -> Float32[Array, "*shape"]:
    """Sigmoid cross-entropy of each element.

    With `p = sigmoid(logits)` and `t = (1 - s) target + s / 2`: `-t log p - (1 - t) log(1 - p)`. This equals
    `cross_entropy` of the two classes `(0, logits)` with the same smoothing `s`.

    Args:
        logits: unnormalised scores, any shape and float dtype.
        target: truth, or probability of truth, of the same shape.
        label_smoothing: share of the target spread evenly over "yes" and "no".

    Returns:
        Loss of each element, in nats.

    Example:
        >>> binary_cross_entropy(jnp.array([0.0, 90.0]), jnp.array([True, True])).round(3).tolist()
        [0.6930000185966492, 0.0]
    """
    logits, target = logits.astype(jnp.float32), target.astype(jnp.float32)
    target = (1 - label_smoothing) * target + label_smoothing / 2
    # Two softplus terms rather than softplus(x) - t x: the loss of confident, correct pixels keeps its digits.
    return target * jax.nn.softplus(-logits) + (1 - target) * jax.nn.softplus(logits)


def pixel_weights(
    label: Int32[Array, "*space"], valid: Bool[Array, "*space"], class_weights: Sequence[float | int]
) -> Float32[Array, "*space"]:
    """Weight of each pixel: that of its class, 0 where nothing is labelled.

    `weighted_mean(cross_entropy(...), pixel_weights(...))` is torch's `CrossEntropyLoss(weight, ignore_index)`: the
    divisor is the sum of the weights, not the number of pixels.

    Args:
        label: class index of each pixel, in [0, k).
        valid: True where it is labelled.
        class_weights: weight of each of the k classes, not negative.

    Returns:
        Weight of each pixel.

    Example:
        >>> label, valid = split_ignore(jnp.array([[[0, 1, 255]]], jnp.uint8), ignore=255)
        >>> pixel_weights(label, valid, (1.0, 5.0)).tolist()
        [[[1.0, 5.0, 0.0]]]
    """
    weights = jnp.asarray(class_weights, jnp.float32)
    is_class = jax.nn.one_hot(label, len(class_weights), dtype=jnp.bool_) & valid[..., None]
    return jnp.where(is_class, weights.reshape((1,) * label.ndim + (-1,)), 0.0).sum(axis=-1)


def hardest(values: Float[Array, "b *shape"], valid: Bool[Array, "b *shape"], share: float) -> Bool[Array, "b *shape"]:
    """Marks the largest losses of each image, as in deeplab2's "top-k" cross-entropy.

    Of an image with n valid losses those are marked that are not below its ceil(share n)-th largest, so all of several
    equal ones. That value is found by bisection over the bits of the floats, which is exact and needs sums only: a
    sort would gather the losses of all devices.

    Other codes mean other things by hard pixels: detectron2 takes the largest of the whole batch, tensorflow/models of
    a device's share of it, mmsegmentation those below a probability.

    Args:
        values: losses, not negative.
        valid: which of them count.
        share: of the valid losses, in (0, 1].

    Returns:
        bool [b, ...]; a mask of weights for `weighted_mean`, which divides by the number of marked losses.

    Example:
        >>> hardest(jnp.array([[0.5, 0.1, 0.9, 0.7]]), jnp.array([[True, True, True, False]]), 0.5).tolist()
        [[True, False, True, False]]
    """
    axes = tuple(range(1, values.ndim))
    # Floats that are not negative are ordered as their bits are.
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values).astype(jnp.float32), jnp.int32)
    bits = jnp.where(valid, bits, -1)
    count = valid.sum(axes, keepdims=True, dtype=jnp.int32)
    wanted = jnp.ceil(share * count.astype(jnp.float32)).astype(jnp.int32)

    def narrow(i, least):
        higher = least | jnp.int32(1) << (30 - i)
        return jnp.where((bits >= higher).sum(axes, keepdims=True, dtype=jnp.int32) >= wanted, higher, least)

    return valid & (bits >= jax.lax.fori_loop(0, 31, narrow, jnp.zeros_like(wanted)))


def weighted_mean(
    values: Float[Array, "*shape"],
    weights: Float[Array, "*shape"] | Bool[Array, "*shape"],
    axis_name: str | None = None,
) -> Float32[Array, ""]:
    """Mean of the values by weight: `sum(values weights) / sum(weights)`, 0 where all weights are 0.

    Values of weight 0 have no effect on the mean or its gradient, NaN and infinity included.

    With `axis_name` the divisor is summed over that axis and the numerator is not, which gives the device's SHARE of
    the global mean: the sum of the shares over devices is the mean over all their values. So `psum` the shares to
    report the loss and `psum` (not `pmean`) the gradients of the shares to train.

    Args:
        values: what to average, any shape.
        weights: weight of each value, not negative, of the same shape; bool counts as 0 and 1.
        axis_name: name of the mapped axis (of `jax.pmap` or `jax.vmap`) over which the batch is spread, if any.

    Returns:
        The mean, or this device's share of it.

    Example:
        >>> weighted_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])).item()
        2.0
    """
    weights = weights.astype(jnp.float32)
    values = jnp.where(weights > 0, values.astype(jnp.float32), 0.0)
    total = weights.sum()
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    return (values * weights).sum() / jnp.where(total > 0, total, 1.0)


def dice(
    probabilities: Float[Array, "b *space k"],
    target: Bool[Array, "b *space k"] | Float[Array, "b *space k"],
    valid: Bool[Array, "b *space #k"],
    *,
    over: Literal["image", "batch"] = "image",
    smooth: float = 1.0,
    axis_name: str | None = None,
) -> tuple[Float32[Array, "scope k"], Float32[Array, "scope k"]]:
    """Soft Dice loss of each class (Milletari et al. 2016, section 3, without the squares).

    With `I = sum(p t)`, `P = sum(p)` and `T = sum(t)` over the valid pixels of the scope:
    `1 - (2 I + smooth) / (P + T + smooth)`.

    A class that is nowhere in the scope has no overlap to improve: its loss only presses its probabilities down, with
    a gradient of `smooth / (P + smooth)^2` a pixel that swamps the other classes once P is small.
    `weighted_mean(loss, present)` leaves such classes out. Their false positives are then not punished, so pair Dice
    with cross-entropy, which does; or keep every class with `weighted_mean(loss, jnp.ones_like(loss))`.

    Under a mapped axis both scopes follow the share convention of `weighted_mean(loss, present, axis_name)`.
    With `over="image"` images are independent. With `over="batch"` the sums are of the global batch, every device
    holds the same loss and presence, and its share is the global mean divided by the number of devices.

    Args:
        probabilities: softmax or sigmoid of the logits.
        target: ground truth of each class, or its probability.
        valid: True where it is labelled, which is where pixels count; one channel for all classes or one a class.
        over: scope of the sums: each "image" alone, or the whole "batch".
        smooth: pixels added to both terms of the fraction. It makes Dice 1 where class and prediction are both
            empty and bounds the gradient for small objects. 1 is the default of nnU-Net's soft Dice. With 0 empty
            classes lose 1.
        axis_name: name of the mapped axis over which the batch is spread, if any.

    Returns:
        Loss, and 1 where the class is in the scope's ground truth, else 0; [b, k] over images, [1, k] over the batch.

    Example:
        >>> truth = jnp.array([[[[True, False], [True, False]]]])
        >>> loss, present = dice(truth.astype(jnp.float32), truth, jnp.ones((1, 1, 2, 1), bool))
        >>> loss.tolist(), present.tolist()
        ([[0.0, 0.0]], [[1.0, 0.0]])
    """
    axes = tuple(range(1 if over == "image" else 0, target.ndim - 1))
    predicted = jnp.where(valid, probabilities.astype(jnp.float32), 0.0)
    truth = jnp.where(valid, target.astype(jnp.float32), 0.0)
    sums = jnp.stack([a.sum(axis=axes) for a in (predicted * truth, predicted, truth)])
    if over == "batch":
        sums = sums[:, None]
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
    both, predicted, truth = sums
    # The floor, nnU-Net's, only acts when smooth = 0 and prediction and truth are both empty.
    loss = 1 - (2 * both + smooth) / jnp.maximum(predicted + truth + smooth, 1e-8)
    return loss, (truth > 0).astype(jnp.float32)
