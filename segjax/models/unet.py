"""U-Net: Ronneberger, Fischer and Brox, 2015 (arXiv:1505.04597), as in the paper or on a backbone."""

import math
from typing import Annotated

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.checks import Key, UserError
from segjax.models.network import Network
from segjax.nn import backbones, kernels
from segjax.nn.kernels import column_pairs, max_pool
from segjax.nn.layers import Conv, ConvNorm, LayerConfig, UpConv2x2
from segjax.nn.resize import crop_or_repeat_edge, nearest, resize


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each followed by the norm, if any, and ReLU.

    Attributes:
        features: channels of the result.
        padding: "same" or "valid", which trims two pixels from each side.
        layer_config: norm and dtype.
    """

    features: int
    padding: str
    layer_config: LayerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b _ _ f"]:
        """Applies the block to maps [b, h, w, c]."""
        padding = (0, 0) if self.padding == "valid" else None
        x = ConvNorm(self.features, self.layer_config, padding=padding, name="conv1")(x, train)
        return ConvNorm(self.features, self.layer_config, padding=padding, name="conv2")(x, train)


class UNet(Network):
    """A contracting and an expanding path, connected by skips at every level.

    The contracting path is the paper's ("plain") or a backbone; on a backbone the expanding path is that of
    segmentation_models.pytorch. Any input size works: the plain network with same padding pads the bottom and right to
    a multiple of its stride and crops the result; on a backbone, each level is upsampled to the size of its skip. Valid
    padding is the paper's: each side loses `margin` pixels (92 at five levels: 572 -> 388), which the caller supplies
    as context around the label.

    In the plain network, `widths` sets the channels of both paths, one value per level. On a backbone, it sets the five
    widths of the expanding path. `upsampling` "auto" means "transposed", the paper's, or "nearest" on a backbone.

    Example:
        >>> import jax
        >>> net = UNet(num_logits=2, widths=(4, 8))
        >>> images = jnp.zeros((1, 15, 20, 3))
        >>> variables = net.init(jax.random.key(0), images, train=False)
        >>> net.apply(variables, images, train=False)["logits"].shape
        (1, 15, 20, 2)
    """

    backbone: Annotated[str, Key("plain (the paper's contracting path), or a backbone")] = "plain"
    widths: Annotated[
        tuple[int, ...],
        Key("channels of each level, full resolution first; (): 32 .. 256, on a backbone 16 .. 256", "[1, inf)"),
    ] = ()
    padding: Annotated[str, Key("valid: the paper's, with preprocess.context=92", ("same", "valid"))] = "same"
    upsampling: Annotated[
        str, Key("transposed; resize: bilinear and a convolution", ("auto", "transposed", "resize", "nearest"))
    ] = "auto"
    dropout: Annotated[float, Key("dropout rate at the lowest level (section 3.1)", "[0, 1)")] = 0.0
    pair_columns: Annotated[bool, Key("store full-resolution columns in pairs: same results, faster on TPUs")] = False

    def __post_init__(self):
        """Sets the defaults that depend on the backbone and checks that the settings are compatible."""
        if self.backbone != "plain":
            backbones.check_settings(self.backbone)
        if not self.widths:
            self.widths = (32, 64, 128, 256) if self.backbone == "plain" else (16, 32, 64, 128, 256)
        if self.upsampling == "auto":
            self.upsampling = "transposed" if self.backbone == "plain" else "nearest"
        if self.backbone != "plain" and self.padding == "valid":
            raise UserError(f"With model.backbone={self.backbone!r}, model.padding must be 'same'.")
        if self.backbone != "plain" and len(self.widths) != 5:
            raise UserError(
                f"With model.backbone={self.backbone!r}, model.widths={self.widths} must be five numbers, the channels "
                "at strides 1, 2, 4, 8 and 16, or () for (16, 32, 64, 128, 256)."
            )
        if self.pair_columns:
            needed = {"backbone": "plain", "padding": "same", "upsampling": "transposed", "norm": "batch"}
            for key, value in needed.items():
                if getattr(self, key) != value:
                    raise UserError(
                        f"model.pair_columns=True needs model.{key}={value!r}: set it, or set model.pair_columns=False."
                    )
            if len(self.widths) < 2:
                raise UserError(
                    f"model.pair_columns=True needs at least two levels, but model.widths={self.widths} has fewer."
                )
        super().__post_init__()

    @property
    def margin(self) -> int:
        """Pixels that the network trims from each side: 0 with same padding, 92 at the paper's depth."""
        return 0 if self.padding == "same" else 6 * self._stride - 4

    @property
    def layer_order(self) -> tuple[str, ...]:
        """Paths of the layers of the contracting path or the backbone, from input to output."""
        return super().layer_order or tuple(f"down_{level}" for level in range(len(self.widths)))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, Float[Array, "b y x k"]]:
        """Maps normalised images to logits.

        Args:
            images: float32 [b, h, w, c].
            train: use (and update) batch statistics, and apply dropout.

        Returns:
            {"logits": float32 [b, h - 2 margin, w - 2 margin, num_logits]}, stride 1.
        """
        height, width = (n - 2 * self.margin for n in images.shape[1:3])
        plain = self.backbone == "plain"
        skips = self._contract(images, train) if plain else self._encode(images, train)
        x = nn.Dropout(self.dropout)(skips.pop(), deterministic=not train)
        for level, skip in reversed(list(enumerate(skips))):
            # A level without backbone features has no skip.
            size = skip.shape[1:3] if skip is not None else tuple(n >> level for n in images.shape[1:3])
            x = self._enlarge(x, size, self.widths[level], level)
            if skip is not None:
                top, left = (skip.shape[1] - x.shape[1]) // 2, (skip.shape[2] - x.shape[2]) // 2
                skip = skip[:, top : top + x.shape[1], left : left + x.shape[2]]
                x = jnp.concatenate([x, skip], -1)
            x = self._block(level, "up", parts=2)(x, train)
        if self._paired(0):
            logits = column_pairs.PairedHead(self.num_logits, name="head")(x)
        else:
            logits = Conv(self.num_logits, 1 if plain else 3, use_bias=True, name="head")(x)
        return {"logits": logits[:, :height, :width]}

    def _contract(self, images, train):
        """Returns the maps of each level of the paper's contracting path."""
        bottom, right = (self._padded(n) - n for n in images.shape[1:3])
        x = jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
        x, maps = column_pairs.pair_columns(x) if self._paired(0) else x, []
        for level in range(len(self.widths)):
            if level:
                x = column_pairs.paired_max_pool(x) if self._paired(level - 1) else max_pool(x, 2, 2)
            x = self._block(level, "down", parts=1)(x, train)
            maps.append(x)
        return maps

    def _paired(self, level):
        return self.pair_columns and level == 0 and kernels.enabled()

    def _block(self, level, path, parts):
        """Makes the block of a level; `parts` is the number of maps concatenated in its input."""
        features, name = self.widths[level], f"{path}_{level}"
        if self._paired(level):
            return self.layer_config.block(column_pairs.PairedConvBlock)(features, self.layer_config, parts, name=name)
        return self.layer_config.block(ConvBlock)(features, self.padding, self.layer_config, name=name)

    def _encode(self, images, train):
        """Returns the backbone's features at strides 1 to 32, None where it has none."""
        features = backbones.create(self.backbone, layer_config=self.layer_config, module_name="backbone")(
            images, train
        )
        return [features.get(f"c{k}") for k in range(6)]

    def _enlarge(self, x, size, features, level):
        """Upsamples maps twofold, or to the size of the skip if a backbone rounded an odd size."""
        if self._paired(level):
            return column_pairs.PairedUpConv2x2(features, dtype=self.dtype, name=f"enlarge_{level}")(x)
        if self.upsampling == "transposed":
            x = UpConv2x2(features, dtype=self.dtype, name=f"enlarge_{level}")(x)
            return x if self.backbone == "plain" else crop_or_repeat_edge(x, size)
        size = size if self.padding == "same" else (2 * x.shape[1], 2 * x.shape[2])
        if self.upsampling == "nearest":
            return nearest(x, size)
        return Conv(features, use_bias=True, dtype=self.dtype, name=f"enlarge_{level}")(resize(x, size))

    @property
    def _stride(self) -> int:
        return 2 ** (len(self.widths) - 1)

    def _padded(self, size: int) -> int:
        """Returns the smallest input size >= `size` for which every pooling sees an even size."""
        stride = self._stride
        if self.padding == "same":
            return math.ceil(size / stride) * stride
        # Without padding, valid sizes are n * stride - 4, and n = 12 is the first with a non-empty output.
        return max(12, math.ceil((size + 4) / stride)) * stride - 4
