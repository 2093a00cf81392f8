"""Kernel gradients computed row by row, on CPUs."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from segjax.nn.kernels.formulations import Window


def row_views(x: jax.Array, row: jax.Array, window: Window) -> Iterator[jax.Array]:
    """Yields the pixels [b, x, c] of `views` for one row of the result."""
    stride, h, n = window.stride, x.shape[1], window.result(x.shape[2])
    (rows, (above, _, _)), (columns, beside) = window.taps(h), window.taps(x.shape[2])
    for _, top in rows:
        source = row * stride + top - above
        line = lax.dynamic_slice_in_dim(x, jnp.clip(source, 0, h - 1), 1, 1)[:, 0]
        line = jnp.where((source >= 0) & (source < h), line, 0)
        line = lax.pad(line, jnp.zeros((), x.dtype), ((0, 0, 0), beside, (0, 0, 0)))
        for _, left in columns:
            yield line[:, left : left + (n - 1) * stride + 1 : stride]


def kernel_from_elements(dk: jax.Array, x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Assembles the gradient of a kernel from those of its elements, in the order of `views`."""
    rows, columns = (window.taps(n)[0] for n in x.shape[1:3])
    edges = [(taps[0][0], window.size - 1 - taps[-1][0]) for taps in (rows, columns)]
    return jnp.pad(dk.reshape(len(rows), len(columns), *kernel.shape[2:]), (*edges, (0, 0), (0, 0)))


def gradient_by_rows(window: Window) -> Callable:
    """Makes the kernel gradient for wide maps: one matrix product per row of the result.

    The patches of a row fit into the cache; XLA transposes all maps and convolves with a kernel as large as the maps.
    Kernels of 3x3, 32 -> 32 channels at 256x512, 64 -> 64 at 128x256, 3 -> 16 with stride 2 at 256x512::

        PyTorch    46    50   0.6
        XLA       163    89   8.1
        here       70    63   2.0

    On two cores (2026-11-24), 304 -> 256 at 64x256 takes 305 instead of XLA's 1107. From 256 columns up this is faster
    for any number of channels except an image's 3 (17, XLA 14). Below, it is faster only for some; not for 128 -> 128
    at 64x128 (35, XLA 34), nor for 64 -> 64 at 44x56 (5.0, XLA 4.1). Nor is it for a 7x7 kernel of stride 2 on 3
    channels (28, XLA 18).
    """

    def dk(x, kernel, g):
        def add(row, total):
            line = lax.dynamic_slice_in_dim(g, row, 1, 1)[:, 0]
            patches = jnp.concatenate(list(row_views(x, row, window)), -1)
            return total + jnp.einsum("bxf,bxc->bfc", line, patches)

        b, rows, _, f = g.shape
        count = len(window.taps(x.shape[1])[0]) * len(window.taps(x.shape[2])[0])
        # The sum over images comes last: a batch sharded over devices then needs only one all-reduce.
        total = lax.fori_loop(0, rows, add, jnp.zeros((b, f, count * x.shape[-1]), g.dtype))
        return kernel_from_elements(total.sum(0).T, x, kernel, window)

    return dk
