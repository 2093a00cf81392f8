"""Gradients of a kernel that go through the maps row by row, on CPUs."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from segjax.nn.kernels.formulations import Window


def line_views(x: jax.Array, row: jax.Array, window: Window) -> Iterator[jax.Array]:
    """The pixels [b, x, c] of `views` for one row of the result."""
    stride, h, n = window.stride, x.shape[1], window.result(x.shape[2])
    (rows, (above, _, _)), (columns, beside) = window.taps(h), window.taps(x.shape[2])
    for _, top in rows:
        source = row * stride + top - above
        line = lax.dynamic_slice_in_dim(x, jnp.clip(source, 0, h - 1), 1, 1)[:, 0]
        line = jnp.where((source >= 0) & (source < h), line, 0)
        line = lax.pad(line, jnp.zeros((), x.dtype), ((0, 0, 0), beside, (0, 0, 0)))
        for _, left in columns:
            yield line[:, left : left + (n - 1) * stride + 1 : stride]


def filled(dk: jax.Array, x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Gradient of a kernel from that of its elements in the order of `views`."""
    rows, columns = (window.taps(n)[0] for n in x.shape[1:3])
    edges = [(taps[0][0], window.size - 1 - taps[-1][0]) for taps in (rows, columns)]
    return jnp.pad(dk.reshape(len(rows), len(columns), *kernel.shape[2:]), (*edges, (0, 0), (0, 0)))


def gradient_by_rows(window: Window) -> Callable:
    """Gradient of the kernel of a wide map: one matrix product a row of the result.

    A row's patches fit into the cache; XLA transposes all maps and convolves with a kernel of the size of the maps.
    Kernels of 3x3, 32 -> 32 channels at 256x512, 64 -> 64 at 128x256, 3 -> 16 with stride 2 at 256x512::

        PyTorch    46    50   0.6
        XLA       163    89   8.1
        here       70    63   2.0

    and on two cores, 2026-11-24, 304 -> 256 at 64x256 in 305 where XLA takes 1107. From 256 columns on this is faster
    for every number of channels but the 3 of an image (17 for 14); with fewer it is for some only (128 -> 128 at
    64x128: 35 for 34; 64 -> 64 at 44x56: 5.0 for 4.1). A 7x7 kernel of stride 2 on 3 channels (28 for 18) gains
    nothing.
    """

    def dk(x, kernel, g):
        def add(row, total):
            line = lax.dynamic_slice_in_dim(g, row, 1, 1)[:, 0]
            patches = jnp.concatenate(list(line_views(x, row, window)), -1)
            return total + jnp.einsum("bnf,bni->bfi", line, patches)

        b, rows, _, f = g.shape
        count = len(window.taps(x.shape[1])[0]) * len(window.taps(x.shape[2])[0])
        # Images are summed last, so that a batch over several devices is reduced once.
        total = lax.fori_loop(0, rows, add, jnp.zeros((b, f, count * x.shape[-1]), g.dtype))
        return filled(total.sum(0).T, x, kernel, window)

    return dk
