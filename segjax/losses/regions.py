"""Losses over all pixels of an image or a batch: soft Dice, and the selection of the largest losses (OHEM)."""

from fractions import Fraction
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32


def ohem_mask(
    values: Float[Array, "b *shape"], valid: Bool[Array, "b *shape"], fraction: float
) -> Bool[Array, "b *shape"]:
    """Marks the largest losses of each image (OHEM), as in deeplab2's "top-k" cross-entropy.

    In an image with n valid losses, it marks those that are at least the ceil(fraction n)-th largest, including ties.
    That value is found by bisection over the bits of the floats, which is exact and needs only sums; a sort would
    all-gather the losses.

    Other libraries define hard pixels differently: detectron2 takes the largest losses of the full batch,
    tensorflow/models those of a device's shard, mmsegmentation the pixels below a probability.

    Args:
        values: losses, not negative.
        valid: which losses count.
        fraction: fraction of the valid losses to mark, in (0, 1]; see `ceil_of_fraction`.

    Returns:
        bool [b, ...], weights for `weighted_mean`, which divides by the number of marked losses.

    Example:
        >>> ohem_mask(jnp.array([[0.5, 0.1, 0.9, 0.7]]), jnp.array([[True, True, True, False]]), 0.5).tolist()
        [[True, False, True, False]]
    """
    axes = tuple(range(1, values.ndim))
    # Non-negative floats have the same order as their bits.
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values).astype(jnp.float32), jnp.int32)
    bits = jnp.where(valid, bits, -1)
    count = valid.sum(axes, keepdims=True, dtype=jnp.int32)
    rank = ceil_of_fraction(count, fraction)

    def narrow(i, least):
        higher = least | jnp.int32(1) << (30 - i)
        return jnp.where((bits >= higher).sum(axes, keepdims=True, dtype=jnp.int32) >= rank, higher, least)

    return valid & (bits >= jax.lax.fori_loop(0, 31, narrow, jnp.zeros_like(rank)))


def ceil_of_fraction(count: Int32[Array, "*shape"], fraction: float) -> Int32[Array, "*shape"]:
    """Computes ceil(fraction count) exactly, in integers.

    In float32 it is off by one for one count in a hundred, and in float64 too where `0.07 * 100` is above 7.

    Args:
        count: numbers, not negative.
        fraction: in (0, 1], read as the decimal number that Python prints for it; with more than nine digits as the
            nearest fraction whose denominator is at most 10^9, such as 1 / 3.

    Returns:
        The smallest integers that are not less than fraction count.

    Example:
        >>> ceil_of_fraction(jnp.array([99, 100, 101], jnp.int32), 0.07).tolist()
        [7, 7, 8]
    """
    p, q = Fraction(str(fraction)).limit_denominator(10**9).as_integer_ratio()
    # Long division by q, from the highest digit of the count, in as large a base as uint32 holds.
    bits = 31 - q.bit_length()
    whole, rest = jnp.zeros_like(count), jnp.zeros(count.shape, jnp.uint32)
    for shift in reversed(range(0, 31, bits)):
        digit = (count >> shift & (2**bits - 1)).astype(jnp.uint32)
        rest = (rest << bits) + digit * p
        whole, rest = (whole << bits) + (rest // q).astype(jnp.int32), rest % q
    return whole + (rest > 0).astype(jnp.int32)


def dice(
    probabilities: Float[Array, "b *space k"],
    target: Bool[Array, "b *space k"] | Float[Array, "b *space k"],
    valid: Bool[Array, "b *space #k"],
    *,
    over: Literal["image", "batch"] = "image",
    smooth: float = 1.0,
    axis_name: str | None = None,
) -> tuple[Float32[Array, "scope k"], Float32[Array, "scope k"]]:
    """Computes the soft Dice loss of each class (Milletari et al. 2016, section 3, without the squares).

    With `I = sum(p t)`, `P = sum(p)` and `T = sum(t)` over the valid pixels of the scope:
    `1 - (2 I + smooth) / (P + T + smooth)`.

    A class that is absent from the scope has no overlap to improve: its loss only lowers its probabilities, with a
    gradient of `smooth / (P + smooth)^2` per pixel that swamps the other classes once P is small.
    `weighted_mean(loss, present)` leaves such classes out. Their false positives are then not penalised, so combine
    Dice with cross-entropy, which does; or keep every class with `weighted_mean(loss, jnp.ones_like(loss))`.

    Under a mapped axis both scopes follow the share convention of `weighted_mean(loss, present, axis_name)`.
    With `over="image"` images are independent. With `over="batch"` the sums are over the global batch, every device
    holds the same loss and presence, and its share is the global mean divided by the number of devices.

    Args:
        probabilities: softmax or sigmoid of the logits. Pixels that do not count get the gradient 0. If their logits
            may be NaN, replace these before the softmax, whose own gradient would be NaN.
        target: ground truth of each class, or its probability.
        valid: True for labelled pixels, the only ones that count; one channel for all classes or one per class.
        over: scope of the sums: each "image" alone, or the full "batch".
        smooth: pixels added to the numerator and the denominator. It makes Dice 1 if class and prediction are both
            empty, and bounds the gradient for small objects. 1 is the default of nnU-Net's soft Dice. With 0, empty
            classes have loss 1.
        axis_name: name of the mapped axis over which the batch is sharded, if any.

    Returns:
        Loss, and 1 where the class is in the scope's ground truth, else 0; [b, k] over images, [1, k] over the batch.

    Example:
        >>> ground_truth = jnp.array([[[[True, False], [True, False]]]])
        >>> loss, present = dice(ground_truth.astype(jnp.float32), ground_truth, jnp.ones((1, 1, 2, 1), bool))
        >>> loss.tolist(), present.tolist()
        ([[0.0, 0.0]], [[1.0, 0.0]])
    """
    axes = tuple(range(1 if over == "image" else 0, target.ndim - 1))
    predicted = jnp.where(valid, probabilities.astype(jnp.float32), 0.0)
    ground_truth = jnp.where(valid, target.astype(jnp.float32), 0.0)
    sums = jnp.stack([a.sum(axis=axes) for a in (predicted * ground_truth, predicted, ground_truth)])
    if over == "batch":
        sums = sums[:, None]
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
    both, predicted, ground_truth = sums
    # The floor, nnU-Net's, only matters if smooth = 0 and prediction and ground truth are both empty.
    loss = 1 - (2 * both + smooth) / jnp.maximum(predicted + ground_truth + smooth, 1e-8)
    return loss, (ground_truth > 0).astype(jnp.float32)
