"""Max-pooling and 2x2 upsampling, in the fastest formulation for the platform they are lowered for.

See `segjax.nn.kernels.conv` for how to read the tables of times.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from segjax.nn.kernels.formulations import Pads, Window, enabled, transposed, views
from segjax.parallel import num_row_shards, platform_dependent
from segjax.spatial import map_rows


def max_pool(
    x: Float[Array, "b h w c"], window: int, stride: int, dilation: int = 1, padding: Pads = (0, 0)
) -> Float[Array, "b _ _ c"]:
    """Takes the maximum of each window; on ties the first pixel gets the gradient, as in XLA and PyTorch.

    On a CPU it is the maximum of strided views; the gradient goes to the first view that equals it. 64 channels at
    128x256, windows of 3x3 and of 2x2, stride 2, forward and gradient::

        PyTorch   1.8   2.1     1.0   1.5
        XLA       4.7 108       0.9  76
        here      1.9   7.6     0.4   2.1

    `dilation` is the distance between the window's pixels; `padding` adds pixels of -inf before and after both axes.
    Rows and columns that do not fill a window are dropped.

    Example:
        >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), 2, 2).ravel()
        Array([3.], dtype=float32)
    """
    place = Window(window, stride, dilation, padding)
    if enabled():
        return _max_pool(x, place)
    # JAX has no gradient for dilated windows.
    return _plain_pool(x, place) if dilation == 1 else _largest_view(x, place)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x, window):
    cpu, default = (functools.partial(pool, window=window) for pool in (_largest_view, _plain_pool))
    return platform_dependent(x, cpu=cpu, default=default)


def _largest_view(x, window):
    return functools.reduce(jnp.maximum, (view for _, view in views(x, window, -jnp.inf)))


def _plain_pool(x, window):
    """Pools with XLA's own operation."""
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
        return jax.vjp(lambda x: _plain_pool(x, window), x)[1](g)[0]

    # JAX has no gradient for dilated windows, so they use `to_first` on every platform.
    default = scatter if window.dilation == 1 else to_first
    return (platform_dependent(*residuals, g, cpu=to_first, default=default),)


def _pool_forward(x, window):
    y = _max_pool(x, window)
    return y, (x, y)


_max_pool.defvjp(_pool_forward, _pool_backward)


def double(x: Float[Array, "b h w c"], kernel: Float[Array, "2 2 c f"]) -> Float[Array, "b 2*h 2*w f"]:
    """Transposed 2x2 convolution of stride 2: each pixel becomes a 2x2 block of pixels.

    On a CPU it is one matrix product and a transpose. 128 -> 64 channels at 64x128, and 256 -> 128 at 32x64::

        PyTorch   10.7 11.5  20     10.2 10.6   16
        XLA       22.3 20.8 775     11.2 13.1 1207
        here      23.7 22.8  23     11.3 12.7   13

    The kernel has the layout of `jax.lax.conv_transpose`: rows, columns, channels of the maps and of the result.

    Example:
        >>> double(jnp.ones((1, 1, 1, 1)), jnp.arange(4.0).reshape(2, 2, 1, 1)).ravel()
        Array([3., 2., 1., 0.], dtype=float32)
    """
    if not enabled():
        return _plain_transposed(x, kernel)

    def matrix_product(x, kernel):
        b, h, w, c = x.shape
        # conv_transpose slides the kernel unflipped over the dilated input, so kernel element (1 - i, 1 - j) makes
        # pixel (i, j) of a block.
        blocks = x.reshape(-1, c) @ kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, -1)
        blocks = blocks.reshape(b, h, w, 2, 2, -1)
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)

    # With sharded rows, JAX sums its own gradients over devices, but not the custom ones of transposed_convolution.
    on_tpu = _plain_transposed if num_row_shards() > 1 else transposed_convolution

    def of_rows(x, kernel):
        return platform_dependent(x, kernel, cpu=matrix_product, tpu=on_tpu, default=_plain_transposed)

    # With sharded rows, XLA would all-gather them for the kernel's gradient.
    return map_rows(of_rows, x, kernel) if num_row_shards() > 1 else of_rows(x, kernel)


@jax.custom_vjp
def transposed_convolution(x: Float[Array, "b h w c"], kernel: Float[Array, "i j c f"]) -> Float[Array, "b y x f"]:
    """Transposed convolution whose stride equals its kernel size, with a kernel as in `jax.lax.conv_transpose`.

    The kernel's gradient is written for TPUs to read the maps in their memory layout; with JAX's gradient, XLA would
    first transpose the output gradient. The unpaired two-level U-Net of `segjax.nn.kernels.column_pairs` takes 164
    million cycles with this gradient, and 173 with JAX's.
    """
    return _plain_transposed(x, kernel)


def _plain_transposed(x, kernel):
    return lax.conv_transpose(x, kernel, kernel.shape[:2], "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _transposed_backward(residuals, g):
    x, kernel = residuals
    dx = jax.vjp(lambda x: _plain_transposed(x, kernel), x)[1](g)[0]
    dk = lax.conv_general_dilated(
        g, x, (1, 1), "VALID", rhs_dilation=kernel.shape[:2], dimension_numbers=("CHWN", "IHWO", "NHWC")
    )
    return dx, dk.transpose(1, 2, 3, 0)[::-1, ::-1]


transposed_convolution.defvjp(lambda x, kernel: (transposed_convolution(x, kernel), (x, kernel)), _transposed_backward)
