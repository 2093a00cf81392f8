"""Convolution and norm as every network here uses them."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.checks import UserError, check_choice
from segjax.nn import kernels

HE = nn.initializers.he_normal()


def within(path: str, part: str) -> bool:
    """Whether a module or parameter is a part of a network, or lies in it; both are paths as "backbone/layer1_0"."""
    return path == part or path.startswith(f"{part}/")


@dataclasses.dataclass(frozen=True)
class Style:
    """What all layers of a network have in common."""

    norm: str = "batch"  # "batch", "group" (at most 32 groups) or "none"
    momentum: float = 0.9  # share of the old batch statistics that is kept each step
    epsilon: float = 1e-5  # added to the variance
    dtype: str = "float32"  # of computing; parameters and statistics are float32
    remat: bool = False  # recompute each block's activations in the backward pass
    axis_name: str | None = None  # pmap axis over which batch statistics are taken
    frozen: tuple[str, ...] = ()  # paths of the parts that do not learn

    def __post_init__(self):
        """Checks the choices."""
        check_choice("model.norm", self.norm, ("batch", "group", "none"))
        check_choice("model.dtype", self.dtype, ("float32", "bfloat16"))

    def learns(self, *names: str) -> bool:
        """Whether the module of this path is in no frozen part."""
        return not any(within("/".join(names), part) for part in self.frozen)

    def block(self, module: type[nn.Module]) -> type[nn.Module]:
        """Wraps a block `(x, train)` so that it is recomputed where the network says so."""
        return nn.remat(module, static_argnums=(2,)) if self.remat else module


class Conv(nn.Module):
    """Convolution with the same padding on both sides, so that pixel i of the result lies over pixel i * stride.

    XLA's own "SAME" puts more padding behind than before when the stride is 2 and the size even, PyTorch and the
    published weights do not. Maps may have any number of space axes.

    Attributes:
        features: channels of the result.
        kernel: size of the kernel, along all axes or each.
        stride: of the result, along all axes or each.
        dilation: distance between the kernel's elements, in pixels, along all axes or each.
        groups: of channels that are convolved apart; as many as channels for a depthwise convolution.
        padding: zeros (before, after) along all axes; None for dilation * (kernel - 1) / 2 on each side.
        use_bias: add a bias.
        dtype: compute dtype.
        kernel_init: initialiser of the kernel.
    """

    features: int
    kernel: int | tuple[int, ...] = 3
    stride: int | tuple[int, ...] = 1
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    padding: tuple[int, int] | None = None
    use_bias: bool = False
    dtype: str = "float32"
    kernel_init: Callable = HE

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"]) -> Float[Array, "b *out f"]:
        """Convolves maps [b, *space, c]."""
        axes = x.ndim - 2
        sizes = (self.kernel,) * axes if isinstance(self.kernel, int) else self.kernel
        shape = (*sizes, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        padding = self.padding
        if padding is None:
            dilations = (self.dilation,) * axes if isinstance(self.dilation, int) else self.dilation
            pads = [(dilation * (size - 1) // 2,) * 2 for dilation, size in zip(dilations, sizes, strict=True)]
            padding = pads[0] if len(set(pads)) == 1 else pads
        y = kernels.convolution(x, kernel, self.stride, self.dilation, self.groups, padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(y.dtype).reshape((1,) * (axes + 1) + (-1,))
        return y


# He initialisation counts the inputs of one output pixel: the windows do not overlap, so one pixel's channels.
DOUBLING = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal", in_axis=2, out_axis=(0, 1, 3))


class UpConv2x2(nn.Module):
    """Transposed 2x2 convolution of stride 2: each pixel becomes a 2x2 block of pixels.

    Attributes:
        features: channels of the result.
        dtype: compute dtype.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j f"]:
        """Doubles maps [b, h, w, c] to [b, 2 h, 2 w, features]."""
        kernel = self.param("kernel", DOUBLING, (2, 2, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return kernels.double(x, kernel) + bias.reshape(1, 1, 1, -1)


class ConvNorm(nn.Module):
    """Convolution, norm, activation; the convolution has a bias where there is no norm.

    Attributes:
        features: channels of the result.
        style: norm and dtype.
        kernel, stride, dilation, groups: of the convolution.
        padding: zeros (before, after) along all axes; None for dilation * (kernel - 1) / 2 on each side.
        activation: None leaves it out.
    """

    features: int
    style: Style
    kernel: int | tuple[int, ...] = 3
    stride: int | tuple[int, ...] = 1
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    padding: tuple[int, int] | None = None
    activation: Callable[[jax.Array], jax.Array] | None = nn.relu

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"], train: bool) -> Float[Array, "b *out f"]:
        """Applies the layer to maps [b, *space, c].

        Raises:
            UserError: batch norm in training over one value a channel, whose variance is 0.
        """
        style = self.style
        x = Conv(
            self.features, self.kernel, self.stride, self.dilation, self.groups, self.padding,
            use_bias=style.norm == "none", dtype=style.dtype, name="conv",
        )(x)  # fmt: skip
        # Norms work in float32 whatever the compute dtype; XLA fuses the casts into them.
        if style.norm == "batch":
            # A frozen norm keeps its statistics, and normalises with them.
            train = train and style.learns(*self.path, "norm")
            if train and math.prod(x.shape[:-1]) * self._devices() == 1:
                raise UserError(
                    "Batch norm over one value a channel, as of one image's mean in a DeepLab's pyramid, leaves "
                    "nothing of it: train with data.batch_size of 2 or more, or with model.norm='group'."
                )
            norm = nn.BatchNorm(
                not train,
                momentum=style.momentum,
                epsilon=style.epsilon,
                axis_name=style.axis_name,
                # Over a few numbers, as the pyramid's means of images, E[x^2] - E[x]^2 would be mostly rounding.
                use_fast_variance=math.prod(x.shape[1:-1]) > 1,
                name="norm",
            )
            x = norm(x.astype(jnp.float32)).astype(style.dtype)
        elif style.norm == "group":
            groups = math.gcd(32, self.features)
            # One channel a group would be an instance norm, which takes each channel's mean out of the network.
            groups = max(1, groups // 2) if groups == self.features else groups
            norm = nn.GroupNorm(groups, epsilon=style.epsilon, name="norm")
            x = norm(x.astype(jnp.float32)).astype(style.dtype)
        return self.activation(x) if self.activation else x

    def _devices(self):
        """Devices whose pixels the batch statistics are taken over, where each sees its own share only (pmap)."""
        return jax.lax.axis_size(self.style.axis_name) if self.style.axis_name else 1
