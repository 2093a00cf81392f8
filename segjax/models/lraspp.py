"""Lite R-ASPP, a fast head for MobileNets: Howard et al., 2019, section 6.4 (arXiv:1905.02244), as in torchvision."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.checks import Key
from segjax.models.network import HEAD, Network
from segjax.nn import backbones
from segjax.nn.layers import Conv, ConvNorm
from segjax.nn.resize import resize


class LRASPP(Network):
    """Sums logits of the stride-8 features and of the last features; a gate from image pooling weights the latter.

    The paper pools over a 49x49 window; this module pools over the full image, as torchvision does. Images of another
    size than the training crops are therefore gated by other means than in training.

    Example:
        >>> net = LRASPP(num_logits=2, backbone="mobilenet_v3_micro", width=8)
        >>> images = jnp.zeros((1, 33, 65, 3))
        >>> variables = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
        >>> jax.eval_shape(lambda v: net.apply(v, images, train=False), variables)["logits"].shape
        (1, 5, 9, 2)
    """

    backbone: Annotated[str, Key("a key of `segjax.nn.backbones.BACKBONES`")] = "mobilenet_v3_large"
    output_stride: Annotated[int, Key("stride of the backbone's last features", (8, 16, 32))] = 16
    width: Annotated[int, Key("channels of the last features", "[1, inf)")] = 128
    variant: Annotated[str, Key("where dilation starts, to match weights", ("torchvision", "atrous"))] = "torchvision"

    def __post_init__(self):
        """Checks the backbone."""
        backbones.check_settings(self.backbone, self.output_stride)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, Float[Array, "b _ _ k"]]:
        """Maps normalised images to logits.

        Args:
            images: float32 [b, h, w, c].
            train: use (and update) batch statistics.

        Returns:
            {"logits": float32 [b, h / 8, w / 8, num_logits]}, rounded as in the backbone.
        """
        backbone = backbones.create(
            self.backbone,
            layer_config=self.layer_config,
            output_stride=self.output_stride,
            variant=self.variant,
            module_name="backbone",
        )
        features = backbone(images, train)
        low, high = features["c3"], features["c5"]
        mean = jnp.mean(high, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        gate = jax.nn.sigmoid(Conv(self.width, 1, dtype=self.dtype, name="scale")(mean))
        x = ConvNorm(self.width, self.layer_config, 1, name="conv")(high, train) * gate
        # This head is linear, so it is applied before upsampling: the same values from fewer pixels.
        scores = Conv(self.num_logits, 1, use_bias=True, kernel_init=HEAD, name="head_high")(x)
        return {
            "logits": Conv(self.num_logits, 1, use_bias=True, kernel_init=HEAD, name="head_low")(low)
            + resize(scores, low.shape[1:3])
        }
