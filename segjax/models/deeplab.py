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
    """Base of the DeepLab family: a dilated backbone and atrous spatial pyramid pooling (ASPP)."""

    backbone: Annotated[str, Key("a key of `segjax.nn.backbones.BACKBONES`")] = "resnet50"
    output_stride: Annotated[int, Key("stride of the backbone's last features", (8, 16, 32))] = 16
    atrous_rates: Annotated[
        tuple[int, ...], Key("dilations of ASPP at output stride 16; doubled at 8, halved at 32", "[1, inf)")
    ] = (6, 12, 18)
    width: Annotated[int, Key("channels of ASPP and of the layers after it", "[1, inf)")] = 256
    separable: Annotated[bool, Key("depthwise separable convolutions (V3+, section 3.1)")] = False
    pooling: Annotated[
        tuple[int, ...], Key("rows, columns in pixels of ASPP's pooling, such as the crop; (): all", "[1, inf)")
    ] = ()
    multi_grid: Annotated[
        tuple[int, ...], Key("factors on the dilations in a ResNet's last stage; V3: (1, 2, 4)", "[1, inf)")
    ] = (1, 1, 1)
    dropout: Annotated[float, Key("dropout rate after ASPP", "[0, 1)")] = 0.5
    variant: str = "atrous"

    def __post_init__(self):
        """Checks that the settings are compatible."""
        super().__post_init__()
        backbones.check_settings(self.backbone, self.output_stride, tuple(self.multi_grid))
        if not self.rates or min(self.rates) < 1 or len(self.pooling) not in (0, 2):
            raise UserError(
                f"model.atrous_rates={self.atrous_rates} must be positive at output stride {self.output_stride}, and "
                f"model.pooling={self.pooling} must be () or two numbers, rows and columns."
            )

    @property
    def rates(self) -> tuple[int, ...]:
        """Dilations of ASPP at this output stride: `atrous_rates`, doubled at 8 and halved at 32."""
        return tuple(rate * 16 // self.output_stride for rate in self.atrous_rates)

    def _features(self, images, train):
        """Returns the features of the backbone."""
        backbone = backbones.create(
            self.backbone,
            layer_config=self.layer_config,
            output_stride=self.output_stride,
            multi_grid=tuple(self.multi_grid),
            variant=self.variant,
            module_name="backbone",
        )
        return backbone(images, train)

    def _pyramid(self, x, train, name="aspp"):
        """Applies ASPP to the last features of the backbone."""
        pyramid = ASPP(
            self.width,
            self.layer_config,
            rates=self.rates,
            window=tuple(math.ceil(size / self.output_stride) for size in self.pooling),
            separable=self.separable,
            dropout=self.dropout,
            variant=self.variant,
            name=name,
        )
        return pyramid(x, train)

    def _head(self, x):
        return Conv(self.num_logits, 1, use_bias=True, kernel_init=HEAD, name="head")(x)


class DeepLabV3(DeepLab):
    """A dilated backbone, ASPP, a 3x3 convolution and a head at the output stride.

    `atrous_rates` scale with the output stride to cover the same area of the image (section 3.3). `pooling` is the
    window of ASPP's image pooling; set it to the training crop to evaluate larger images with the means seen in
    training. See section 3.2.1 for `multi_grid`.

    Example:
        >>> import jax
        >>> net = DeepLabV3(num_logits=2, backbone="resnet_micro", width=8)
        >>> images = jnp.zeros((1, 33, 65, 3))
        >>> variables = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
        >>> jax.eval_shape(lambda v: net.apply(v, images, train=False), variables)["logits"].shape
        (1, 3, 5, 2)
    """

    variant: Annotated[str, Key("where dilation starts, to match weights", ("atrous", "torchvision"))] = "atrous"
    aux: Annotated[str, Key("features for an auxiliary head; objective.aux weights its loss", ("", "c3", "c4"))] = ""
    aux_dropout: Annotated[float, Key("dropout rate of the auxiliary head", "[0, 1)")] = 0.1

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, Float[Array, "b _ _ k"]]:
        """Maps normalised images to logits.

        Args:
            images: float32 [b, h, w, c].
            train: use (and update) batch statistics, and apply dropout.

        Returns:
            {"logits": float32 [b, h / s, w / s, num_logits]} at the output stride s, rounded as in the backbone; with
            `aux` also "aux", logits at the stride of those features.
        """
        features = self._features(images, train)
        x = self._pyramid(features["c5"], train)
        x = ConvNorm(self.width, self.layer_config, name="conv")(x, train)
        beside = auxiliary(self.aux, features, self.num_logits, self.layer_config, self.aux_dropout, train)
        return {"logits": self._head(x)} | beside


class DeepLabV3Plus(DeepLab):
    """DeepLabV3 with a decoder: ASPP features are upsampled and concatenated with the features of stride 4.

    Variant "smp", of segmentation_models.pytorch, differs in dilation (see `segjax.nn.backbones.create`), has a norm
    and ReLU only after the pointwise half of a separable convolution, and upsamples with align_corners.

    Example:
        >>> import jax
        >>> net = DeepLabV3Plus(num_logits=2, backbone="resnet_micro", width=8)
        >>> images = jnp.zeros((1, 33, 65, 3))
        >>> variables = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
        >>> jax.eval_shape(lambda v: net.apply(v, images, train=False), variables)["logits"].shape
        (1, 9, 17, 2)
    """

    separable: Annotated[bool, Key("depthwise separable convolutions (V3+, section 3.1)")] = True
    variant: Annotated[str, Key("dilations and details, to match weights", ("atrous", "smp"))] = "atrous"
    low_width: Annotated[int, Key("channels of the reduced stride-4 features (section 4.1)", "[1, inf)")] = 48
    refine: Annotated[int, Key("3x3 convolutions before the concatenation (smp: 1)", "[0, inf)")] = 0
    fuse: Annotated[int, Key("3x3 convolutions after the concatenation (smp: 1)", "[0, inf)")] = 2

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, Float[Array, "b _ _ k"]]:
        """Maps normalised images to logits.

        Args:
            images: float32 [b, h, w, c].
            train: use (and update) batch statistics, and apply dropout.

        Returns:
            {"logits": float32 [b, h / 4, w / 4, num_logits]}, rounded as in the backbone.
        """
        features = self._features(images, train)
        x = self._pyramid(features["c5"], train)
        x = self._convolve("refine", self.refine, x, train)
        low = ConvNorm(self.low_width, self.layer_config, 1, name="low")(features["c2"], train)
        x = resize(x, low.shape[1:3], align_corners=self.variant == "smp")
        x = self._convolve("fuse", self.fuse, jnp.concatenate([x, low], axis=-1), train)
        return {"logits": self._head(x)}

    def _convolve(self, name, count, x, train):
        for i in range(count):
            if self.separable:
                layer = SeparableConv(self.width, self.layer_config, variant=self.variant, name=f"{name}_{i}")
            else:
                layer = ConvNorm(self.width, self.layer_config, name=f"{name}_{i}")
            x = layer(x, train)
        return x
