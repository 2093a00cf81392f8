"""VGG: Simonyan and Zisserman, 2015 (arXiv:1409.1556), configuration D, without its fully connected layers."""

import dataclasses

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.nn.kernels import max_pool
from segjax.nn.layers import ConvNorm, Style


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each ended by a 2x2 max-pooling that drops an odd last row and column.

    `c_k` is what the k-th pooling gives.

    Attributes:
        style: norm and dtype.
        output_stride: 8, 16 or 32; later poolings have stride 1, and what follows them is dilated instead.
        convention: has no effect here: no convolution ever had a stride.
        widths: channels of each stage's convolutions.
        normalised: whether the style's norm follows each convolution; without it they have biases, as in the paper,
            whatever the style says.
    """

    style: Style
    output_stride: int = 32
    convention: str = "atrous"
    widths: tuple[tuple[int, ...], ...] = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
    normalised: bool = True

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the submodules, from the input on."""
        return tuple(f"conv{stage}_{i}" for stage, widths in enumerate(self.widths, 1) for i in range(len(widths)))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, jax.Array]:
        """Maps images [b, h, w, c] to {"c1" .. "c5"} at strides 2, 4, 8, 16, 32, none above `output_stride`."""
        style = self.style if self.normalised else dataclasses.replace(self.style, norm="none")
        layer = style.block(ConvNorm)
        x, features, dilation = images, {}, 1
        for stage, widths in enumerate(self.widths, 1):
            for i, width in enumerate(widths):
                x = layer(width, style, dilation=dilation, name=f"conv{stage}_{i}")(x, train)
            if 2**stage <= self.output_stride:
                x = max_pool(x, 2, 2)
            else:
                x = max_pool(x, 2, 1, dilation, (0, dilation))
                dilation *= 2
            features[f"c{stage}"] = x
        return features
