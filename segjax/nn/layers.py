"""The convolution and norm layers that all networks share."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from segjax.checks import UserError, check_choice
from segjax.nn import kernels
from segjax.nn.batch_norm import BatchNorm, num_devices

HE = nn.initializers.he_normal()


def is_within(path: str, part: str) -> bool:
    """Tells whether the path of a module or parameter equals `part`, such as "backbone/layer1_0", or lies under it."""
    return path == part or path.startswith(f"{part}/")


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """The settings that all layers of a network share."""

    norm: str = "batch"  # "batch", "group" (at most 32 groups) or "none"
    momentum: float = 0.9  # fraction of the old batch statistics kept at each step
    epsilon: float = 1e-5  # added to the variance
    dtype: str = "float32"  # compute dtype; parameters and batch statistics are float32
    remat: bool = False  # recompute each block's activations in the backward pass
    axis_name: str | None = None  # pmap axis over which batch statistics are computed
    frozen: tuple[str, ...] = ()  # paths of the frozen modules

    def __post_init__(self):
        """Checks the choices."""
        check_choice("model.norm", self.norm, ("batch", "group", "none"))
        check_choice("model.dtype", self.dtype, ("float32", "bfloat16"))

    def learns(self, *names: str) -> bool:
        """Tells whether the module at this path is outside all frozen modules."""
        return not any(is_within("/".join(names), part) for part in self.frozen)

    def block(self, module: type[nn.Module]) -> type[nn.Module]:
        """Wraps a block `(x, train)` in `nn.remat` if `remat` is set."""
        return nn.remat(module, static_argnums=(2,)) if self.remat else module


class Conv(nn.Module):
    """Convolution with equal padding on both sides: pixel i of the result is centred on pixel i * stride.

    XLA's own "SAME" pads more after than before when the stride is 2 and the size even; PyTorch and the published
    weights do not. Maps may have any number of spatial axes.

    Attributes:
        features: channels of the result.
        kernel: size of the kernel, one for all axes or one per axis.
        stride: stride, one for all axes or one per axis.
        dilation: distance between kernel elements, in pixels, one for all axes or one per axis.
        groups: number of channel groups, convolved separately; as many as channels for a depthwise convolution.
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


# Fan-in for He initialisation: windows do not overlap, so the inputs of an output pixel are one pixel's channels.
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
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w f"]:
        """Upsamples maps [b, h, w, c] to [b, 2 h, 2 w, features]."""
        kernel = self.param("kernel", DOUBLING, (2, 2, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return kernels.double(x, kernel) + bias.reshape(1, 1, 1, -1)


class ConvNorm(nn.Module):
    """Convolution, norm and activation; the convolution has a bias if there is no norm.

    Attributes:
        features: channels of the result.
        layer_config: norm and dtype.
        kernel, stride, dilation, groups: settings of the convolution.
        padding: zeros (before, after) along all axes; None for dilation * (kernel - 1) / 2 on each side.
        activation: activation function; None for no activation.
    """

    features: int
    layer_config: LayerConfig
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
            UserError: batch norm in training sees one value per channel, whose variance is 0.
        """
        layer_config = self.layer_config
        x = Conv(
            self.features, self.kernel, self.stride, self.dilation, self.groups, self.padding,
            use_bias=layer_config.norm == "none", dtype=layer_config.dtype, name="conv",
        )(x)  # fmt: skip
        # Norms always compute in float32; XLA fuses the casts into them.
        if layer_config.norm == "batch":
            # A frozen norm keeps its batch statistics and normalises with them.
            train = train and layer_config.learns(*self.path, "norm")
            if train and math.prod(x.shape[:-1]) * num_devices(layer_config.axis_name) == 1:
                raise UserError(
                    "Batch norm over one value per channel, such as one image's mean in DeepLab's image pooling, "
                    "outputs a constant: train with data.batch_size of 2 or more, or with model.norm='group'."
                )
            norm = BatchNorm(layer_config.momentum, layer_config.epsilon, layer_config.axis_name, name="norm")
            x = norm(x.astype(jnp.float32), train).astype(layer_config.dtype)
        elif layer_config.norm == "group":
            groups = math.gcd(32, self.features)
            # One channel per group would be an instance norm, which removes each channel's mean.
            groups = max(1, groups // 2) if groups == self.features else groups
            norm = nn.GroupNorm(groups, epsilon=layer_config.epsilon, name="norm")
            x = norm(x.astype(jnp.float32)).astype(layer_config.dtype)
        return self.activation(x) if self.activation else x
