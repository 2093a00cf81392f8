"""Confusion matrices of classes that may overlap, on the device; `segjax.metrics.confusion` sums them."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32


def multilabel_confusion(
    label: Bool[Array, "b *space k"], prediction: Bool[Array, "b *space k"], valid: Bool[Array, "b *space k"]
) -> Int32[Array, "b k 2 2"]:
    """Counts (ground truth, prediction) pairs of each class separately, for classes that may overlap.

    Args:
        label: True where the class is present.
        prediction: True where the class is predicted.
        valid: True where the class is labelled; other elements are not counted.

    Returns:
        Pixel counts `[[true negatives, false positives], [false negatives, true positives]]` of each class.

    Example:
        >>> prediction, label = jnp.array([[[[True], [True]]]]), jnp.array([[[[True], [False]]]])
        >>> multilabel_confusion(label, prediction, jnp.ones((1, 1, 2, 1), bool)).tolist()
        [[[[0, 1], [0, 1]]]]
    """

    def count(ground_truth, predicted):
        return (valid & ground_truth & predicted).sum(axis=tuple(range(1, valid.ndim - 1)), dtype=jnp.int32)

    rows = [
        jnp.stack([count(ground_truth, ~prediction), count(ground_truth, prediction)], axis=-1)
        for ground_truth in (~label, label)
    ]
    return jnp.stack(rows, axis=-2)
