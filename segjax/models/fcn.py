"""FCN: Long, Shelhamer and Darrell, 2015 (arXiv:1411.4038), and torchvision's FCN on dilated ResNets."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.checks import Key, UserError
from segjax.models.auxiliary import auxiliary
from segjax.models.network import HEAD, Network
from segjax.nn import backbones
from segjax.nn.layers import Conv, ConvNorm
from segjax.nn.resize import crop_or_repeat_edge

SKIPS = {"32s": (), "16s": ("c4",), "8s": ("c4", "c3")}


def bilinear(key: jax.Array | None, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Float[Array, "4 4 k k"]:
    """Makes the kernel of a transposed 4x4 convolution of stride 2 that upsamples bilinearly (section 3.3).

    Args:
        key: unused; initialisers are called with (key, shape, dtype).
        shape: 4, 4, channels, channels.
        dtype: dtype of the kernel.

    Returns:
        The kernel.

    Example:
        >>> bilinear(None, (4, 4, 1, 1))[:, 0, 0, 0] / 0.25
        Array([0.25, 0.75, 0.75, 0.25], dtype=float32)
    """
    line = jnp.array([0.25, 0.75, 0.75, 0.25], dtype)
    return jnp.einsum("y,x,ij->yxij", line, line, jnp.eye(shape[2], dtype=dtype))


class FCN(Network):
    """A backbone and a fully convolutional head.

    head "32s", "16s" and "8s" are the paper's: the two dense layers of the classifier become convolutions, and logits
    of finer features are added between transposed convolutions that are initialised as bilinear interpolation. The last
    upsampling, which the paper keeps fixed, is left to the bilinear resize of the logits. Caffe pads the image by 100
    pixels for the 7x7 layer; here that layer is padded instead. head "conv" is a 3x3 convolution on a dilated backbone,
    as in torchvision.

    Example:
        >>> net = FCN(num_logits=2, backbone="vgg_micro", head="8s", width=16)
        >>> images = jnp.zeros((1, 70, 64, 3))
        >>> variables = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
        >>> jax.eval_shape(lambda v: net.apply(v, images, train=False), variables)["logits"].shape
        (1, 8, 8, 2)
    """

    backbone: Annotated[str, Key("a key of `segjax.nn.backbones.BACKBONES`; the paper's is vgg16")] = "resnet50"
    head: Annotated[str, Key("a 3x3 convolution, or the paper's head with skips", ("conv", *SKIPS))] = "conv"
    output_stride: Annotated[int, Key("of the backbone; 0: 8, or 32 for the paper's heads", (0, 8, 16, 32))] = 0
    width: Annotated[
        int, Key("channels before the logits; 0: a quarter of the backbone's, 4096 in the paper's heads", "[0, inf)")
    ] = 0
    dropout: Annotated[float, Key("dropout rate before the logits; paper: 0.5", "[0, 1)")] = 0.1
    aux: Annotated[str, Key("features for an auxiliary head; objective.aux weights its loss", ("", "c3", "c4"))] = ""
    aux_dropout: Annotated[float, Key("dropout rate of the auxiliary head", "[0, 1)")] = 0.1
    variant: Annotated[str, Key("where dilation starts, to match weights", ("atrous", "torchvision"))] = "atrous"

    def __post_init__(self):
        """Sets the default output stride and checks that the settings are compatible."""
        if not self.output_stride:
            self.output_stride = 8 if self.head == "conv" else 32
        if SKIPS.get(self.head) and self.output_stride != 32:
            raise UserError(
                f"model.head={self.head!r} adds logits of strides 32, 16 and 8: set model.output_stride=32 or "
                "model.head='conv'."
            )
        backbones.check_settings(self.backbone, self.output_stride)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, Float[Array, "b _ _ k"]]:
        """Maps normalised images to logits.

        Args:
            images: float32 [b, h, w, c].
            train: use (and update) batch statistics, and apply dropout.

        Returns:
            {"logits": float32 [b, h / s, w / s, num_logits]}, rounded as in the backbone. The stride s is the
            backbone's for "conv" and "32s", 16 or 8 for the others. With `aux` also "aux", at the stride of those
            features.
        """
        layer_config = self.layer_config
        stride = self.output_stride
        backbone = backbones.create(
            self.backbone, layer_config=layer_config, output_stride=stride, variant=self.variant, module_name="backbone"
        )
        features = backbone(images, train)
        x = features["c5"]
        if self.head == "conv":
            width = self.width or x.shape[-1] // 4
            x = ConvNorm(width, layer_config, name="conv")(x, train)
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
            outputs = {"logits": Conv(self.num_logits, 1, use_bias=True, kernel_init=HEAD, name="head")(x)}
        else:
            outputs = {"logits": self._paper_head(features, train)}
        return outputs | auxiliary(self.aux, features, self.num_logits, layer_config, self.aux_dropout, train)

    def _paper_head(self, features, train):
        """Applies the paper's head: sections 3.1 (dense layers as convolutions) and 4.2 (skips)."""
        x = features["c5"]
        for name, size in (("fc6", 7), ("fc7", 1)):
            x = nn.relu(Conv(self.width or 4096, size, use_bias=True, dtype=self.dtype, name=name)(x))
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
        # Section 4.3: logits start at zero, upsampling starts as bilinear interpolation.
        zeros = nn.initializers.zeros
        x = Conv(self.num_logits, 1, use_bias=True, kernel_init=zeros, name="head")(x)
        for tap in SKIPS[self.head]:
            scores = Conv(self.num_logits, 1, use_bias=True, kernel_init=zeros, name=f"head_{tap}")(features[tap])
            up = nn.ConvTranspose(
                self.num_logits, (4, 4), (2, 2), use_bias=False, kernel_init=bilinear, name=f"up_{tap}"
            )
            x = crop_or_repeat_edge(up(x), scores.shape[1:3]) + scores
        return x
