"""A second head on intermediate features, for training."""

import jax
from flax import linen as nn

from segjax.models.network import HEAD
from segjax.nn.layers import Conv, ConvNorm, Style


def auxiliary(
    tap: str, features: dict[str, jax.Array], channels: int, style: Style, train: bool
) -> dict[str, jax.Array]:
    """Scores of intermediate features, which add to the loss only: PSPNet, section 4 (arXiv:1612.01105).

    Must be called within a compact method, whose module gets the submodules `aux_conv` and `aux_head`.

    Args:
        tap: name of the features; "" for no output.
        features: of the backbone.
        channels: logits a pixel.
        style: norm and dtype.
        train: use batch statistics, and drop out.

    Returns:
        {"aux": float32 [b, y, x, channels]}, or nothing.
    """
    if not tap:
        return {}
    x = features[tap]
    x = ConvNorm(x.shape[-1] // 4, style, name="aux_conv")(x, train)
    x = nn.Dropout(0.1)(x, deterministic=not train)
    return {"aux": Conv(channels, 1, use_bias=True, kernel_init=HEAD, name="aux_head")(x)}
