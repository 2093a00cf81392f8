"""ConvNeXt: Liu et al., 2022 (arXiv:2201.03545)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.nn.layers import Conv, LayerConfig

INIT = nn.initializers.truncated_normal(0.02)  # as in the authors' code


def _layer_norm(x: jax.Array, layer_config: LayerConfig) -> jax.Array:
    """Applies layer norm over the channels, always in float32; adds a submodule "norm" to the caller."""
    return nn.LayerNorm(1e-6, name="norm")(x.astype(jnp.float32)).astype(layer_config.dtype)


class Stem(nn.Module):
    """4x4 convolution of stride 4 without padding, followed by a norm.

    Attributes:
        features: channels of the result.
        layer_config: dtype.
    """

    features: int
    layer_config: LayerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ f"]:
        """Applies the layer to images [b, h, w, c]."""
        dtype = self.layer_config.dtype
        x = Conv(self.features, 4, 4, padding=(0, 0), use_bias=True, dtype=dtype, kernel_init=INIT, name="conv")(x)
        return _layer_norm(x, self.layer_config)


class Downsample(nn.Module):
    """Norm followed by a 2x2 convolution of stride 2, or of stride 1 where the resolution is kept.

    Attributes:
        features: channels of the result.
        stride: stride of the convolution.
        dilation: dilation of the convolution.
        layer_config: dtype.
    """

    features: int
    stride: int
    dilation: int
    layer_config: LayerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ f"]:
        """Applies the layer to maps [b, h, w, c]."""
        padding = (0, self.dilation if self.stride == 1 else 0)
        return Conv(
            self.features, 2, self.stride, self.dilation, padding=padding, use_bias=True, dtype=self.layer_config.dtype,
            kernel_init=INIT, name="conv",
        )(_layer_norm(x, self.layer_config))  # fmt: skip


class ConvNeXtBlock(nn.Module):
    """Residual block: 7x7 depthwise convolution, norm, and two 1x1 layers with four times the channels in between.

    Attributes:
        dilation: dilation of the depthwise convolution.
        layer_config: dtype.
    """

    dilation: int
    layer_config: LayerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Applies the block to maps [b, h, w, c]."""
        f, dtype = x.shape[-1], self.layer_config.dtype
        y = Conv(
            f, 7, dilation=self.dilation, groups=f, use_bias=True, dtype=dtype, kernel_init=INIT, name="depthwise"
        )(x)
        y = _layer_norm(y, self.layer_config)
        y = nn.gelu(nn.Dense(4 * f, dtype=dtype, kernel_init=INIT, name="expand")(y), approximate=False)
        y = nn.Dense(f, dtype=dtype, kernel_init=INIT, name="project")(y)
        # Layer scale: the branch starts close to zero (appendix A.1).
        scale = self.param("scale", nn.initializers.constant(1e-6), (f,), jnp.float32)
        y = y * scale.astype(y.dtype)[None, None, None]
        return x + y


class ConvNeXt(nn.Module):
    """A stem of stride 4 and four stages of blocks, with a convolution of stride 2 before all but the first stage.

    The norms are always layer norms with epsilon 1e-6; `layer_config.norm` is ignored. No features have stride 2, so
    there is no c1. Sizes are rounded down.

    Attributes:
        layer_config: dtype; its norm is ignored.
        output_stride: 8, 16 or 32; later stages keep the resolution and use dilation instead.
        variant: dilation of a convolution that loses its stride: that of the stage before it ("atrous",
            "torchvision") or that of the blocks after it ("smp").
        blocks: number of blocks of each stage.
        widths: channels of each stage.
    """

    layer_config: LayerConfig
    output_stride: int = 32
    variant: str = "atrous"
    blocks: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the submodules, from input to output."""
        names = ["stem"]
        for stage, count in enumerate(self.blocks, 1):
            names += [f"downsample{stage}"] * (stage > 1) + [f"stage{stage}_{i}" for i in range(count)]
        return tuple(names)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, jax.Array]:
        """Maps images [b, h, w, c] to {"c2" .. "c5"} at strides 4, 8, 16, 32, capped at `output_stride`."""
        layer_config = self.layer_config
        features = {}
        x = Stem(self.widths[0], layer_config, name="stem")(images)
        block = layer_config.block(ConvNeXtBlock)
        stride, dilation = 4, 1
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), 1):
            if stage > 1:
                step, rate = (1 if stride == self.output_stride else 2), dilation
                stride, dilation = stride * step, dilation * 2 // step
                rate = dilation if self.variant == "smp" else rate
                x = Downsample(width, step, rate, layer_config, name=f"downsample{stage}")(x)
            for i in range(count):
                x = block(dilation, layer_config, name=f"stage{stage}_{i}")(x, train)
            features[f"c{stage + 1}"] = x
        return features
