"""ConvNeXt: Liu et al., 2022 (arXiv:2201.03545)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.nn.layers import Conv, Style

INIT = nn.initializers.truncated_normal(0.02)  # as in the authors' code


def _layer_norm(x: jax.Array, style: Style) -> jax.Array:
    """Layer norm over the channels, in float32 whatever the compute dtype; a submodule "norm" of the caller."""
    return nn.LayerNorm(1e-6, name="norm")(x.astype(jnp.float32)).astype(style.dtype)


class Stem(nn.Module):
    """4x4 convolution of stride 4 without padding, and a norm.

    Attributes:
        features: channels of the result.
        style: dtype.
    """

    features: int
    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j f"]:
        """Applies the layer to images [b, h, w, c]."""
        dtype = self.style.dtype
        x = Conv(self.features, 4, 4, padding=(0, 0), use_bias=True, dtype=dtype, kernel_init=INIT, name="conv")(x)
        return _layer_norm(x, self.style)


class Downsample(nn.Module):
    """Norm, and a 2x2 convolution of stride 2; with stride 1, the same one at every pixel.

    Attributes:
        features: channels of the result.
        stride: of the result.
        dilation: of the convolution.
        style: dtype.
    """

    features: int
    stride: int
    dilation: int
    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j f"]:
        """Applies the layer to maps [b, h, w, c]."""
        padding = (0, self.dilation if self.stride == 1 else 0)
        return Conv(
            self.features, 2, self.stride, self.dilation, padding=padding, use_bias=True, dtype=self.style.dtype,
            kernel_init=INIT, name="conv",
        )(_layer_norm(x, self.style))  # fmt: skip


class Block(nn.Module):
    """7x7 depthwise convolution, norm and two 1x1 layers with four times the channels between, added to the input.

    Attributes:
        dilation: of the depthwise convolution.
        style: dtype.
    """

    dilation: int
    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Applies the block to maps [b, h, w, c]."""
        f, dtype = x.shape[-1], self.style.dtype
        y = Conv(
            f, 7, dilation=self.dilation, groups=f, use_bias=True, dtype=dtype, kernel_init=INIT, name="depthwise"
        )(x)
        y = _layer_norm(y, self.style)
        y = nn.gelu(nn.Dense(4 * f, dtype=dtype, kernel_init=INIT, name="expand")(y), approximate=False)
        y = nn.Dense(f, dtype=dtype, kernel_init=INIT, name="project")(y)
        # Layer scale: the branch hardly counts at first (appendix A.1).
        scale = self.param("scale", nn.initializers.constant(1e-6), (f,), jnp.float32)
        y = y * scale.astype(y.dtype)[None, None, None]
        return x + y


class ConvNeXt(nn.Module):
    """A stem of stride 4 and four stages of blocks, with a convolution of stride 2 before each but the first.

    Its norms are layer norms, of epsilon 1e-6, whatever the style says: "batch" and "group" do not apply. Nothing has
    stride 2, so there is no c1. Sizes are rounded down.

    Attributes:
        style: dtype; its norm is not used.
        output_stride: 8, 16 or 32; later stages keep their resolution and are dilated instead.
        convention: what the convolution that would have had the stride does: keeps the dilation of the stage before it
            ("atrous", "torchvision"), or takes that of the blocks after it ("smp").
        blocks: number of blocks of each stage.
        widths: channels of each stage.
    """

    style: Style
    output_stride: int = 32
    convention: str = "atrous"
    blocks: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the submodules, from the input on."""
        names = ["stem"]
        for stage, count in enumerate(self.blocks, 1):
            names += [f"downsample{stage}"] * (stage > 1) + [f"stage{stage}_{i}" for i in range(count)]
        return tuple(names)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, jax.Array]:
        """Maps images [b, h, w, c] to {"c2" .. "c5"} at strides 4, 8, 16, 32, none above `output_stride`."""
        style = self.style
        features = {}
        x = Stem(self.widths[0], style, name="stem")(images)
        block = style.block(Block)
        stride, dilation = 4, 1
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), 1):
            if stage > 1:
                step, rate = (1 if stride == self.output_stride else 2), dilation
                stride, dilation = stride * step, dilation * 2 // step
                rate = dilation if self.convention == "smp" else rate
                x = Downsample(width, step, rate, style, name=f"downsample{stage}")(x)
            for i in range(count):
                x = block(dilation, style, name=f"stage{stage}_{i}")(x, train)
            features[f"c{stage + 1}"] = x
        return features
