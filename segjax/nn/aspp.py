"""Atrous spatial pyramid pooling: Chen et al., 2017, section 3.3 (arXiv:1706.05587)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.nn.kernels import mean_pool
from segjax.nn.layers import Conv, ConvNorm, Style
from segjax.nn.resize import resize


class SeparableConv(nn.Module):
    """Depthwise convolution, then a 1x1 convolution: DeepLabV3+, section 3.1 (arXiv:1802.02611).

    Attributes:
        features: channels of the result.
        style: norm and dtype.
        dilation: of the depthwise convolution.
        kernel: rows and columns of its kernel.
        convention: "smp" has norm and ReLU after the 1x1 convolution only, others after both.
    """

    features: int
    style: Style
    dilation: int = 1
    kernel: int = 3
    convention: str = "atrous"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w f"]:
        """Applies the layer to maps [b, h, w, c]."""
        c = x.shape[-1]
        if self.convention == "smp":
            x = Conv(c, self.kernel, 1, self.dilation, c, dtype=self.style.dtype, name="depthwise")(x)
        else:
            x = ConvNorm(c, self.style, self.kernel, 1, self.dilation, c, name="depthwise")(x, train)
        return ConvNorm(self.features, self.style, 1, name="pointwise")(x, train)


class ASPP(nn.Module):
    """A 1x1 convolution, 3x3 convolutions at several rates and the image's mean, side by side.

    Attributes:
        features: channels of each branch and of the result.
        style: norm and dtype.
        rates: dilations of the 3x3 convolutions.
        window: rows and columns of the mean, in pixels of the maps; () is all of them. A window of the training
            crop's size keeps the branch's meaning when larger images are evaluated.
        separable: depthwise separable 3x3 convolutions.
        dropout: rate after the last convolution.
        convention: of the separable convolutions.
    """

    features: int
    style: Style
    rates: tuple[int, ...]
    window: tuple[int, ...]
    separable: bool
    dropout: float
    convention: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w f"]:
        """Applies the module to maps [b, h, w, c]."""
        f, style = self.features, self.style
        branches = [ConvNorm(f, style, 1, name="conv_0")(x, train)]
        for i, rate in enumerate(self.rates, 1):
            if self.separable:
                branch = SeparableConv(f, style, rate, convention=self.convention, name=f"conv_{i}")
            else:
                branch = ConvNorm(f, style, 3, dilation=rate, name=f"conv_{i}")
            branches.append(branch(x, train))
        pooled = ConvNorm(f, style, 1, name="pool")(mean_pool(x, self.window or x.shape[1:3]), train)
        branches.append(resize(pooled, x.shape[1:3]))
        x = ConvNorm(f, style, 1, name="project")(jnp.concatenate(branches, axis=-1), train)
        return nn.Dropout(self.dropout)(x, deterministic=not train)
