"""ResNets: He et al., 2016 (arXiv:1512.03385), with the stride of a bottleneck on its 3x3 convolution."""

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.checks import check_choice
from segjax.nn.kernels import max_pool
from segjax.nn.layers import ConvNorm, LayerConfig


class ResNetBlock(nn.Module):
    """Residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 convolutions.

    Attributes:
        features: channels inside the block; a bottleneck outputs four times as many.
        bottleneck: whether the block is a bottleneck.
        stride: stride of the block.
        dilations: dilations of the 3x3 convolutions: one for a bottleneck, otherwise two.
        layer_config: norm and dtype.
    """

    features: int
    bottleneck: bool
    stride: int
    dilations: tuple[int, ...]
    layer_config: LayerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b _ _ f"]:
        """Applies the block to maps [b, h, w, c]."""
        f, layer_config, out = self.features, self.layer_config, self.features * (4 if self.bottleneck else 1)
        if self.bottleneck:
            y = ConvNorm(f, layer_config, 1, name="conv1")(x, train)
            y = ConvNorm(f, layer_config, 3, self.stride, self.dilations[0], name="conv2")(y, train)
            y = ConvNorm(out, layer_config, 1, activation=None, name="conv3")(y, train)
        else:
            y = ConvNorm(f, layer_config, 3, self.stride, self.dilations[0], name="conv1")(x, train)
            y = ConvNorm(f, layer_config, 3, 1, self.dilations[1], activation=None, name="conv2")(y, train)
        if self.stride > 1 or x.shape[-1] != out:
            x = ConvNorm(out, layer_config, 1, self.stride, activation=None, name="downsample")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A stem of stride 4 and four stages of residual blocks.

    Attributes:
        layer_config: norm and dtype.
        output_stride: 8, 16 or 32; later stages keep the resolution and dilate their 3x3 convolutions instead.
        multi_grid: factors on the last stage's dilations, one per block (DeepLabV3, section 3.2.1).
        variant: dilation of a convolution that loses its stride: that of the stage before it ("atrous",
            "torchvision") or that of its own stage ("smp").
        blocks: number of blocks of each stage.
        bottleneck: whether the blocks are bottlenecks.
        width: channels of the first stage's blocks; each stage doubles it.
        stem: "plain", a 7x7 convolution, or "deep", three 3x3 ones with 64, 64 and 128 channels (DeepLab's "beta").
    """

    layer_config: LayerConfig
    output_stride: int = 32
    multi_grid: tuple[int, ...] = (1, 1, 1)
    variant: str = "atrous"
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    width: int = 64
    stem: str = "plain"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the submodules, from input to output."""
        stem = ("conv1",) if self.stem == "plain" else ("conv1_0", "conv1_1", "conv1_2")
        stages = enumerate(self.blocks, 1)
        return stem + tuple(f"layer{stage}_{i}" for stage, count in stages for i in range(count))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, jax.Array]:
        """Maps images [b, h, w, c] to {"c1" .. "c5"} at strides 2, 4, 8, 16, 32, capped at `output_stride`."""
        layer_config, width = self.layer_config, self.width
        check_choice("stem", self.stem, ("plain", "deep"))
        if self.stem == "plain":
            x = ConvNorm(width, layer_config, 7, 2, name="conv1")(images, train)
        else:
            x = images
            for i, features in enumerate((width, width, 2 * width)):
                x = ConvNorm(features, layer_config, 3, 1 if i else 2, name=f"conv1_{i}")(x, train)
        features = {"c1": x}
        x = max_pool(x, 3, 2, padding=(1, 1))
        block = layer_config.block(ResNetBlock)
        stride, dilation = 4, 1
        for stage, count in enumerate(self.blocks, 1):
            step = 1 if stage == 1 or stride == self.output_stride else 2
            previous = dilation
            stride, dilation = stride * step, dilation * (2 if stage > 1 and step == 1 else 1)
            grid = self.multi_grid if stage == 4 else (1,)
            for i in range(count):
                # With multi-grid, each block's dilation is the unit rate times its factor (DeepLabV3, section 3.2.1).
                first = i == 0 and self.variant != "smp" and set(grid) == {1}
                rate = (previous if first else dilation) * grid[i % len(grid)]
                rates = (rate,) if self.bottleneck else (rate, dilation * grid[i % len(grid)])
                x = block(
                    width * 2 ** (stage - 1),
                    self.bottleneck,
                    1 if i else step,
                    rates,
                    layer_config,
                    name=f"layer{stage}_{i}",
                )(x, train)
            features[f"c{stage + 1}"] = x
        return features
