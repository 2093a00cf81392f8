"""VGG-16: Simonyan and Zisserman, 2015 (arXiv:1409.1556), configuration D, without its fully connected layers."""

import dataclasses

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.nn.kernels import max_pool
from segjax.nn.layers import ConvNorm, LayerConfig


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each followed by a 2x2 max-pooling that drops an odd last row and column.

    `c_k` is the output of the k-th pooling.

    Attributes:
        layer_config: norm and dtype.
        output_stride: 8, 16 or 32; later poolings have stride 1, and the convolutions after them are dilated.
        variant: ignored, because no convolution of a VGG has a stride.
        widths: channels of each stage's convolutions.
        normalised: apply `layer_config.norm` after each convolution; otherwise the convolutions have biases and no
            norm, as in the paper.
    """

    layer_config: LayerConfig
    output_stride: int = 32
    variant: str = "atrous"
    widths: tuple[tuple[int, ...], ...] = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
    normalised: bool = True

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the submodules, from input to output."""
        return tuple(f"conv{stage}_{i}" for stage, widths in enumerate(self.widths, 1) for i in range(len(widths)))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, jax.Array]:
        """Maps images [b, h, w, c] to {"c1" .. "c5"} at strides 2, 4, 8, 16, 32, capped at `output_stride`."""
        layer_config = self.layer_config if self.normalised else dataclasses.replace(self.layer_config, norm="none")
        layer = layer_config.block(ConvNorm)
        x, features, dilation = images, {}, 1
        for stage, widths in enumerate(self.widths, 1):
            for i, width in enumerate(widths):
                x = layer(width, layer_config, dilation=dilation, name=f"conv{stage}_{i}")(x, train)
            if 2**stage <= self.output_stride:
                x = max_pool(x, 2, 2)
            else:
                x = max_pool(x, 2, 1, dilation, (0, dilation))
                dilation *= 2
            features[f"c{stage}"] = x
        return features
