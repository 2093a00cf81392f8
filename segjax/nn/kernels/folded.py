"""Layers for maps of few channels that keep two neighbouring columns side by side in the channels, as TPUs like it.

A TPU works on 128 channels at a time, so maps of 64 channels waste half of its memory, bandwidth and products. Here
maps [b, h, w, c] lie as [b, h, w / 2, 2 c]: the parameters, their names and what is computed of them are those of the
layers in `segjax.nn.layers`, only the order in memory is another.

Columns pair up in two ways: "even" maps hold (0, 1), (2, 3), ... and "shifted" ones (-1, 0), (1, 2), ..., (w - 1, w),
whose columns -1 and w are zero. Columns 2 j and 2 j + 1 of a 3x3 convolution's result see the columns 2 j - 1 to
2 j + 2, which are two pairs of the other kind. So a kernel of 3x2 pairs does, with 4 / 3 of the products of the
unfolded one; between maps of the same kind it would be 3x3 pairs with twice the products.

Figures are millions of cycles as the TPU compiler estimates them (libtpu 0.0.42.1, v5e:2x2, JAX 0.10.2, 2026-11-25)
of a training step of a U-Net in bfloat16 on 8 x 512x512 pixels a chip with 19 classes; where nothing else is said
with two levels of 64 and 128 channels, which take 164 unfolded and 85 folded. With five levels, 64 to 1024 channels,
it is 229 and 151.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

from segjax.checks import UserError
from segjax.nn.kernels.scaling import transposed_convolution
from segjax.nn.layers import DOUBLING, HE, Style
from segjax.parallel import shards

NHWC = ("NHWC", "HWIO", "NHWC")


def fold(x: Float[Array, "b h w c"]) -> Float[Array, "b h v d"]:
    """Lays neighbouring columns side by side.

    Args:
        x: maps [b, h, w, c]; w is even.

    Returns:
        Even maps [b, h, w / 2, 2 c].

    Raises:
        UserError: rows are divided over devices, for which the layers here are not written.

    Example:
        >>> fold(jnp.arange(4.0).reshape(1, 1, 4, 1)).tolist()
        [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    if shards() > 1:
        raise UserError("model.fold=True divides no rows over devices: set parallel.space=1, or model.fold=False.")
    b, h, w, c = x.shape
    return x.reshape(b, h, w // 2, 2 * c)


def fold_kernel(kernel: Float[Array, "kh 3 i f"]) -> Float[Array, "kh 2 j g"]:
    """The kernel that does on pairs what a kernel of three columns does on columns.

    Args:
        kernel: rows, 3 columns, channels of the maps and of the result.

    Returns:
        Rows, 2 pairs, twice the channels each; from even to shifted maps and back.
    """
    rows, _, i, f = kernel.shape
    # Of the four columns that a pair of results sees, the left one sees the first three, the right one the others.
    left, right = (jnp.pad(kernel, ((0, 0), gap, (0, 0), (0, 0))) for gap in ((0, 1), (1, 0)))
    return jnp.stack([left, right], axis=3).reshape(rows, 2, 2 * i, 2 * f)


def inside(x: Float[Array, "b h v d"]) -> Bool[Array, "1 1 v d"]:
    """Where shifted maps hold columns of the image: everywhere but in the outer halves of the outer pairs.

    Args:
        x: shifted maps [b, h, w / 2 + 1, 2 c].

    Returns:
        bool [1, 1, w / 2 + 1, 2 c].
    """
    pair, channel = (lax.broadcasted_iota(jnp.int32, (1, 1, *x.shape[2:]), axis) for axis in (2, 3))
    right = channel >= x.shape[3] // 2
    return jnp.where(right, pair < x.shape[2] - 1, pair > 0)


def _to_even(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (0, 0)), dimension_numbers=NHWC)


@jax.custom_vjp
def _to_shifted(x, kernel):
    """Convolution of even maps; its kernel's gradient is one of the gradient with the maps.

    Left to itself XLA does the same, but turns the maps around where turning the small result is enough: 4.1 for each
    layer, and 3.0 more for a gradient that it then keeps in memory.
    """
    return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NHWC)


def _to_shifted_backward(residuals, g):
    x, kernel = residuals
    dx = jax.vjp(lambda x: _to_shifted.fun(x, kernel), x)[1](g)[0]
    dk = lax.conv_general_dilated(g, x, (1, 1), ((1, 1), (0, 0)), dimension_numbers=("CHWN", "IHWO", "NHWC"))
    return dx, dk[:, ::-1, ::-1].transpose(1, 2, 3, 0)


_to_shifted.defvjp(lambda x, kernel: (_to_shifted(x, kernel), (x, kernel)), _to_shifted_backward)


class Conv3x3(nn.Module):
    """3x3 convolution of folded maps.

    Attributes:
        features: channels of a column of the result.
        shifted: make shifted maps of even ones, or the reverse.
        parts: folded maps of as many channels each that were concatenated. They are convolved together: a convolution
            of each took 1.6 more.
        dtype: compute dtype.
    """

    features: int
    shifted: bool
    parts: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h v d"]) -> Float[Array, "b h u g"]:
        """Convolves folded maps."""
        kernel = self.param("kernel", HE, (3, 3, x.shape[-1] // 2, self.features), jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        kernel = jnp.concatenate([fold_kernel(part) for part in jnp.split(kernel, self.parts, axis=2)], axis=2)
        return (_to_shifted if self.shifted else _to_even)(x, kernel)


class BatchNormReLU(nn.Module):
    """Batch norm, over both halves of the channels, and ReLU.

    Attributes:
        style: momentum, epsilon, dtype and pmap axis.
        shifted: the maps are shifted; what lies outside the image stays out of the statistics and becomes zero.
    """

    style: Style
    shifted: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h v d"], train: bool) -> Float[Array, "b h v d"]:
        """Normalises folded maps."""
        style, features = self.style, x.shape[-1] // 2
        scale = self.param("scale", nn.initializers.ones, (features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)
        mean, var = running_mean.value, running_var.value
        x = x.astype(jnp.float32)
        if train and style.learns(*self.path):
            counted = jnp.where(inside(x), x, 0.0) if self.shifted else x
            sums = jnp.stack([counted.sum((0, 1, 2)), jnp.square(counted).sum((0, 1, 2))])
            columns = 2 * (x.shape[2] - self.shifted)
            moments = sums.reshape(2, 2, features).sum(1) / (x.shape[0] * x.shape[1] * columns)
            if style.axis_name:
                moments = lax.pmean(moments, style.axis_name)
            mean, var = moments[0], jnp.maximum(0.0, moments[1] - jnp.square(moments[0]))
            if not self.is_initializing():
                running_mean.value = style.momentum * running_mean.value + (1 - style.momentum) * mean
                running_var.value = style.momentum * running_var.value + (1 - style.momentum) * var
        factor = lax.rsqrt(var + style.epsilon) * scale
        mean, factor, bias = (jnp.tile(v, 2).reshape(1, 1, 1, -1) for v in (mean, factor, bias))
        x = nn.relu((x - mean) * factor + bias).astype(style.dtype)
        return jnp.where(inside(x), x, jnp.zeros((), x.dtype)) if self.shifted else x


class ConvNorm(nn.Module):
    """3x3 convolution, batch norm, ReLU: `segjax.nn.layers.ConvNorm` on folded maps.

    Attributes:
        features: channels of a column of the result.
        style: norm and dtype.
        shifted: make shifted maps of even ones, or the reverse.
        parts: folded maps of as many channels each that were concatenated.
    """

    features: int
    style: Style
    shifted: bool
    parts: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h v d"], train: bool) -> Float[Array, "b h u g"]:
        """Applies the layer to folded maps."""
        x = Conv3x3(self.features, self.shifted, self.parts, self.style.dtype, name="conv")(x)
        return BatchNormReLU(self.style, self.shifted, name="norm")(x, train)


class ConvBlock(nn.Module):
    """Two `ConvNorm`: from even maps to shifted ones and back.

    Attributes:
        features: channels of a column of the result.
        style: norm and dtype.
        parts: folded maps of as many channels each that were concatenated.
    """

    features: int
    style: Style
    parts: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h v d"], train: bool) -> Float[Array, "b h v g"]:
        """Applies the block to even maps [b, h, w / 2, 2 c]."""
        x = ConvNorm(self.features, self.style, True, self.parts, name="conv1")(x, train)
        return ConvNorm(self.features, self.style, False, name="conv2")(x, train)


def max_pool(x: Float[Array, "b h v d"]) -> Float[Array, "b i v c"]:
    """Largest value of each 2x2 block; of several equal ones the upper gets the gradient, then the left.

    Rows are taken by strides: alone, pooling and its gradient take 11 so, and 24 where a reshape splits the rows off.

    Args:
        x: even maps [b, h, w / 2, 2 c]; h is even.

    Returns:
        Unfolded maps [b, h / 2, w / 2, c].

    Example:
        >>> max_pool(fold(jnp.arange(4.0).reshape(1, 2, 2, 1))).ravel()
        Array([3.], dtype=float32)
    """

    def larger(a, b):
        return jnp.where((a >= b) | jnp.isnan(a), a, b)

    x = larger(x[:, ::2], x[:, 1::2])
    return larger(*jnp.split(x, 2, axis=-1))


class UpConv2x2(nn.Module):
    """Transposed 2x2 convolution of stride 2 that makes folded maps: `segjax.nn.layers.UpConv2x2`.

    Attributes:
        features: channels of a column of the result.
        dtype: compute dtype.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i w d"]:
        """Doubles the maps.

        Args:
            x: unfolded maps [b, h, w, c].

        Returns:
            Even maps [b, 2 h, w, 2 features].
        """
        channels = x.shape[-1]
        kernel = self.param("kernel", DOUBLING, (2, 2, channels, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        # The kernel's columns are turned around, as its rows, and become channels.
        kernel = kernel[:, ::-1].transpose(0, 2, 1, 3).reshape(2, 1, channels, 2 * self.features)
        return transposed_convolution(x, kernel) + jnp.tile(bias, 2).reshape(1, 1, 1, -1)


@jax.custom_vjp
def _scores(x, kernel):
    """Scores of each column, float32 [b, h, w / 2, 2, k], by a kernel [2 c, 2, k].

    As a product of matrices, XLA writes the scores with the columns in the lanes, where the loss is cheap to take; as a
    1x1 convolution it puts the few classes there, which takes 25 more unfolded. The gradient crosses over to classes in
    the lanes, once: the barrier keeps the loss from being laid out like it, and XLA from crossing once for each use,
    which takes 5 more. TPUs multiply in bfloat16 then, so for maps of that dtype nothing is lost by rounding before.
    """
    return jnp.einsum("bhwc,cjk->bhwjk", x.astype(jnp.float32), kernel)


def _scores_backward(residuals, g):
    x, kernel = residuals
    g = lax.optimization_barrier(g.astype(x.dtype)).astype(jnp.float32).reshape(*x.shape[:3], -1)

    def pointwise(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC)

    dx, dk = jax.vjp(pointwise, x.astype(jnp.float32), kernel.reshape(1, 1, x.shape[-1], -1))[1](g)
    return dx.astype(x.dtype), dk.reshape(kernel.shape)


_scores.defvjp(lambda x, kernel: (_scores(x, kernel), (x, kernel)), _scores_backward)


class Head(nn.Module):
    """1x1 convolution with a bias, in float32, from folded maps to unfolded scores.

    Attributes:
        channels: scores a pixel.
    """

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h v d"]) -> Float[Array, "b h w k"]:
        """Scores pixels.

        Args:
            x: even maps [b, h, w / 2, 2 c].

        Returns:
            float32 [b, h, w, channels].
        """
        b, h, v, d = x.shape
        kernel = self.param("kernel", HE, (1, 1, d // 2, self.channels), jnp.float32)[0, 0]
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        gap = jnp.zeros_like(kernel)
        left, right = jnp.concatenate([kernel, gap]), jnp.concatenate([gap, kernel])
        scores = _scores(x, jnp.stack([left, right], axis=1))
        return scores.reshape(b, h, 2 * v, self.channels) + bias.reshape(1, 1, 1, -1)
