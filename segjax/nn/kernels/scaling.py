"""Max-pooling and doubling, in the formulation that is fastest on the platform they are lowered for.

See `segjax.nn.kernels.conv`, also for what the tables of times are.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from segjax.nn.kernels.formulations import Pads, Window, enabled, transposed, views
from segjax.parallel import by_platform, shards
from segjax.space import row_by_row


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
    place = Window(window, stride, dilation, padding)
    if enabled():
        return _max_pool(x, place)
    # JAX has no gradient of dilated windows.
    return _plain_pool(x, place) if dilation == 1 else _largest_view(x, place)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x, window):
    cpu, default = (functools.partial(pool, window=window) for pool in (_largest_view, _plain_pool))
    return by_platform(x, cpu=cpu, default=default)


def _largest_view(x, window):
    return functools.reduce(jnp.maximum, (view for _, view in views(x, window, -jnp.inf)))


def _plain_pool(x, window):
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
        return jax.vjp(lambda x: _plain_pool(x, window), x)[1](g)[0]

    # JAX has no gradient of dilated windows, so these have this one everywhere.
    default = scatter if window.dilation == 1 else to_first
    return (by_platform(*residuals, g, cpu=to_first, default=default),)


def _pool_forward(x, window):
    y = _max_pool(x, window)
    return y, (x, y)


_max_pool.defvjp(_pool_forward, _pool_backward)


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

    Example:
        >>> double(jnp.ones((1, 1, 1, 1)), jnp.arange(4.0).reshape(2, 2, 1, 1)).ravel()
        Array([3., 2., 1., 0.], dtype=float32)
    """
    if not enabled():
        return _plain_transposed(x, kernel)

    def matrix_product(x, kernel):
        b, h, w, c = x.shape
        # conv_transpose slides the kernel unflipped over the dilated input, so block pixel (i, j) meets
        # kernel element (1 - i, 1 - j).
        blocks = x.reshape(-1, c) @ kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, -1)
        blocks = blocks.reshape(b, h, w, 2, 2, -1)
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)

    # JAX sums its own gradients over the devices that rows are divided over, not those of transposed_convolution.
    on_tpu = _plain_transposed if shards() > 1 else transposed_convolution

    def of_rows(x, kernel):
        return by_platform(x, kernel, cpu=matrix_product, tpu=on_tpu, default=_plain_transposed)

    # For the kernel's gradient XLA would gather rows that are divided over devices.
    return row_by_row(of_rows, x, kernel) if shards() > 1 else of_rows(x, kernel)


@jax.custom_vjp
def transposed_convolution(x: Float[Array, "b h w c"], kernel: Float[Array, "i j c f"]) -> Float[Array, "b y x f"]:
    """Transposed convolution whose stride is the size of its kernel, as `jax.lax.conv_transpose` takes it.

    The kernel's gradient is written so that a TPU takes it from the maps as they lie; with JAX's own, XLA turns the
    gradient around first. The unfolded U-Net of two levels in `segjax.nn.kernels.folded` takes 164 million
    cycles so, and 173.
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
