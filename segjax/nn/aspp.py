"""Atrous spatial pyramid pooling (ASPP): Chen et al., 2017, section 3.3 (arXiv:1706.05587)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.nn.kernels import mean_pool
from segjax.nn.layers import Conv, ConvNorm, LayerConfig
from segjax.nn.resize import resize


class SeparableConv(nn.Module):
    """Depthwise convolution followed by a 1x1 convolution: DeepLabV3+, section 3.1 (arXiv:1802.02611).

    Attributes:
        features: channels of the result.
        layer_config: norm and dtype.
        dilation: dilation of the depthwise convolution.
        kernel: rows and columns of the depthwise kernel.
        variant: "smp" has a norm and ReLU only after the 1x1 convolution; the others have them after both.
    """

    features: int
    layer_config: LayerConfig
    dilation: int = 1
    kernel: int = 3
    variant: str = "atrous"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w f"]:
        """Applies the layer to maps [b, h, w, c]."""
        c = x.shape[-1]
        if self.variant == "smp":
            x = Conv(c, self.kernel, 1, self.dilation, c, dtype=self.layer_config.dtype, name="depthwise")(x)
        else:
            x = ConvNorm(c, self.layer_config, self.kernel, 1, self.dilation, c, name="depthwise")(x, train)
        return ConvNorm(self.features, self.layer_config, 1, name="pointwise")(x, train)


class ASPP(nn.Module):
    """ASPP: parallel branches of a 1x1 convolution, 3x3 convolutions at several rates, and image pooling.

    Attributes:
        features: channels of each branch and of the result.
        layer_config: norm and dtype.
        rates: dilations of the 3x3 convolutions.
        window: rows and columns of the pooling window, in pixels of the maps; () pools the full map. With a window
            of the training crop's size, the branch behaves the same when larger images are evaluated.
        separable: use depthwise separable 3x3 convolutions.
        dropout: dropout rate after the last convolution.
        variant: variant of the separable convolutions.
    """

    features: int
    layer_config: LayerConfig
    rates: tuple[int, ...]
    window: tuple[int, ...]
    separable: bool
    dropout: float
    variant: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w f"]:
        """Applies the module to maps [b, h, w, c]."""
        f, layer_config = self.features, self.layer_config
        branches = [ConvNorm(f, layer_config, 1, name="conv_0")(x, train)]
        for i, rate in enumerate(self.rates, 1):
            if self.separable:
                branch = SeparableConv(f, layer_config, rate, variant=self.variant, name=f"conv_{i}")
            else:
                branch = ConvNorm(f, layer_config, 3, dilation=rate, name=f"conv_{i}")
            branches.append(branch(x, train))
        pooled = ConvNorm(f, layer_config, 1, name="pool")(mean_pool(x, self.window or x.shape[1:3]), train)
        branches.append(resize(pooled, x.shape[1:3]))
        x = ConvNorm(f, layer_config, 1, name="project")(jnp.concatenate(branches, axis=-1), train)
        return nn.Dropout(self.dropout)(x, deterministic=not train)
