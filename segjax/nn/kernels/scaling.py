"""Pooling, doubling and resampling, in the formulation that is fastest on the platform they are lowered for.

See `segjax.nn.kernels.conv`, also for what the tables of times are.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from segjax.nn.kernels.windows import Window, transposed, views
from segjax.parallel import by_platform, shards
from segjax.space import multiply_rows, row_by_row


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x, window):
    """Largest value of each window; of several equal ones the first gets the gradient, as in XLA and PyTorch.

    On a CPU the largest of strided views, whose gradient goes to the first view that equals it. 64 channels at 128x256:
    3x3 windows, and 2x2, of stride 2, forward and gradient::

        PyTorch   1.8   2.1     1.0   1.5
        XLA       4.7 108       0.9  76
        here      1.9   7.6     0.4   2.1

    Args:
        x: maps [b, h, w, c].
        window: the windows.

    Returns:
        Maps [b, i, j, c]; rows and columns that fill no window are left out.
    """

    def largest_view(x):
        return functools.reduce(jnp.maximum, (view for _, view in views(x, window, -jnp.inf)))

    return by_platform(x, cpu=largest_view, default=functools.partial(reduce_window, window))


def reduce_window(window: Window, x: jax.Array) -> jax.Array:
    """XLA's max-pooling."""
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
        return jax.vjp(functools.partial(reduce_window, window), x)[1](g)[0]

    # JAX has no gradient of dilated windows, so these have this one everywhere.
    default = scatter if window.dilation == 1 else to_first
    return (by_platform(*residuals, g, cpu=to_first, default=default),)


def _pool_forward(x, window):
    y = max_pool(x, window)
    return y, (x, y)


max_pool.defvjp(_pool_forward, _pool_backward)


def sum_pool(x: Float[Array, "b h w c"], window: tuple[int, int]) -> Float[Array, "b i j c"]:
    """Sum of each window that fits into the maps, stride 1.

    On a CPU rows are added first, then columns: for windows of 32x64 on 64x128 maps of 2048 channels, batch 1, that is
    0.11 s where XLA adds 2048 pixels for each result, in 33 s (two cores, 2026-11-24).

    Args:
        x: maps [b, h, w, c].
        window: rows and columns.

    Returns:
        Sums [b, i, j, c].
    """
    rows, columns = window

    def add(x, *window):
        return nn.pool(x, 0.0, lax.add, window, (1, 1), "VALID")

    def one_axis_each(x):
        return add(add(x, rows, 1), 1, columns)

    def at_once(x):
        return add(x, rows, columns)

    return by_platform(x, cpu=one_axis_each, default=at_once)


@jax.custom_vjp
def transposed_convolution(x: Float[Array, "b h w c"], kernel: Float[Array, "i j c f"]) -> Float[Array, "b y x f"]:
    """Transposed convolution whose stride is the size of its kernel.

    The kernel's gradient is written so that a TPU takes it from the maps as they lie; with JAX's own, XLA turns the
    gradient around first. The unfolded U-Net of two levels in `segjax.nn.kernels.folded` takes 164 million
    cycles so, and 173.

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


def double(x: Float[Array, "b h w c"], kernel: Float[Array, "2 2 c f"]) -> Float[Array, "b i j f"]:
    """Transposed 2x2 convolution of stride 2: each pixel becomes a 2x2 block of pixels.

    On a CPU one matrix product and a rearrangement. 128 -> 64 channels at 64x128, and 256 -> 128 at 32x64::

        PyTorch   10.7 11.5  20     10.2 10.6   16
        XLA       22.3 20.8 775     11.2 13.1 1207
        here      23.7 22.8  23     11.3 12.7   13

    Args:
        x: maps [b, h, w, c].
        kernel: rows, columns, channels of the maps and of the result; as `jax.lax.conv_transpose` takes it.

    Returns:
        Maps [b, 2 h, 2 w, f].
    """

    def transposed(x, kernel):
        return lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def matrix_product(x, kernel):
        b, h, w, c = x.shape
        # conv_transpose slides the kernel unflipped over the dilated input, so block pixel (i, j) meets
        # kernel element (1 - i, 1 - j).
        blocks = x.reshape(-1, c) @ kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, -1)
        blocks = blocks.reshape(b, h, w, 2, 2, -1)
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)

    # JAX sums its own gradients over the devices that rows are divided over, not those of transposed_convolution.
    on_tpu = transposed if shards() > 1 else transposed_convolution

    def of_rows(x, kernel):
        return by_platform(x, kernel, cpu=matrix_product, tpu=on_tpu, default=transposed)

    # For the kernel's gradient XLA would gather rows that are divided over devices.
    return row_by_row(of_rows, x, kernel)


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

    def columns_first(x):
        x = _along_columns(x, columns)
        if rows is None:
            return x
        b, h, w, c = x.shape
        of_images = jnp.broadcast_to(rows, (b, *rows.shape[-2:]))
        images = jnp.einsum("byh,bhn->byn", of_images, x.reshape(b, h, w * c), precision="highest")
        return images.reshape(b, -1, w, c)

    return by_platform(x, cpu=columns_first, default=lambda x: rows_first(x, rows, columns, reach))


def rows_first(
    x: Float[Array, "b h w c"], rows: jax.Array | None, columns: jax.Array | None, reach: tuple[int, int] | None
) -> Float[Array, "b y x c"]:
    """`resample` as two products of matrices, rows first."""
    return _along_columns(x if rows is None else multiply_rows(rows, x, reach), columns)


def _along_columns(x, columns):
    if columns is None:
        return x
    product = "bxw,bywc->byxc" if columns.ndim == 3 else "xw,bywc->byxc"
    return jnp.einsum(product, columns, x, precision="highest")
