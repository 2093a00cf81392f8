"""What looks at all pixels of an image or a batch at once: Dice, and which losses are the largest."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32


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
