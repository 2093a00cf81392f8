"""Sigmoid cross-entropy: for two classes, or for each of several classes independently."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32


def binary_cross_entropy(
    logits: Float[Array, "*shape"],
    target: Bool[Array, "*shape"] | Float[Array, "*shape"],
    *,
    label_smoothing: float = 0.0,
) -> Float32[Array, "*shape"]:
    """Computes the sigmoid cross-entropy of each element.

    With `p = sigmoid(logits)` and `t = (1 - s) target + s / 2`: `-t log p - (1 - t) log(1 - p)`. This equals
    `cross_entropy` of the two classes `(0, logits)` with the same smoothing `s`.

    Args:
        logits: unnormalised scores, any shape and float dtype.
        target: ground truth, or its probability, of the same shape.
        label_smoothing: fraction of the target spread evenly over both classes.

    Returns:
        Loss of each element, in nats.

    Example:
        >>> binary_cross_entropy(jnp.array([0.0, 90.0]), jnp.array([True, True])).round(3).tolist()
        [0.6930000185966492, 0.0]
    """
    logits, target = logits.astype(jnp.float32), target.astype(jnp.float32)
    target = (1 - label_smoothing) * target + label_smoothing / 2
    # Two softplus terms instead of softplus(x) - t x: the loss of confident, correct pixels keeps its precision.
    return target * jax.nn.softplus(-logits) + (1 - target) * jax.nn.softplus(logits)
