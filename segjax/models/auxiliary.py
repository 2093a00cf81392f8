"""An auxiliary head on intermediate features, for training."""

import jax
from flax import linen as nn

from segjax.models.network import HEAD
from segjax.nn.layers import Conv, ConvNorm, LayerConfig


def auxiliary(
    tap: str, features: dict[str, jax.Array], num_logits: int, layer_config: LayerConfig, dropout: float, train: bool
) -> dict[str, jax.Array]:
    """Computes logits from intermediate features, used only in the loss: PSPNet, section 4 (arXiv:1612.01105).

    Call it within a compact method; it adds the submodules `aux_conv` and `aux_head` to that module.

    Args:
        tap: name of the features; "" for no output.
        features: features of the backbone.
        num_logits: logits per pixel.
        layer_config: norm and dtype.
        dropout: dropout rate before the last convolution; 0.1 in PSPNet's code and torchvision.
        train: use batch statistics, and apply dropout.

    Returns:
        {"aux": float32 [b, h, w, num_logits]}, or {}.
    """
    if not tap:
        return {}
    x = features[tap]
    x = ConvNorm(x.shape[-1] // 4, layer_config, name="aux_conv")(x, train)
    x = nn.Dropout(dropout)(x, deterministic=not train)
    return {"aux": Conv(num_logits, 1, use_bias=True, kernel_init=HEAD, name="aux_head")(x)}
