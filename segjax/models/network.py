"""What all networks have in common."""

import jax
from flax import linen as nn

from segjax.checks import UserError, check_choice
from segjax.nn.layers import Conv, ConvNorm, Style

HEAD = nn.initializers.normal(0.01)  # small scores: the first loss is that of equal probabilities


class Network(nn.Module):
    """Base of the networks `(images, train) -> {"logits": …}`, which have derivatives in reverse mode only.

    Attributes:
        channels: logits a pixel.
        norm: "batch", "group" (at most 32 groups) or "none".
        momentum: share of the old batch statistics that is kept each step.
        dtype: compute dtype, "float32" or "bfloat16"; parameters, statistics and logits are float32.
        remat: recompute each block's activations in the backward pass.
        axis_name: pmap axis over which batch statistics are taken.
    """

    channels: int
    norm: str = "batch"
    momentum: float = 0.9
    dtype: str = "float32"
    remat: bool = False
    axis_name: str | None = None
    conventions = ()  # values of `convention`, where the network has that attribute
    finds_objects = False  # whether its outputs hold "centre" and "offset"

    def __post_init__(self):
        """Checks the choices."""
        _ = self.style  # checks norm and dtype
        dropout = getattr(self, "dropout", 0.0)
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout} must be at least 0 and less than 1.")
        if self.conventions:
            check_choice("model.convention", self.convention, self.conventions)
        super().__post_init__()

    @property
    def margin(self) -> int:
        """Pixels that each side of the input loses."""
        return 0

    @property
    def style(self) -> Style:
        """What all layers have in common."""
        return Style(self.norm, self.momentum, dtype=self.dtype, remat=self.remat, axis_name=self.axis_name)


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
