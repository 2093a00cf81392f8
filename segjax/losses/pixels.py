"""Softmax cross-entropy of each pixel, pixel weights, and the weighted mean that all losses use."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt

from segjax.losses.slopes import without_unused_slopes


def split_ignore(label: UInt[Array, "*shape"], ignore: int) -> tuple[Int32[Array, "*shape"], Bool[Array, "*shape"]]:
    """Splits a stored label map into class indices that are always valid and a mask of the labelled pixels.

    Args:
        label: class indices, or 0 and 1 per class in multi-label sets; unsigned, any shape.
        ignore: value that marks unlabelled pixels.

    Returns:
        The label as int32, 0 where it was `ignore`, and a bool mask of the same shape, True for labelled pixels.

    Example:
        >>> label, valid = split_ignore(jnp.array([3, 255], jnp.uint8), ignore=255)
        >>> label.tolist(), valid.tolist()
        ([3, 0], [True, False])
    """
    label = label.astype(jnp.int32)
    valid = label != ignore
    return jnp.where(valid, label, 0), valid


def cross_entropy(
    logits: Float[Array, "*space k"],
    label: Int32[Array, "*space"],
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float | int] = (),
) -> Float32[Array, "*space"]:
    """Computes the softmax cross-entropy of each pixel or voxel.

    With `p = softmax(logits)`, class `y` and smoothing `s`: `-(1 - s) log p[y] - s mean_k(log p[k])`. With weights `w`
    of the classes: `-(1 - s) w[y] log p[y] - s mean_k(w[k] log p[k])`, which is torch's rule. Where no gradient comes
    in, none goes out, whatever the logits.

    Args:
        logits: unnormalised scores [*space, k], one channel per class; any float dtype.
        label: class index of each pixel [*space], in [0, k).
        label_smoothing: fraction of the target spread evenly over all classes (Szegedy et al. 2016, section 7).
        class_weights: weight of each of the k classes, not negative; () for none.

    Returns:
        Loss of each pixel, in nats, times the weights.

    Example:
        >>> cross_entropy(jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32)).round(3).tolist()
        [1.3860000371932983, 1.3860000371932983]
    """

    def loss(logits, label):
        # Not from jax.nn.log_softmax: its result, used twice, would be the largest map in memory of a training step.
        logits = logits.astype(jnp.float32)
        logits -= jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
        # Picked by comparison: a gather along the minor axis is slow on TPUs, and its gradient is a scatter.
        is_class = jax.nn.one_hot(label, logits.shape[-1], dtype=jnp.bool_)
        if class_weights:
            of_class = jnp.asarray(class_weights, jnp.float32).reshape((1,) * label.ndim + (-1,))
            target = jnp.where(is_class, 1 - label_smoothing, 0.0) + label_smoothing / logits.shape[-1]
            nats = jnp.log(jnp.exp(logits).sum(axis=-1, keepdims=True)) - logits
            return (of_class * target * nats).sum(axis=-1)
        picked = jnp.where(is_class, logits, 0.0).sum(axis=-1)
        if label_smoothing:
            picked = (1 - label_smoothing) * picked + label_smoothing * logits.mean(axis=-1)
        return jnp.log(jnp.exp(logits).sum(axis=-1)) - picked

    return without_unused_slopes(loss)(logits, label)


def pixel_weights(
    label: Int32[Array, "*space"], valid: Bool[Array, "*space"], class_weights: Sequence[float | int]
) -> Float32[Array, "*space"]:
    """Gives each pixel the weight of its class, and unlabelled pixels the weight 0.

    `weighted_mean(cross_entropy(logits, label), pixel_weights(...))` is torch's `CrossEntropyLoss(weight,
    ignore_index)`: the divisor is the sum of the weights, not the number of pixels. With label smoothing, torch weights
    each class's share of the target: `mean_and_divisor(cross_entropy(logits, label, label_smoothing=...,
    class_weights=...), valid, divided_by=pixel_weights(...))[0]`.

    Args:
        label: class index of each pixel, in [0, k).
        valid: True for labelled pixels.
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


def weighted_mean(
    values: Float[Array, "*shape"],
    weights: Float[Array, "*shape"] | Bool[Array, "*shape"],
    axis_name: str | None = None,
) -> Float32[Array, ""]:
    """Computes the weighted mean `sum(values weights) / sum(weights)`, or 0 if all weights are 0.

    Values of weight 0 do not affect the mean or its gradient, even if they are NaN or infinite.

    With `axis_name`, the divisor is summed over that axis but the numerator is not, which gives the device's SHARE of
    the global mean: the sum of the shares over devices is the mean over all their values. So `psum` the shares to
    report the loss and `psum` (not `pmean`) the gradients of the shares to train.

    Args:
        values: values to average, any shape.
        weights: weight of each value, not negative, of the same shape; bool counts as 0 and 1.
        axis_name: name of the mapped axis (of `jax.pmap` or `jax.vmap`) over which the batch is sharded, if any.

    Returns:
        The mean, or this device's share of it.

    Example:
        >>> weighted_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])).item()
        2.0
    """
    return mean_and_divisor(values, weights, axis_name)[0]


def mean_and_divisor(
    values: Float[Array, "*shape"],
    weights: Float[Array, "*shape"] | Bool[Array, "*shape"],
    axis_name: str | None = None,
    divided_by: Float[Array, "*shape"] | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Computes `weighted_mean` and its divisor, which gradient accumulation needs.

    Args:
        values: values to average, any shape.
        weights: weight of each value, not negative, of the same shape; bool counts as 0 and 1.
        axis_name: name of the mapped axis over which the batch is sharded, if any.
        divided_by: what the divisor is the sum of, in place of the weights.

    Returns:
        The mean, or this device's share of it; and the divisor, global if there is an axis.

    Example:
        >>> [float(x) for x in mean_and_divisor(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))]
        [2.0, 2.0]
    """
    weights = weights.astype(jnp.float32)
    values = jnp.where(weights > 0, values.astype(jnp.float32), 0.0)
    total = (weights if divided_by is None else divided_by).sum()
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    return (values * weights).sum() / jnp.where(total > 0, total, 1.0), total
