"""MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381) and MobileNetV3 (Howard et al., 2019, arXiv:1905.02244)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.nn.layers import Conv, ConvNorm, LayerConfig

Activation = Callable[[jax.Array], jax.Array]


class Row(NamedTuple):
    """One row of a network's table: one block.

    Attributes:
        kernel: rows and columns of the depthwise kernel.
        expanded: channels of the depthwise convolution; there is no expansion if the input has as many.
        features: channels of the result.
        squeeze: whether squeeze-and-excitation weights the expanded channels.
        activation: activation after the expansion and the depthwise convolution.
        stride: stride of the depthwise convolution.
    """

    kernel: int
    expanded: int
    features: int
    squeeze: bool
    activation: Activation
    stride: int


# Table 2 of MobileNetV2, one row per block: expansion 6 except in the first block.
V2 = (
    Row(3, 32, 16, False, nn.relu6, 1),
    Row(3, 96, 24, False, nn.relu6, 2),
    Row(3, 144, 24, False, nn.relu6, 1),
    Row(3, 144, 32, False, nn.relu6, 2),
    *(Row(3, 192, 32, False, nn.relu6, 1),) * 2,
    Row(3, 192, 64, False, nn.relu6, 2),
    *(Row(3, 384, 64, False, nn.relu6, 1),) * 3,
    Row(3, 384, 96, False, nn.relu6, 1),
    *(Row(3, 576, 96, False, nn.relu6, 1),) * 2,
    Row(3, 576, 160, False, nn.relu6, 2),
    *(Row(3, 960, 160, False, nn.relu6, 1),) * 2,
    Row(3, 960, 320, False, nn.relu6, 1),
)
V2_MICRO = (
    Row(3, 8, 8, False, nn.relu6, 1),
    Row(3, 16, 8, False, nn.relu6, 2),
    Row(3, 16, 16, False, nn.relu6, 2),
    Row(3, 32, 16, False, nn.relu6, 2),
    Row(3, 32, 16, False, nn.relu6, 1),
    Row(3, 32, 24, False, nn.relu6, 2),
    Row(3, 48, 24, False, nn.relu6, 1),
)
V3_MICRO = (
    Row(3, 16, 16, True, nn.relu, 2),
    Row(5, 32, 24, False, nn.relu, 2),
    Row(5, 48, 24, True, nn.hard_swish, 2),
    Row(3, 48, 24, False, nn.hard_swish, 1),
    Row(5, 48, 24, True, nn.hard_swish, 2),
    Row(5, 48, 24, True, nn.hard_swish, 1),
)
# Tables 1 and 2 of MobileNetV3.
V3_LARGE = (
    Row(3, 16, 16, False, nn.relu, 1),
    Row(3, 64, 24, False, nn.relu, 2),
    Row(3, 72, 24, False, nn.relu, 1),
    Row(5, 72, 40, True, nn.relu, 2),
    Row(5, 120, 40, True, nn.relu, 1),
    Row(5, 120, 40, True, nn.relu, 1),
    Row(3, 240, 80, False, nn.hard_swish, 2),
    Row(3, 200, 80, False, nn.hard_swish, 1),
    Row(3, 184, 80, False, nn.hard_swish, 1),
    Row(3, 184, 80, False, nn.hard_swish, 1),
    Row(3, 480, 112, True, nn.hard_swish, 1),
    Row(3, 672, 112, True, nn.hard_swish, 1),
    Row(5, 672, 160, True, nn.hard_swish, 2),
    Row(5, 960, 160, True, nn.hard_swish, 1),
    Row(5, 960, 160, True, nn.hard_swish, 1),
)
V3_SMALL = (
    Row(3, 16, 16, True, nn.relu, 2),
    Row(3, 72, 24, False, nn.relu, 2),
    Row(3, 88, 24, False, nn.relu, 1),
    Row(5, 96, 40, True, nn.hard_swish, 2),
    Row(5, 240, 40, True, nn.hard_swish, 1),
    Row(5, 240, 40, True, nn.hard_swish, 1),
    Row(5, 120, 48, True, nn.hard_swish, 1),
    Row(5, 144, 48, True, nn.hard_swish, 1),
    Row(5, 288, 96, True, nn.hard_swish, 2),
    Row(5, 576, 96, True, nn.hard_swish, 1),
    Row(5, 576, 96, True, nn.hard_swish, 1),
)


def make_divisible(channels: float | int, divisor: int = 8) -> int:
    """Rounds a number of channels to a multiple, never down by more than 10 %.

    Args:
        channels: number of channels.
        divisor: divisor of the result.

    Returns:
        The nearest multiple, at least one divisor; the next one up if the nearest is more than 10 % lower.

    Example:
        >>> make_divisible(18), make_divisible(4), make_divisible(10)
        (24, 8, 16)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: weights channels by a function of all channel means (section 5.3 of MobileNetV3).

    Attributes:
        features: channels between the two convolutions.
        dtype: compute dtype.
    """

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Weights the channels of maps [b, h, w, c]."""
        y = jnp.mean(x, (1, 2), dtype=jnp.float32, keepdims=True)
        y = nn.relu(Conv(self.features, 1, use_bias=True, dtype=self.dtype, name="reduce")(y))
        y = Conv(x.shape[-1], 1, use_bias=True, dtype=self.dtype, name="expand")(y)
        return x * nn.hard_sigmoid(y)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, optional squeeze-and-excitation, linear 1x1 projection.

    Attributes:
        row: row of the table.
        stride: stride of the block: that of the row, or 1 where the resolution is kept.
        dilation: dilation of the depthwise convolution.
        layer_config: norm and dtype.
    """

    row: Row
    stride: int
    dilation: int
    layer_config: LayerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b _ _ f"]:
        """Applies the block to maps [b, h, w, c]."""
        row, layer_config, y = self.row, self.layer_config, x
        if row.expanded != x.shape[-1]:
            y = ConvNorm(row.expanded, layer_config, 1, activation=row.activation, name="expand")(y, train)
        y = ConvNorm(
            row.expanded, layer_config, row.kernel, self.stride, self.dilation, row.expanded, activation=row.activation,
            name="depthwise",
        )(y, train)  # fmt: skip
        if row.squeeze:
            y = SqueezeExcite(make_divisible(row.expanded // 4), layer_config.dtype, name="squeeze")(y)
        y = ConvNorm(row.features, layer_config, 1, activation=None, name="project")(y, train)
        # Decided by the table's stride: the same weights must compute the same function at every output stride.
        return x + y if row.stride == 1 and x.shape[-1] == row.features else y


class MobileNet(nn.Module):
    """A stem of stride 2, the blocks of the table, and a 1x1 convolution that ends the last stage.

    `c_k` is the output of the last block at each stride (c1 is the stem's if no block has stride 2), and c5 that of the
    last 1x1 convolution: 1280 channels in V2, 960 and 576 in V3 large and small, as in torchvision's `features` and in
    timm's `features_only`. Variant "torchvision" taps the first block at each stride instead, and the stem.

    Attributes:
        layer_config: norm and dtype.
        output_stride: 8, 16 or 32; later blocks keep the resolution and dilate their depthwise convolutions instead.
        variant: dilation of a block that loses its stride: that of the blocks before it ("atrous"), or that of the
            blocks after it ("smp", and "torchvision", as in its dilated MobileNetV3).
        rows: the table.
        stem: channels of the first convolution.
        last: channels of the last convolution.
        activation: activation of the first and the last convolution.
        epsilon: epsilon of the batch norms; None uses that of layer_config.
    """

    layer_config: LayerConfig
    output_stride: int = 32
    variant: str = "atrous"
    rows: tuple[Row, ...] = V2
    stem: int = 32
    last: int = 1280
    activation: Activation = nn.relu6
    epsilon: float | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the submodules, from input to output."""
        return ("stem", *(f"block_{i}" for i in range(len(self.rows))), "last")

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, jax.Array]:
        """Maps images [b, h, w, c] to {"c1" .. "c5"} at strides 2, 4, 8, 16, 32, capped at `output_stride`."""
        layer_config = self.layer_config
        if self.epsilon is not None and layer_config.norm == "batch":
            layer_config = dataclasses.replace(layer_config, epsilon=self.epsilon)
        x = ConvNorm(self.stem, layer_config, 3, 2, activation=self.activation, name="stem")(images, train)
        features = {"c1": x}
        block = layer_config.block(InvertedResidual)
        stage, stride, dilation = 1, 2, 1
        for i, row in enumerate(self.rows):
            step, rate = row.stride, dilation
            if stride * step > self.output_stride:
                step, dilation = 1, dilation * row.stride
                rate = rate if self.variant == "atrous" else dilation
            x = block(row, step, rate, layer_config, name=f"block_{i}")(x, train)
            stage, stride = stage + (row.stride > 1), stride * step
            if row.stride > 1 or self.variant != "torchvision":
                features[f"c{stage}"] = x
        features["c5"] = ConvNorm(self.last, layer_config, 1, activation=self.activation, name="last")(x, train)
        return features
