"""MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381) and MobileNetV3 (Howard et al., 2019, arXiv:1905.02244)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.nn.layers import Conv, ConvNorm, Style

Activation = Callable[[jax.Array], jax.Array]


class Row(NamedTuple):
    """One line of a network's table: one block.

    Attributes:
        kernel: rows and columns of the depthwise kernel.
        expanded: channels of the depthwise convolution; where the input has as many, nothing expands it.
        features: channels of the result.
        squeeze: whether the expanded channels are weighted by squeeze and excitation.
        activation: after expansion and depthwise convolution.
        stride: of the depthwise convolution.
    """

    kernel: int
    expanded: int
    features: int
    squeeze: bool
    activation: Activation
    stride: int


# Table 2 of MobileNetV2, spelled out: expansion 6 but for the first block.
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
    """Rounds a number of channels to a multiple, never down by more than a tenth.

    Args:
        channels: wanted number.
        divisor: of the result.

    Returns:
        The nearest multiple, at least one; the next above where the nearest would lose more than a tenth.

    Example:
        >>> make_divisible(18), make_divisible(4), make_divisible(10)
        (24, 8, 16)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class SqueezeExcite(nn.Module):
    """Weights each channel by a function of all channels' means over the map (section 5.3 of MobileNetV3).

    Attributes:
        features: channels between the two layers.
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
    """1x1 expansion, depthwise convolution, squeeze and excitation where the row says so, linear 1x1 projection.

    Attributes:
        row: the table's line.
        stride: of the result: the row's, or 1 where the resolution is kept.
        dilation: of the depthwise convolution.
        style: norm and dtype.
    """

    row: Row
    stride: int
    dilation: int
    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b i j f"]:
        """Applies the block to maps [b, h, w, c]."""
        row, style, y = self.row, self.style, x
        if row.expanded != x.shape[-1]:
            y = ConvNorm(row.expanded, style, 1, activation=row.activation, name="expand")(y, train)
        y = ConvNorm(
            row.expanded, style, row.kernel, self.stride, self.dilation, row.expanded, activation=row.activation,
            name="depthwise",
        )(y, train)  # fmt: skip
        if row.squeeze:
            y = SqueezeExcite(make_divisible(row.expanded // 4), style.dtype, name="squeeze")(y)
        y = ConvNorm(row.features, style, 1, activation=None, name="project")(y, train)
        # The table's stride decides, so that the same weights are the same function at every output stride.
        return x + y if row.stride == 1 and x.shape[-1] == row.features else y


class MobileNet(nn.Module):
    """A stem of stride 2, the table's blocks, and a 1x1 convolution that ends the last stage.

    `c_k` is what the last block of each stride gives (c1 the stem's where no block has stride 2), and c5 the last
    1x1 convolution: 1280 channels in V2, 960 and 576 in V3 large and small, as in torchvision's `features` and in
    timm's `features_only`. Convention "torchvision" taps the first block of each stride instead, and the stem.

    Attributes:
        style: norm and dtype.
        output_stride: 8, 16 or 32; later blocks keep the resolution and dilate their depthwise convolutions instead.
        convention: what a block that would have had the stride does: keeps the dilation of those before it ("atrous"),
            or takes that of those after it ("smp", and "torchvision", as its dilated MobileNetV3 has it).
        rows: the table.
        stem: channels of the first convolution.
        last: channels of the last one.
        activation: of the first and the last convolution.
        epsilon: of batch norms; None for the style's.
    """

    style: Style
    output_stride: int = 32
    convention: str = "atrous"
    rows: tuple[Row, ...] = V2
    stem: int = 32
    last: int = 1280
    activation: Activation = nn.relu6
    epsilon: float | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the submodules, from the input on."""
        return ("stem", *(f"block_{i}" for i in range(len(self.rows))), "last")

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, jax.Array]:
        """Maps images [b, h, w, c] to {"c1" .. "c5"} at strides 2, 4, 8, 16, 32, none above `output_stride`."""
        style = self.style
        if self.epsilon is not None and style.norm == "batch":
            style = dataclasses.replace(style, epsilon=self.epsilon)
        x = ConvNorm(self.stem, style, 3, 2, activation=self.activation, name="stem")(images, train)
        features = {"c1": x}
        block = style.block(InvertedResidual)
        stage, stride, dilation = 1, 2, 1
        for i, row in enumerate(self.rows):
            step, rate = row.stride, dilation
            if stride * step > self.output_stride:
                step, dilation = 1, dilation * row.stride
                rate = rate if self.convention == "atrous" else dilation
            x = block(row, step, rate, style, name=f"block_{i}")(x, train)
            stage, stride = stage + (row.stride > 1), stride * step
            if row.stride > 1 or self.convention != "torchvision":
                features[f"c{stage}"] = x
        features["c5"] = ConvNorm(self.last, style, 1, activation=self.activation, name="last")(x, train)
        return features
