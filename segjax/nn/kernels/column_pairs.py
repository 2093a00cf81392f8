"""Layers for TPUs on maps of few channels: two neighbouring columns are stored as one pair, side by side in channels.

A TPU processes 128 channels at a time, so maps of 64 channels waste half of its memory, bandwidth and multiplications.
The layers here store maps [b, h, w, c] as paired maps [b, h, w / 2, 2 c]. Their parameters, parameter names and results
are those of the layers in `segjax.nn.layers`; only the memory layout differs.

Columns are paired in two ways. "Even" maps hold (0, 1), (2, 3), ...; "shifted" maps hold (-1, 0), (1, 2), ...,
(w - 1, w), where columns -1 and w are zero. Columns 2 j and 2 j + 1 of a 3x3 convolution read columns 2 j - 1 to
2 j + 2: exactly two pairs of the other kind. From even to shifted maps or back, a kernel of 3x2 pairs is therefore
enough, with 4 / 3 of the unpaired multiplications. Between maps of one kind it would take 3x3 pairs and twice as many.

All costs below are millions of cycles (Mcycles) per training step of a U-Net with two levels of 64 and 128 channels, in
bfloat16, with 19 classes and 8 x 512x512 pixels per chip: 164 Mcycles unpaired, 85 paired. With five levels, 64 to 1024
channels, they are 229 and 151. Estimates of the TPU compiler: libtpu 0.0.42.1, v5e:2x2, JAX 0.10.2, 2026-11-25.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

from segjax.checks import UserError
from segjax.nn.batch_norm import mean_and_variance, move_running_statistics, num_devices
from segjax.nn.kernels.scaling import transposed_convolution
from segjax.nn.layers import DOUBLING, HE, LayerConfig
from segjax.parallel import num_row_shards

NHWC = ("NHWC", "HWIO", "NHWC")


def pair_columns(x: Float[Array, "b h w c"]) -> Float[Array, "b h w//2 2*c"]:
    """Stores neighbouring columns as pairs.

    Args:
        x: maps [b, h, w, c]; w is even.

    Returns:
        Even maps [b, h, w / 2, 2 c].

    Raises:
        UserError: rows are sharded over devices, which the layers here do not support.

    Example:
        >>> pair_columns(jnp.arange(4.0).reshape(1, 1, 4, 1)).tolist()
        [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    if num_row_shards() > 1:
        raise UserError(
            "model.pair_columns=True does not support sharded rows: set parallel.space=1 or model.pair_columns=False."
        )
    b, h, w, c = x.shape
    return x.reshape(b, h, w // 2, 2 * c)


def pair_kernel(kernel: Float[Array, "kh 3 c f"]) -> Float[Array, "kh 2 2*c 2*f"]:
    """Converts a kernel of three columns to one of two pairs, from even to shifted maps or back.

    Args:
        kernel: rows, 3 columns, channels of the maps and of the result.

    Returns:
        Rows, 2 pairs, and twice the channels of the maps and of the result.
    """
    rows, _, c, f = kernel.shape
    # A pair of result columns reads four columns: the left one reads the first three, the right one the last three.
    left, right = (jnp.pad(kernel, ((0, 0), gap, (0, 0), (0, 0))) for gap in ((0, 1), (1, 0)))
    return jnp.stack([left, right], axis=3).reshape(rows, 2, 2 * c, 2 * f)


def columns_in_image(x: Float[Array, "b h w c"]) -> Bool[Array, "1 1 w c"]:
    """Marks where shifted maps hold columns of the image: everywhere except the outer halves of the outer pairs.

    Args:
        x: shifted maps, of w / 2 + 1 pairs.

    Returns:
        bool, True for columns 0 to w - 1 of the image.
    """
    pair, channel = (lax.broadcasted_iota(jnp.int32, (1, 1, *x.shape[2:]), axis) for axis in (2, 3))
    right = channel >= x.shape[3] // 2
    return jnp.where(right, pair < x.shape[2] - 1, pair > 0)


def _to_even(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (0, 0)), dimension_numbers=NHWC)


@jax.custom_vjp
def _to_shifted(x, kernel):
    """Convolves even maps to shifted ones; the kernel's gradient convolves the output gradient with the maps.

    XLA computes the kernel's gradient the same way, but transposes the maps instead of the small result. That costs
    4.1 Mcycles per layer, and 3.0 more for a gradient that it then keeps in memory.
    """
    return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NHWC)


def _to_shifted_backward(residuals, g):
    x, kernel = residuals
    dx = jax.vjp(lambda x: _to_shifted.fun(x, kernel), x)[1](g)[0]
    dk = lax.conv_general_dilated(g, x, (1, 1), ((1, 1), (0, 0)), dimension_numbers=("CHWN", "IHWO", "NHWC"))
    return dx, dk[:, ::-1, ::-1].transpose(1, 2, 3, 0)


_to_shifted.defvjp(lambda x, kernel: (_to_shifted(x, kernel), (x, kernel)), _to_shifted_backward)


class PairedConv3x3(nn.Module):
    """3x3 convolution of paired maps.

    Attributes:
        features: channels per column of the result.
        shifted: convert even maps to shifted ones; otherwise shifted maps to even ones.
        parts: number of paired maps, with equal channels, concatenated in the input. They are convolved together:
            separate convolutions cost 1.6 Mcycles more.
        dtype: compute dtype.
    """

    features: int
    shifted: bool
    parts: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h _ _"]:
        """Convolves paired maps."""
        kernel = self.param("kernel", HE, (3, 3, x.shape[-1] // 2, self.features), jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        kernel = jnp.concatenate([pair_kernel(part) for part in jnp.split(kernel, self.parts, axis=2)], axis=2)
        return (_to_shifted if self.shifted else _to_even)(x, kernel)


class PairedBatchNormReLU(nn.Module):
    """Batch norm, with statistics over both columns of each pair, and ReLU.

    Attributes:
        layer_config: momentum, epsilon, dtype and pmap axis.
        shifted: the maps are shifted; columns outside the image are left out of the statistics and set to zero.
    """

    layer_config: LayerConfig
    shifted: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Normalises paired maps."""
        layer_config, features = self.layer_config, x.shape[-1] // 2
        scale = self.param("scale", nn.initializers.ones, (features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)
        mean, var = running_mean.value, running_var.value
        x = x.astype(jnp.float32)
        if train and layer_config.learns(*self.path):
            counted = jnp.where(columns_in_image(x), x, 0.0) if self.shifted else x
            sums = jnp.stack([counted.sum((0, 1, 2)), jnp.square(counted).sum((0, 1, 2))])
            count = x.shape[0] * x.shape[1] * 2 * (x.shape[2] - self.shifted)
            first, second = sums.reshape(2, 2, features).sum(1) / count
            axis_name = None if self.is_initializing() else layer_config.axis_name
            mean, var = mean_and_variance(first, second, axis_name)
            if not self.is_initializing():
                count *= num_devices(axis_name)
                move_running_statistics(running_mean, running_var, mean, var, count, layer_config.momentum)
        factor = lax.rsqrt(var + layer_config.epsilon) * scale
        mean, factor, bias = (jnp.tile(v, 2).reshape(1, 1, 1, -1) for v in (mean, factor, bias))
        x = nn.relu((x - mean) * factor + bias).astype(layer_config.dtype)
        return jnp.where(columns_in_image(x), x, jnp.zeros((), x.dtype)) if self.shifted else x


class PairedConvNorm(nn.Module):
    """3x3 convolution, batch norm and ReLU: `segjax.nn.layers.ConvNorm` for paired maps.

    Attributes:
        features: channels per column of the result.
        layer_config: norm and dtype.
        shifted: convert even maps to shifted ones; otherwise shifted maps to even ones.
        parts: number of paired maps, with equal channels, concatenated in the input.
    """

    features: int
    layer_config: LayerConfig
    shifted: bool
    parts: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h _ _"]:
        """Applies the layer to paired maps."""
        x = PairedConv3x3(self.features, self.shifted, self.parts, self.layer_config.dtype, name="conv")(x)
        return PairedBatchNormReLU(self.layer_config, self.shifted, name="norm")(x, train)


class PairedConvBlock(nn.Module):
    """Two `PairedConvNorm` layers: from even maps to shifted ones and back.

    Attributes:
        features: channels per column of the result.
        layer_config: norm and dtype.
        parts: number of paired maps, with equal channels, concatenated in the input.
    """

    features: int
    layer_config: LayerConfig
    parts: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w _"]:
        """Applies the block to even maps."""
        x = PairedConvNorm(self.features, self.layer_config, True, self.parts, name="conv1")(x, train)
        return PairedConvNorm(self.features, self.layer_config, False, name="conv2")(x, train)


def paired_max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w c//2"]:
    """Takes the maximum of each 2x2 block; on ties the upper row gets the gradient, then the left column.

    Rows are sliced with a stride: on its own, pooling with its gradient takes 11 Mcycles, but 24 with a reshape.

    Args:
        x: even maps; the number of rows is even.

    Returns:
        Unpaired maps at half the rows and columns.

    Example:
        >>> paired_max_pool(pair_columns(jnp.arange(4.0).reshape(1, 2, 2, 1))).ravel()
        Array([3.], dtype=float32)
    """

    def larger(a, b):
        return jnp.where((a >= b) | jnp.isnan(a), a, b)

    x = larger(x[:, ::2], x[:, 1::2])
    return larger(*jnp.split(x, 2, axis=-1))


class PairedUpConv2x2(nn.Module):
    """Transposed 2x2 convolution of stride 2 that outputs paired maps: see `segjax.nn.layers.UpConv2x2`.

    Attributes:
        features: channels per column of the result.
        dtype: compute dtype.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h w _"]:
        """Doubles rows and columns.

        Args:
            x: unpaired maps [b, h, w, c].

        Returns:
            Even maps [b, 2 h, w, 2 features].
        """
        channels = x.shape[-1]
        kernel = self.param("kernel", DOUBLING, (2, 2, channels, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        # The kernel's columns become channels. They are reversed, as the transposed convolution does with rows.
        kernel = kernel[:, ::-1].transpose(0, 2, 1, 3).reshape(2, 1, channels, 2 * self.features)
        return transposed_convolution(x, kernel) + jnp.tile(bias, 2).reshape(1, 1, 1, -1)


@jax.custom_vjp
def _logits_of_pairs(x, kernel):
    """Computes the logits of each column, float32 [b, h, w / 2, 2, k], with a kernel [2 c, 2, k].

    As a matrix product, XLA lays the logits out with columns in the lanes, where the loss is cheap. As a 1x1
    convolution it puts the few classes there, which costs 25 Mcycles more when unpaired. The gradient is transposed to
    classes in the lanes once. The barrier keeps the loss out of that layout, and keeps XLA from transposing once per
    use, at 5 Mcycles more. TPUs multiply in bfloat16 there, so rounding the gradient of bfloat16 maps first loses
    nothing.
    """
    return jnp.einsum("bhwc,cjk->bhwjk", x.astype(jnp.float32), kernel)


def _logits_backward(residuals, g):
    x, kernel = residuals
    g = lax.optimization_barrier(g.astype(x.dtype)).astype(jnp.float32).reshape(*x.shape[:3], -1)

    def pointwise(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC)

    dx, dk = jax.vjp(pointwise, x.astype(jnp.float32), kernel.reshape(1, 1, x.shape[-1], -1))[1](g)
    return dx.astype(x.dtype), dk.reshape(kernel.shape)


_logits_of_pairs.defvjp(lambda x, kernel: (_logits_of_pairs(x, kernel), (x, kernel)), _logits_backward)


class PairedHead(nn.Module):
    """1x1 convolution with a bias, in float32, from paired maps to unpaired logits.

    Attributes:
        channels: logits per pixel.
    """

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h 2*w k"]:
        """Computes the logits of each pixel.

        Args:
            x: even maps.

        Returns:
            Logits, float32, with two columns for each pair.
        """
        b, h, pairs, channels = x.shape
        kernel = self.param("kernel", HE, (1, 1, channels // 2, self.channels), jnp.float32)[0, 0]
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        gap = jnp.zeros_like(kernel)
        left, right = jnp.concatenate([kernel, gap]), jnp.concatenate([gap, kernel])
        logits = _logits_of_pairs(x, jnp.stack([left, right], axis=1))
        return logits.reshape(b, h, 2 * pairs, self.channels) + bias.reshape(1, 1, 1, -1)
