"""Operations whose best formulation depends on the platform: same numbers, chosen when the program is lowered.

Measured for a U-Net train step, 4 x 192x256, widths 32-256, float32, 2 CPU cores, JAX 0.10.2 (seconds), and by
the compiler for TPU v5e, 8 x 512x512, widths 64-1024, bfloat16 (million cycles):

    flax max_pool and ConvTranspose              3.03 s    221 M
    transposed convolution as a matrix product   2.31 s    252 M
    and pooling as a maximum of four slices      1.92 s    271 M

so a CPU runs the second and third, every other platform the first.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


def max_pool_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """Largest value of each 2x2 window, stride 2.

    Args:
        x: maps [b, h, w, c]; h and w even.

    Returns:
        Maps [b, h / 2, w / 2, c].

    Example:
        >>> max_pool_2x2(jnp.arange(4.0).reshape(1, 2, 2, 1)).ravel()
        Array([3.], dtype=float32)
    """

    def slices(x):
        rows = jnp.maximum(x[:, ::2], x[:, 1::2])
        return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])

    def window(x):
        return nn.max_pool(x, (2, 2), (2, 2))

    return jax.lax.platform_dependent(x, cpu=slices, default=window)


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
        """Doubles the maps.

        Args:
            x: maps [b, h, w, c].

        Returns:
            Maps [b, 2 h, 2 w, features].
        """
        # He initialisation counts the inputs of one output pixel: the windows do not overlap, so c of them.
        init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal", in_axis=2, out_axis=(0, 1, 3))
        kernel = self.param("kernel", init, (2, 2, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)

        def convolution(x, kernel):
            return jax.lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        def matrix_product(x, kernel):
            b, h, w, c = x.shape
            # conv_transpose slides the kernel unflipped over the dilated input, so block pixel (i, j) meets
            # kernel element (1 - i, 1 - j).
            blocks = x.reshape(-1, c) @ kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, -1)
            blocks = blocks.reshape(b, h, w, 2, 2, self.features)
            return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features)

        y = jax.lax.platform_dependent(x, kernel, cpu=matrix_product, default=convolution)
        return y + bias.reshape(1, 1, 1, -1)
