"""Confusion matrices of classes that may overlap, on the device; `segjax.metrics.confusion` counts them."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32


def multilabel_confusion(
    prediction: Bool[Array, "b *space k"], target: Bool[Array, "b *space k"], valid: Bool[Array, "b *space k"]
) -> Int32[Array, "b k 2 2"]:
    """Counts of (truth, prediction) pairs of each class on its own, for classes that may overlap.

    Args:
        prediction: True where the class is predicted.
        target: True where the class is.
        valid: True where the class is labelled; other elements are not counted.

    Returns:
        Pixel counts `[[true negatives, false positives], [false negatives, true positives]]` of each class.

    Example:
        >>> prediction, target = jnp.array([[[[True], [True]]]]), jnp.array([[[[True], [False]]]])
        >>> multilabel_confusion(prediction, target, jnp.ones((1, 1, 2, 1), bool)).tolist()
        [[[[0, 1], [0, 1]]]]
    """

    def count(truth, predicted):
        return (valid & truth & predicted).sum(axis=tuple(range(1, valid.ndim - 1)), dtype=jnp.int32)

    rows = [jnp.stack([count(truth, ~prediction), count(truth, prediction)], axis=-1) for truth in (~target, target)]
    return jnp.stack(rows, axis=-2)
