"""Sigmoid cross-entropy: for two classes, or for each of several classes independently."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from segjax.losses.slopes import without_unused_slopes


def binary_cross_entropy(
    logits: Float[Array, "*shape"],
    target: Bool[Array, "*shape"] | Float[Array, "*shape"],
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float | int] = (),
) -> Float32[Array, "*shape"]:
    """Computes the sigmoid cross-entropy of each element.

    With `p = sigmoid(logits)` and `t = (1 - s) target + s / 2`: `-t log p - (1 - t) log(1 - p)`. This equals
    `cross_entropy` of the two classes `(0, logits)` with the same smoothing `s`, also with weights `w` of the two
    classes: `-w[1] t log p - w[0] (1 - t) log(1 - p)`. Where no gradient comes in, none goes out, whatever the logits.

    Args:
        logits: unnormalised scores, any shape and float dtype.
        target: ground truth, or its probability, of the same shape.
        label_smoothing: fraction of the target spread evenly over both classes.
        class_weights: weights of the classes 0 and 1, not negative; () for none.

    Returns:
        Loss of each element, in nats.

    Example:
        >>> binary_cross_entropy(jnp.array([0.0, 90.0]), jnp.array([True, True])).round(3).tolist()
        [0.6930000185966492, 0.0]
    """

    def loss(logits, target):
        logits, target = logits.astype(jnp.float32), target.astype(jnp.float32)
        target = (1 - label_smoothing) * target + label_smoothing / 2
        # Two softplus terms instead of softplus(x) - t x: the loss of confident, correct pixels keeps its precision.
        one, zero = target * jax.nn.softplus(-logits), (1 - target) * jax.nn.softplus(logits)
        return class_weights[1] * one + class_weights[0] * zero if class_weights else one + zero

    return without_unused_slopes(loss)(logits, target)
