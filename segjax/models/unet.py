"""U-Net: Ronneberger, Fischer and Brox, 2015 (arXiv:1505.04597), as in the paper or as it is used today."""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.config import check_choice
from segjax.nn.ops import UpConv2x2, max_pool_2x2
from segjax.nn.resize import resize

HE = nn.initializers.he_normal()  # section 3: standard deviation sqrt(2 / N), N inputs of a neuron


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each followed by a norm (where there is one) and ReLU.

    Attributes:
        features: channels of the result.
        padding: "same" or "valid"; valid trims two pixels from each side.
        norm: "batch", "group" (at most 32 groups) or "none".
        momentum: share of the old batch statistics that is kept each step.
        dtype: compute dtype.
        axis_name: pmap axis over which batch statistics are taken.
    """

    features: int
    padding: str
    norm: str
    momentum: float
    dtype: str
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b i j f"]:
        """Applies the block to maps [b, h, w, c]."""
        for _ in range(2):
            x = nn.Conv(
                self.features,
                (3, 3),
                padding=self.padding.upper(),
                use_bias=self.norm == "none",
                kernel_init=HE,
                dtype=self.dtype,
            )(x)
            # Norms work in float32 whatever the compute dtype; XLA fuses the casts into them.
            if self.norm == "batch":
                norm = nn.BatchNorm(not train, momentum=self.momentum, axis_name=self.axis_name)
                x = norm(x.astype(jnp.float32)).astype(self.dtype)
            elif self.norm == "group":
                x = nn.GroupNorm(math.gcd(32, self.features))(x.astype(jnp.float32)).astype(self.dtype)
            x = nn.relu(x)
        return x


class UNet(nn.Module):
    """Contracting and expanding paths joined by skips at every level.

    Any input size will do: same padding fills up to the network's stride at the bottom and right and crops back.
    Valid padding is the paper's network: each side loses `margin` pixels (92 at five levels: 572 -> 388), which
    the caller supplies as context around the label.

    Attributes:
        channels: logits a pixel.
        widths: channels of each level, full resolution first; their number is the depth.
        padding: "same", or "valid" as in the paper.
        norm: "batch", "group" or "none" (the paper's).
        upsampling: "transposed" 2x2 convolution (the paper's), or bilinear "resize" and a 3x3 convolution.
        dropout: rate at the end of the contracting path (section 3.1).
        momentum: share of the old batch statistics that is kept each step.
        dtype: compute dtype, "float32" or "bfloat16"; parameters, statistics and logits are float32.
        remat: recompute each block's activations in the backward pass.
        axis_name: pmap axis over which batch statistics are taken.

    Example:
        >>> import jax
        >>> net = UNet(channels=2, widths=(4, 8))
        >>> images = jnp.zeros((1, 15, 20, 3))
        >>> variables = net.init(jax.random.key(0), images, train=False)
        >>> net.apply(variables, images, train=False)["logits"].shape
        (1, 15, 20, 2)
    """

    channels: int
    widths: tuple[int, ...] = (32, 64, 128, 256)
    padding: str = "same"
    norm: str = "batch"
    upsampling: str = "transposed"
    dropout: float = 0.0
    momentum: float = 0.9
    dtype: str = "float32"
    remat: bool = False
    axis_name: str | None = None

    def __post_init__(self):
        """Checks the choices."""
        check_choice("model.padding", self.padding, ("same", "valid"))
        check_choice("model.norm", self.norm, ("batch", "group", "none"))
        check_choice("model.upsampling", self.upsampling, ("transposed", "resize"))
        check_choice("model.dtype", self.dtype, ("float32", "bfloat16"))
        super().__post_init__()

    @property
    def margin(self) -> int:
        """Pixels that each side of the input loses: 0 with same padding, 92 at the paper's depth."""
        return 0 if self.padding == "same" else 6 * self._stride - 4

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> dict[str, Float[Array, "b y x k"]]:
        """Maps normalised images to logits.

        Args:
            images: float32 [b, h, w, c].
            train: use (and update) batch statistics, and drop out.

        Returns:
            {"logits": float32 [b, h - 2 margin, w - 2 margin, channels]}, stride 1.
        """
        block = nn.remat(ConvBlock, static_argnums=(2,)) if self.remat else ConvBlock

        def convolve(name, features, x):
            settings = (features, self.padding, self.norm, self.momentum, self.dtype, self.axis_name)
            return block(*settings, name=name)(x, train)

        height, width = (n - 2 * self.margin for n in images.shape[1:3])
        bottom, right = (self._padded(n) - n for n in images.shape[1:3])
        x = jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))

        skips = []
        for level, features in enumerate(self.widths):
            x = convolve(f"down_{level}", features, max_pool_2x2(x) if level else x)
            skips.append(x)
        x = nn.Dropout(self.dropout)(skips.pop(), deterministic=not train)
        for level, skip in reversed(list(enumerate(skips))):
            features = self.widths[level]
            if self.upsampling == "transposed":
                x = UpConv2x2(features, dtype=self.dtype, name=f"enlarge_{level}")(x)
            else:
                x = resize(x, (2 * x.shape[1], 2 * x.shape[2]))
                x = nn.Conv(features, (3, 3), kernel_init=HE, dtype=self.dtype, name=f"enlarge_{level}")(x)
            top, left = (skip.shape[1] - x.shape[1]) // 2, (skip.shape[2] - x.shape[2]) // 2
            skip = skip[:, top : top + x.shape[1], left : left + x.shape[2]]
            x = convolve(f"up_{level}", features, jnp.concatenate([skip, x], axis=-1))
        logits = nn.Conv(self.channels, (1, 1), dtype=jnp.float32, kernel_init=HE, name="head")(x)
        return {"logits": logits[:, :height, :width]}

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
