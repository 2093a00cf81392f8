"""Convolution with a widely dilated kernel that lies mostly on padding, on CPUs."""

import itertools

import jax.numpy as jnp

from segjax.nn.kernels.formulations import Passes, Window, by_vjp
from segjax.nn.kernels.rows import kernel_from_elements


def overlaps(window: Window) -> Passes:
    """Convolves small maps with a widely dilated kernel: one matrix product per kernel element, without the padding.

    3x3, 2048 -> 256 channels, batch 1: dilation 6, 12 and 18 at 16x32, 36 at 32x64::

        PyTorch   32 34 48     21 22 123     14 15 93      41  46 354
        XLA       54 62 55     59 61  60     83 62 63     466 227 511
        here      48 34 51     21 21  30     10 10 17      40  41  66
    """

    def forward(x, kernel):
        b, h, w, _ = x.shape
        y = jnp.zeros((b, window.result(h), window.result(w), kernel.shape[-1]), x.dtype)
        for (i, top, row, m), (j, left, column, n) in itertools.product(window.spans(h), window.spans(w)):
            part = jnp.einsum("bhwc,cf->bhwf", x[:, row : row + m, column : column + n], kernel[i, j])
            y += jnp.pad(part, ((0, 0), (top, y.shape[1] - top - m), (left, y.shape[2] - left - n), (0, 0)))
        return y

    def dk(x, kernel, g):
        # JAX would pad each element's gradient to the size of the kernel and sum the results.
        elements = [
            jnp.einsum("bhwc,bhwf->cf", x[:, row : row + m, column : column + n], g[:, top : top + m, left : left + n])
            for (_, top, row, m), (_, left, column, n) in itertools.product(*map(window.spans, x.shape[1:3]))
        ]
        return kernel_from_elements(jnp.stack(elements), x, kernel, window) if elements else jnp.zeros_like(kernel)

    return by_vjp(forward)._replace(dk=dk)
