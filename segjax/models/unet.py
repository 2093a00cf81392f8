"""U-Net: Ronneberger, Fischer and Brox, 2015 (arXiv:1505.04597), as in the paper or as it is used today."""

import math
from typing import Annotated

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.checks import Key, UserError
from segjax.models.network import Network
from segjax.nn import backbones, kernels
from segjax.nn.kernels import folded, max_pool
from segjax.nn.layers import Conv, ConvNorm, Style, UpConv2x2
from segjax.nn.resize import match, nearest, resize


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each followed by a norm (where there is one) and ReLU.

    Attributes:
        features: channels of the result.
        padding: "same" or "valid"; valid trims two pixels from each side.
        style: norm and dtype.
    """

    features: int
    padding: str
    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b i j f"]:
        """Applies the block to maps [b, h, w, c]."""
        padding = (0, 0) if self.padding == "valid" else None
        x = ConvNorm(self.features, self.style, padding=padding, name="conv1")(x, train)
        return ConvNorm(self.features, self.style, padding=padding, name="conv2")(x, train)


class UNet(Network):
    """Contracting and expanding paths joined by skips at every level.

    The contracting path is the paper's, "plain", or a backbone, with the expanding path of segmentation_models.pytorch.
    Any input size will do: the plain network with same padding fills up to its stride at the bottom and right and
    crops back; on a backbone each level is enlarged to the size of its skip. Valid padding is the paper's network:
    each side loses `margin` pixels (92 at five levels: 572 -> 388), which the caller supplies as context around the
    label.

    `widths` are those of both paths in the plain network, where their number is the depth, and of the expanding path on
    a backbone, where there are five. `upsampling` "auto" is "transposed", the paper's, or "nearest" on a backbone.

    Example:
        >>> import jax
        >>> net = UNet(channels=2, widths=(4, 8))
        >>> images = jnp.zeros((1, 15, 20, 3))
        >>> variables = net.init(jax.random.key(0), images, train=False)
        >>> net.apply(variables, images, train=False)["logits"].shape
        (1, 15, 20, 2)
    """

    backbone: Annotated[str, Key("plain (the paper's contracting path) or a backbone")] = "plain"
    widths: Annotated[
        tuple[int, ...],
        Key("channels of each level, full resolution first; (): 32 .. 256, on a backbone 16 .. 256", "[1, inf)"),
    ] = ()
    padding: Annotated[str, Key("valid is the paper's: give preprocess.context=92", ("same", "valid"))] = "same"
    upsampling: Annotated[
        str, Key("2x2 convolution, bilinear and a convolution, or pixels", ("auto", "transposed", "resize", "nearest"))
    ] = "auto"
    dropout: Annotated[float, Key("rate at the bottom of the U (section 3.1)", "[0, 1)")] = 0.0
    fold: Annotated[bool, Key("full-resolution maps two columns side by side: the same, faster on TPUs")] = False

    def __post_init__(self):
        """Fills in what follows from the backbone, and checks that the settings fit each other."""
        if self.backbone != "plain":
            backbones.check(self.backbone)
        if not self.widths:
            self.widths = (32, 64, 128, 256) if self.backbone == "plain" else (16, 32, 64, 128, 256)
        if self.upsampling == "auto":
            self.upsampling = "transposed" if self.backbone == "plain" else "nearest"
        if self.backbone != "plain" and self.padding == "valid":
            raise UserError(f"On the backbone {self.backbone!r} model.padding must be 'same'.")
        if self.backbone != "plain" and len(self.widths) != 5:
            raise UserError(
                f"On the backbone {self.backbone!r} model.widths={self.widths} must be five numbers, the channels at "
                "strides 1, 2, 4, 8 and 16, or () for (16, 32, 64, 128, 256)."
            )
        if self.fold:
            needed = {"backbone": "plain", "padding": "same", "upsampling": "transposed", "norm": "batch"}
            for key, value in needed.items():
                if getattr(self, key) != value:
                    raise UserError(f"model.fold=True needs model.{key}={value!r}: set it, or model.fold=False.")
            if len(self.widths) < 2:
                raise UserError(f"model.fold=True needs two levels or more, and model.widths={self.widths} are fewer.")
        super().__post_init__()

    @property
    def margin(self) -> int:
        """Pixels that each side of the input loses: 0 with same padding, 92 at the paper's depth."""
        return 0 if self.padding == "same" else 6 * self._stride - 4

    @property
    def layer_order(self) -> tuple[str, ...]:
        """Paths of the layers from the input on: the contracting path, or the backbone's."""
        return super().layer_order or tuple(f"down_{level}" for level in range(len(self.widths)))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, Float[Array, "b y x k"]]:
        """Maps normalised images to logits.

        Args:
            images: float32 [b, h, w, c].
            train: use (and update) batch statistics, and drop out.

        Returns:
            {"logits": float32 [b, h - 2 margin, w - 2 margin, channels]}, stride 1.
        """
        height, width = (n - 2 * self.margin for n in images.shape[1:3])
        plain = self.backbone == "plain"
        skips = self._contract(images, train) if plain else self._encode(images, train)
        x = nn.Dropout(self.dropout)(skips.pop(), deterministic=not train)
        for level, skip in reversed(list(enumerate(skips))):
            # A level at which the backbone has no features is entered without a skip.
            size = skip.shape[1:3] if skip is not None else tuple(n >> level for n in images.shape[1:3])
            x = self._enlarge(x, size, self.widths[level], level)
            if skip is not None:
                top, left = (skip.shape[1] - x.shape[1]) // 2, (skip.shape[2] - x.shape[2]) // 2
                skip = skip[:, top : top + x.shape[1], left : left + x.shape[2]]
                x = jnp.concatenate([x, skip], -1)
            x = self._block(level, "up", parts=2)(x, train)
        if self._folded(0):
            logits = folded.Head(self.channels, name="head")(x)
        else:
            logits = Conv(self.channels, 1 if plain else 3, use_bias=True, name="head")(x)
        return {"logits": logits[:, :height, :width]}

    def _contract(self, images, train):
        """Maps of each level of the paper's contracting path."""
        bottom, right = (self._padded(n) - n for n in images.shape[1:3])
        x = jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
        x, maps = folded.fold(x) if self._folded(0) else x, []
        for level in range(len(self.widths)):
            if level:
                x = folded.max_pool(x) if self._folded(level - 1) else max_pool(x, 2, 2)
            x = self._block(level, "down", parts=1)(x, train)
            maps.append(x)
        return maps

    def _folded(self, level):
        return self.fold and level == 0 and kernels.enabled()

    def _block(self, level, path, parts):
        """Block of a level, for the concatenation of so many maps."""
        features, name = self.widths[level], f"{path}_{level}"
        if self._folded(level):
            return self.style.block(folded.ConvBlock)(features, self.style, parts, name=name)
        return self.style.block(ConvBlock)(features, self.padding, self.style, name=name)

    def _encode(self, images, train):
        """Maps of the backbone at strides 1 to 32; None where it has none."""
        features = backbones.create(self.backbone, self.style, name="backbone")(images, train)
        return [features.get(f"c{k}") for k in range(6)]

    def _enlarge(self, x, size, features, level):
        """Doubles the maps; to the size of the skip where a backbone rounded an odd size."""
        if self._folded(level):
            return folded.UpConv2x2(features, dtype=self.dtype, name=f"enlarge_{level}")(x)
        if self.upsampling == "transposed":
            x = UpConv2x2(features, dtype=self.dtype, name=f"enlarge_{level}")(x)
            return x if self.backbone == "plain" else match(x, size)
        size = size if self.padding == "same" else (2 * x.shape[1], 2 * x.shape[2])
        if self.upsampling == "nearest":
            return nearest(x, size)
        return Conv(features, use_bias=True, dtype=self.dtype, name=f"enlarge_{level}")(resize(x, size))

    @property
    def _stride(self) -> int:
        return 2 ** (len(self.widths) - 1)

    def _padded(self, size: int) -> int:
        """Smallest input size from `size` up at which every pooling has an even size."""
        stride = self._stride
        if self.padding == "same":
            return math.ceil(size / stride) * stride
        # Unpadded, the sizes that work are n * stride - 4, and n = 12 is the first that leaves an output.
        return max(12, math.ceil((size + 4) / stride)) * stride - 4
