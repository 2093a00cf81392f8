"""Panoptic-DeepLab (Cheng et al., 2020, arXiv:1911.10194): class logits, a centre heatmap, and per-pixel offsets."""

from typing import Annotated

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.checks import Key
from segjax.models.deeplab import DeepLab
from segjax.models.network import HEAD
from segjax.nn.aspp import SeparableConv
from segjax.nn.layers import Conv, ConvNorm
from segjax.nn.resize import resize


class PanopticDeepLab(DeepLab):
    """Two ASPP modules with decoders on one dilated backbone: one for classes, one for objects (section 3.1).

    A decoder concatenates the features of stride 8, then those of stride 4; a 1x1 convolution reduces each, and a 5x5
    convolution follows. A head is a 5x5 and a 1x1 convolution. With `width` 256 the channels are the paper's: the
    features of stride 8 and 4 are reduced to 64 and 32 for classes, 32 and 16 for objects; the decoders have 256 and
    128 channels, the heads 256 and 32. All widths derive from `width` and are at least 8. Without `separable`, two 3x3
    convolutions replace a 5x5 one, as in detectron2.

    Example:
        >>> import jax
        >>> net = PanopticDeepLab(num_logits=2, backbone="resnet_micro", width=16)
        >>> images = jnp.zeros((1, 33, 65, 3))
        >>> variables = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
        >>> out = jax.eval_shape(lambda v: net.apply(v, images, train=False), variables)
        >>> {name: x.shape for name, x in sorted(out.items())}
        {'centre': (1, 9, 17), 'logits': (1, 9, 17, 2), 'offset': (1, 9, 17, 2)}
    """

    separable: Annotated[bool, Key("depthwise separable convolutions")] = True
    dropout: Annotated[float, Key("dropout rate after ASPP", "[0, 1)")] = 0.1

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of `__call__`."""
        return ("logits", "centre", "offset")

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, Float[Array, "b _ _ ..."]]:
        """Maps normalised images to logits, a centre heatmap and offsets.

        Args:
            images: float32 [b, h, w, c].
            train: use (and update) batch statistics, and apply dropout.

        Returns:
            {"logits": [b, h / 4, w / 4, num_logits], "centre": [b, h / 4, w / 4], "offset": [b, h / 4, w / 4, 2]},
            float32, rounded as in the backbone; offsets are (dy, dx) in pixels of these maps.
        """
        features = self._features(images, train)
        part = max(8, self.width // 2)
        x = self._decoder("semantic", features, self.width, train)
        objects = self._decoder("instance", features, part, train)
        return {
            "logits": self._named_head("head", self.width, self.num_logits, x, train),
            "centre": self._named_head("centre", part // 4, 1, objects, train)[..., 0],
            "offset": self._named_head("offset", part // 4, 2, objects, train),
        }

    def _decoder(self, name, features, width, train):
        x = self._pyramid(features["c5"], train, f"{name}_aspp")
        for tap, share in (("c3", 4), ("c2", 8)):
            low = ConvNorm(max(8, width // share), self.layer_config, 1, name=f"{name}_{tap}")(features[tap], train)
            x = jnp.concatenate([resize(x, low.shape[1:3]), low], axis=-1)
            x = self._conv5x5(f"{name}_fuse_{tap}", width, x, train)
        return x

    def _named_head(self, name, width, channels, x, train):
        x = self._conv5x5(f"{name}_conv", max(8, width), x, train)
        return Conv(channels, 1, use_bias=True, kernel_init=HEAD, name=name)(x)

    def _conv5x5(self, name, width, x, train):
        """Applies a 5x5 convolution, or two 3x3 ones."""
        if self.separable:
            return SeparableConv(width, self.layer_config, kernel=5, name=name)(x, train)
        for i in range(2):
            x = ConvNorm(width, self.layer_config, name=f"{name}_{i}")(x, train)
        return x
