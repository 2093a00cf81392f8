"""The first convolution of a backbone on TPUs: pairs of columns, and stride 1 instead of 2."""

import jax.numpy as jnp

from segjax.nn.kernels.formulations import Passes, Window, by_vjp, plain


def stem_by_column_pairs(window: Window) -> Passes:
    """Turns a stride-2 convolution of an image into stride 1, with two columns as one of twice the channels.

    This halves the columns in the kernel and in a TPU's memory, which pads so few channels. The table gives millions of
    cycles estimated by the compiler for a v5e chip, with XLA's operation and with this one, in bfloat16 (libtpu
    0.0.42.1, JAX 0.10.2, 2026-11-25), for training on 8 x 512x512 and for evaluating one image of 1024x2048::

        7x7 kernel, 64 channels of the result      6.4    5.3      8.4    6.1
        3x3, 64                                    6.0    4.6      8.0    5.9
        3x3, 16                                    6.0    4.6      6.6    4.5
        DeepLabV3+ with ResNet-50, whole step     70.0   68.8     29.9   27.6

    The whole steps reach 20.0 and 20.3 % of the chip's peak in training, 17.0 and 18.5 % in evaluation;
    multiplications with the zeros added to the kernel account for 0.03 and 0.05 of these.
    """

    def forward(x, kernel):
        b, h, w, c = x.shape
        zeros, columns = _pairs(window, w)
        kernel = jnp.pad(kernel, ((0, 0), zeros, (0, 0), (0, 0))).reshape(window.size, columns.size, 2 * c, -1)
        return plain(1, columns, rows=window).forward(x.reshape(b, h, w // 2, 2 * c), kernel)

    return by_vjp(forward)


def _pairs(window, source):
    """Converts a kernel's columns of stride 2 to pairs of stride 1.

    Column j of the result starts at column 2 j - p of the maps, where p is the padding on the left. If p is odd, that
    is the second column of a pair, so a zero column is added on the left; if the count is then odd, one on the right.

    Args:
        window: window of the kernel, with stride 2 and dilation 1.
        source: columns of the maps, an even number.

    Returns:
        Zero columns to add on the left and on the right, and the window over the pairs.

    Example:
        >>> _pairs(Window(7, 2, 1, (3, 3)), 512)
        ((1, 0), Window(size=4, stride=1, dilation=1, padding=(2, 1)))
    """
    before = window.padding[0] % 2
    after = (before + window.size) % 2
    size, first = (before + window.size + after) // 2, (window.padding[0] + before) // 2
    behind = window.result(source) + size - 1 - source // 2 - first
    return (before, after), Window(size, 1, 1, (first, behind))
