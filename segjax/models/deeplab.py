"""DeepLabV3 (Chen et al., 2017, arXiv:1706.05587) and DeepLabV3+ (2018, arXiv:1802.02611)."""

import math
from typing import Annotated

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.checks import Key, UserError
from segjax.models.auxiliary import auxiliary
from segjax.models.network import HEAD, Network
from segjax.nn import backbones
from segjax.nn.aspp import ASPP, SeparableConv
from segjax.nn.layers import Conv, ConvNorm
from segjax.nn.resize import resize


class DeepLab(Network):
    """What the family has in common: a dilated backbone and atrous spatial pyramid pooling."""

    backbone: Annotated[str, Key("a key of `segjax.nn.backbones.BACKBONES`")] = "resnet50"
    output_stride: Annotated[int, Key("finest resolution that the backbone keeps", (8, 16, 32))] = 16
    atrous_rates: Annotated[
        tuple[int, ...], Key("of the pyramid at output stride 16; at 8 twice, at 32 half as large", "[1, inf)")
    ] = (6, 12, 18)
    width: Annotated[int, Key("channels of the pyramid and of what follows", "[1, inf)")] = 256
    separable: Annotated[bool, Key("depthwise separable convolutions (V3+, section 3.1)")] = False
    pooling: Annotated[
        tuple[int, ...], Key("rows, columns in pixels of the pyramid's mean, such as the crop; (): all", "[1, inf)")
    ] = ()
    multi_grid: Annotated[
        tuple[int, ...], Key("factors of the dilations in a ResNet's last blocks; V3 takes (1, 2, 4)", "[1, inf)")
    ] = (1, 1, 1)
    dropout: Annotated[float, Key("rate after the pyramid", "[0, 1)")] = 0.5
    convention: str = "atrous"

    def __post_init__(self):
        """Checks that the settings fit each other."""
        super().__post_init__()
        backbones.check(self.backbone, self.output_stride, tuple(self.multi_grid))
        if not self.rates or min(self.rates) < 1 or len(self.pooling) not in (0, 2):
            raise UserError(
                f"model.atrous_rates={self.atrous_rates} must be positive at output stride {self.output_stride}, and "
                f"model.pooling={self.pooling} () or two numbers, rows and columns."
            )

    @property
    def rates(self) -> tuple[int, ...]:
        """Dilations of the pyramid at this output stride: at 8 twice `atrous_rates`, at 32 half of them."""
        return tuple(rate * 16 // self.output_stride for rate in self.atrous_rates)

    def _features(self, images, train):
        """Features of the backbone."""
        backbone = backbones.create(
            self.backbone, self.style, self.output_stride, tuple(self.multi_grid), self.convention, name="backbone"
        )
        return backbone(images, train)

    def _pyramid(self, x, train, name="aspp"):
        """Features of a pyramid on top of the backbone's last."""
        pyramid = ASPP(
            self.width,
            self.style,
            rates=self.rates,
            window=tuple(math.ceil(size / self.output_stride) for size in self.pooling),
            separable=self.separable,
            dropout=self.dropout,
            convention=self.convention,
            name=name,
        )
        return pyramid(x, train)

    def _head(self, x):
        return Conv(self.channels, 1, use_bias=True, kernel_init=HEAD, name="head")(x)


class DeepLabV3(DeepLab):
    """Atrous spatial pyramid pooling on a dilated backbone, a 3x3 convolution and scores at the output stride.

    `atrous_rates` follow the output stride so that they reach as many pixels of the image (section 3.3). `pooling` is
    the window whose mean is the pyramid's image feature: give the training crop to evaluate larger images as was
    trained. See section 3.2.1 for `multi_grid`.

    Example:
        >>> import jax
        >>> net = DeepLabV3(channels=2, backbone="resnet_micro", width=8)
        >>> images = jnp.zeros((1, 33, 65, 3))
        >>> variables = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
        >>> jax.eval_shape(lambda v: net.apply(v, images, train=False), variables)["logits"].shape
        (1, 3, 5, 2)
    """

    convention: Annotated[str, Key("whose dilations, for their weights", ("atrous", "torchvision"))] = "atrous"
    aux: Annotated[str, Key("features of an auxiliary head; objective.aux weighs its loss", ("", "c3", "c4"))] = ""

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, Float[Array, "b _ _ k"]]:
        """Maps normalised images to logits.

        Args:
            images: float32 [b, h, w, c].
            train: use (and update) batch statistics, and drop out.

        Returns:
            {"logits": float32 [b, h / s, w / s, channels]} at the output stride s, sizes as the backbone rounds; with
            `aux` also "aux", logits at the stride of those features.
        """
        features = self._features(images, train)
        x = self._pyramid(features["c5"], train)
        x = ConvNorm(self.width, self.style, name="conv")(x, train)
        return {"logits": self._head(x)} | auxiliary(self.aux, features, self.channels, self.style, train)


class DeepLabV3Plus(DeepLab):
    """The pyramid's features, enlarged and joined with those of stride 4.

    Convention "smp", of segmentation_models.pytorch, dilates otherwise, see `segjax.nn.backbones.create`, has norm and
    ReLU after the second half of a separable convolution only, and enlarges with align_corners.

    Example:
        >>> import jax
        >>> net = DeepLabV3Plus(channels=2, backbone="resnet_micro", width=8)
        >>> images = jnp.zeros((1, 33, 65, 3))
        >>> variables = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
        >>> jax.eval_shape(lambda v: net.apply(v, images, train=False), variables)["logits"].shape
        (1, 9, 17, 2)
    """

    separable: Annotated[bool, Key("depthwise separable convolutions (V3+, section 3.1)")] = True
    convention: Annotated[str, Key("whose dilations and details, for their weights", ("atrous", "smp"))] = "atrous"
    low_width: Annotated[int, Key("channels that features of stride 4 are reduced to (section 4.1)", "[1, inf)")] = 48
    refine: Annotated[int, Key("3x3 convolutions before the join (smp: 1)", "[0, inf)")] = 0
    fuse: Annotated[int, Key("3x3 convolutions after the join (smp: 1)", "[0, inf)")] = 2

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, Float[Array, "b _ _ k"]]:
        """Maps normalised images to logits.

        Args:
            images: float32 [b, h, w, c].
            train: use (and update) batch statistics, and drop out.

        Returns:
            {"logits": float32 [b, h / 4, w / 4, channels]}, sizes as the backbone rounds.
        """
        features = self._features(images, train)
        x = self._pyramid(features["c5"], train)
        x = self._convolve("refine", self.refine, x, train)
        low = ConvNorm(self.low_width, self.style, 1, name="low")(features["c2"], train)
        x = resize(x, low.shape[1:3], align_corners=self.convention == "smp")
        x = self._convolve("fuse", self.fuse, jnp.concatenate([x, low], axis=-1), train)
        return {"logits": self._head(x)}

    def _convolve(self, name, count, x, train):
        for i in range(count):
            if self.separable:
                layer = SeparableConv(self.width, self.style, convention=self.convention, name=f"{name}_{i}")
            else:
                layer = ConvNorm(self.width, self.style, name=f"{name}_{i}")
            x = layer(x, train)
        return x
