"""Pooling, doubling and resampling, in the formulation that is fastest on the platform they are lowered for.

See `segjax.nn.convolution`, also for what the tables of times are.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from segjax.nn.windows import Pads, Window, transposed, views
from segjax.space import by_platform, multiply_rows, row_by_row, shards


def max_pool(
    x: Float[Array, "b h w c"], window: int, stride: int, dilation: int = 1, padding: Pads = (0, 0)
) -> Float[Array, "b i j c"]:
    """Largest value of each window; of several equal ones the first gets the gradient, as in XLA and PyTorch.

    On a CPU the largest of strided views, whose gradient goes to the first view that equals it. 64 channels at 128x256:
    3x3 windows, and 2x2, of stride 2, forward and gradient::

        PyTorch   1.8   2.1     1.0   1.5
        XLA       4.7 108       0.9  76
        here      1.9   7.6     0.4   2.1

    Args:
        x: maps [b, h, w, c].
        window: rows and columns.
        stride: of the result.
        dilation: distance between the window's pixels.
        padding: pixels before and after, both axes, that are never the largest.

    Returns:
        Maps [b, i, j, c]; rows and columns that fill no window are left out.

    Example:
        >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), 2, 2).ravel()
        Array([3.], dtype=float32)
    """
    return _max_pool(x, Window(window, stride, dilation, padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x, window):
    def largest_view(x):
        return functools.reduce(jnp.maximum, (view for _, view in views(x, window, -jnp.inf)))

    return by_platform(x, cpu=largest_view, default=functools.partial(_reduce_window, window))


def _reduce_window(window, x):
    size, stride, dilation, padding = window
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, size, size, 1),
        (1, stride, stride, 1),
        ((0, 0), padding, padding, (0, 0)),
        window_dilation=(1, dilation, dilation, 1),
    )


def _pool_backward(window, residuals, g):
    def to_first(x, y, g):
        first = jnp.zeros(y.shape, jnp.int32)
        for (i, j), view in reversed(list(views(x, window, -jnp.inf))):
            first = jnp.where(view == y, i * window.size + j, first)
        return transposed(
            x.shape,
            window,
            [(g, 0.0), (first, -1)],
            lambda i, j, g, first: jnp.where(first == i * window.size + j, g, 0),
        )

    def scatter(x, y, g):
        return jax.vjp(functools.partial(_reduce_window, window), x)[1](g)[0]

    # JAX has no gradient of dilated windows, so these have this one everywhere.
    default = scatter if window.dilation == 1 else to_first
    return (by_platform(*residuals, g, cpu=to_first, default=default),)


def _pool_forward(x, window):
    y = _max_pool(x, window)
    return y, (x, y)


_max_pool.defvjp(_pool_forward, _pool_backward)


def mean_pool(x: Float[Array, "b h w c"], window: tuple[int, int]) -> Float[Array, "b i j c"]:
    """Mean of each window that fits into the maps, stride 1; of all pixels where the window is larger.

    On a CPU rows are added first, then columns: for windows of 32x64 on 64x128 maps of 2048 channels, batch 1, that is
    0.11 s where XLA adds 2048 pixels for each result, in 33 s (two cores, 2026-11-24).

    Args:
        x: maps [b, h, w, c].
        window: rows and columns.

    Returns:
        Means [b, i, j, c] of the dtype of x, taken in float32.

    Example:
        >>> mean_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), (1, 2)).ravel()
        Array([0.5, 2.5], dtype=float32)
    """
    rows, columns = window = tuple(map(min, window, x.shape[1:3]))
    if window == x.shape[1:3]:
        return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)

    def add(x, *window):
        return nn.pool(x, 0.0, lax.add, window, (1, 1), "VALID")

    def one_axis_each(x):
        return add(add(x, rows, 1), 1, columns)

    def at_once(x):
        return add(x, rows, columns)

    total = by_platform(x.astype(jnp.float32), cpu=one_axis_each, default=at_once)
    return (total / (rows * columns)).astype(x.dtype)


# He initialisation counts the inputs of one output pixel: the windows do not overlap, so one pixel's channels.
DOUBLING = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal", in_axis=2, out_axis=(0, 1, 3))


@jax.custom_vjp
def transposed_convolution(x: Float[Array, "b h w c"], kernel: Float[Array, "i j c f"]) -> Float[Array, "b y x f"]:
    """Transposed convolution whose stride is the size of its kernel.

    The kernel's gradient is written so that a TPU takes it from the maps as they lie; with JAX's own, XLA turns the
    gradient around first. The unfolded U-Net of two levels in `segjax.nn.folded` takes 164 million cycles so, and 173.

    Args:
        x: maps [b, h, w, c].
        kernel: rows, columns, channels of the maps and of the result; as `jax.lax.conv_transpose` takes it.

    Returns:
        Maps [b, i h, j w, f].
    """
    return lax.conv_transpose(x, kernel, kernel.shape[:2], "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _transposed_backward(residuals, g):
    x, kernel = residuals
    dx = jax.vjp(lambda x: transposed_convolution.fun(x, kernel), x)[1](g)[0]
    dk = lax.conv_general_dilated(
        g, x, (1, 1), "VALID", rhs_dilation=kernel.shape[:2], dimension_numbers=("CHWN", "IHWO", "NHWC")
    )
    return dx, dk.transpose(1, 2, 3, 0)[::-1, ::-1]


transposed_convolution.defvjp(lambda x, kernel: (transposed_convolution(x, kernel), (x, kernel)), _transposed_backward)


class UpConv2x2(nn.Module):
    """Transposed 2x2 convolution of stride 2: each pixel becomes a 2x2 block of pixels.

    On a CPU one matrix product and a rearrangement. 128 -> 64 channels at 64x128, and 256 -> 128 at 32x64::

        PyTorch   10.7 11.5  20     10.2 10.6   16
        XLA       22.3 20.8 775     11.2 13.1 1207
        here      23.7 22.8  23     11.3 12.7   13

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
        kernel = self.param("kernel", DOUBLING, (2, 2, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)

        def transposed(x, kernel):
            return lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        def matrix_product(x, kernel):
            b, h, w, c = x.shape
            # conv_transpose slides the kernel unflipped over the dilated input, so block pixel (i, j) meets
            # kernel element (1 - i, 1 - j).
            blocks = x.reshape(-1, c) @ kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, -1)
            blocks = blocks.reshape(b, h, w, 2, 2, self.features)
            return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features)

        # JAX sums its own gradients over the devices that rows are divided over, not those of transposed_convolution.
        on_tpu = transposed if shards() > 1 else transposed_convolution

        def of_rows(x, kernel):
            return by_platform(x, kernel, cpu=matrix_product, tpu=on_tpu, default=transposed)

        # For the kernel's gradient XLA would gather rows that are divided over devices.
        y = row_by_row(of_rows, x, kernel)
        return y + bias.reshape(1, 1, 1, -1)


def resample(
    x: Float[Array, "b h w c"],
    rows: Float[Array, "*images y h"] | None,
    columns: Float[Array, "*images x w"] | None,
    reach: tuple[int, int] | None = None,
) -> Float[Array, "b y x c"]:
    """Multiplies the rows and the columns of maps by a matrix each.

    On a CPU columns first, while the rows are few, and rows as one product an image, whose result lies as it should.
    To 256x512, 19 channels from 32x64 and from 64x128, and 256 channels from 16x32 to 64x128, forward and gradient::

        PyTorch           2.8  4.7     2.8  4.8     1.0  1.2
        rows first       22.5 11.2    24.7 20.4    10.0 10.0
        here              4.7  4.7    10.7  9.8     3.1  4.2

    Args:
        x: maps [b, h, w, c].
        rows: weights [y, h], or of each image [b, y, h]; None leaves the rows as they are.
        columns: weights [x, w], or of each image [b, x, w]; None leaves the columns as they are.
        reach: see `segjax.space.multiply_rows`.

    Returns:
        Maps [b, y, x, c].
    """
    multiply = functools.partial(jnp.einsum, precision="highest")

    def along_columns(x):
        product = "bxw,bywc->byxc" if columns is not None and columns.ndim == 3 else "xw,bywc->byxc"
        return x if columns is None else multiply(product, columns, x)

    def rows_first(x):
        return along_columns(x if rows is None else multiply_rows(rows, x, reach))

    def columns_first(x):
        x = along_columns(x)
        if rows is None:
            return x
        b, h, w, c = x.shape
        images = multiply("byh,bhn->byn", jnp.broadcast_to(rows, (b, *rows.shape[-2:])), x.reshape(b, h, w * c))
        return images.reshape(b, -1, w, c)

    return by_platform(x, cpu=columns_first, default=rows_first)
