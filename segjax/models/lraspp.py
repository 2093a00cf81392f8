"""Lite reduced ASPP, the fast one: Howard et al., 2019, section 6.4 (arXiv:1905.02244), as torchvision has it."""

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
    """Scores of stride 8 and of the last features, these weighted by a gate that the whole image sets.

    The paper's gate is the mean of a 49x49 window; this one, torchvision's, of the whole image, so that images of
    another size than the training crops are gated by other means than was trained.

    Example:
        >>> net = LRASPP(channels=2, backbone="mobilenet_v3_micro", width=8)
        >>> images = jnp.zeros((1, 33, 65, 3))
        >>> variables = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
        >>> jax.eval_shape(lambda v: net.apply(v, images, train=False), variables)["logits"].shape
        (1, 5, 9, 2)
    """

    backbone: Annotated[str, Key("a key of `segjax.nn.backbones.BACKBONES`")] = "mobilenet_v3_large"
    output_stride: Annotated[int, Key("finest resolution that the backbone keeps", (8, 16, 32))] = 16
    width: Annotated[int, Key("channels of the last features", "[1, inf)")] = 128
    convention: Annotated[str, Key("whose dilations, for their weights", ("torchvision", "atrous"))] = "torchvision"

    def __post_init__(self):
        """Checks the backbone."""
        backbones.check(self.backbone, self.output_stride)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, Float[Array, "b y x k"]]:
        """Maps normalised images to logits.

        Args:
            images: float32 [b, h, w, c].
            train: use (and update) batch statistics.

        Returns:
            {"logits": float32 [b, h / 8, w / 8, channels]}, sizes as the backbone rounds.
        """
        backbone = backbones.create(
            self.backbone, self.style, self.output_stride, convention=self.convention, name="backbone"
        )
        features = backbone(images, train)
        low, high = features["c3"], features["c5"]
        mean = jnp.mean(high, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        gate = jax.nn.sigmoid(Conv(self.width, 1, dtype=self.dtype, name="scale")(mean))
        x = ConvNorm(self.width, self.style, 1, name="conv")(high, train) * gate
        # The scores of the last features are linear, so they are taken before the maps are enlarged: the same values
        # from fewer pixels.
        scores = Conv(self.channels, 1, use_bias=True, kernel_init=HEAD, name="head_high")(x)
        return {
            "logits": Conv(self.channels, 1, use_bias=True, kernel_init=HEAD, name="head_low")(low)
            + resize(scores, low.shape[1:3])
        }
