"""Building blocks of the formulations: the on/off switch, kernel windows, and the three passes of a convolution."""

import contextlib
import contextvars
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[int, int]
_ON = contextvars.ContextVar("kernels", default=True)


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Within this context, programs are traced with plain `lax` operations only.

    A function that was already traced keeps its formulations: make a new function to trace it again.

    Example:
        >>> from segjax.nn.kernels import max_pool
        >>> with disabled():
        ...     print(jax.make_jaxpr(lambda x: max_pool(x, 2, 2))(jnp.zeros((1, 2, 2, 1))).eqns[0].primitive)
        reduce_window_max
    """
    token = _ON.set(False)
    try:
        yield
    finally:
        _ON.reset(token)


def enabled() -> bool:
    """Tells whether programs traced here use the fast formulations."""
    return _ON.get()


class Window(NamedTuple):
    """Size (rows or columns), stride, dilation and padding of a square kernel, as in a convolution."""

    size: int
    stride: int
    dilation: int
    padding: Pads

    def result(self, source: int) -> int:
        """Returns the number of result rows for maps of `source` rows."""
        return (source + sum(self.padding) - self.dilation * (self.size - 1) - 1) // self.stride + 1

    def spans(self, source: int) -> list[tuple[int, int, int, int]]:
        """Finds, for each row of a kernel of stride 1, which of the `source` rows of the maps it multiplies.

        Returns:
            (kernel row, first row of the result, first row of the maps, number of rows); kernel rows that see only
            padding are left out.

        Example:
            >>> Window(3, 1, 2, (2, 2)).spans(5)  # the first kernel row reads two rows above each result row
            [(0, 2, 0, 3), (1, 0, 0, 5), (2, 0, 2, 3)]
        """
        found = []
        for i in range(self.size):
            first = i * self.dilation - self.padding[0]
            start, stop = max(0, -first), min(self.result(source), source - first)
            if start < stop:
                found.append((i, start, start + first, stop - start))
        return found

    def taps(self, source: int) -> tuple[list[tuple[int, int]], tuple[int, int, int]]:
        """Finds the start of each kernel row: row r of the result reads row first + r * stride of the padded maps.

        Returns:
            (kernel row, first) of the rows that see any pixel, at least one; and the padding of the maps for `lax.pad`.

        Example:
            >>> Window(3, 2, 1, (1, 1)).taps(5)
            ([(0, 0), (1, 1), (2, 2)], (1, 1, 0))
        """
        reach = (self.result(source) - 1) * self.stride
        taps = [(i, i * self.dilation - self.padding[0]) for i in range(self.size)]
        taps = [(i, first) for i, first in taps if first < source and first + reach >= 0] or taps[:1]
        low = max(0, -taps[0][1])
        return [(i, first + low) for i, first in taps], (low, max(0, taps[-1][1] + reach + 1 - source), 0)

    def phases(self, source: int) -> tuple[list[list[tuple[int, int]]], tuple[int, int, int]]:
        """Finds the kernel rows that read each map row: row phase + m * stride feeds padded result row first + m.

        Returns:
            For each phase (map row modulo stride), the (kernel row, first) pairs that read it; and the padding of the
            result for `lax.pad`.

        Example:
            >>> Window(3, 2, 1, (1, 1)).phases(5)  # the kernel's middle row reads even rows, the other two odd rows
            ([[(1, 0)], [(0, 1), (2, 0)]], (0, 1, 0))
        """
        count, target = -(-source // self.stride), self.result(source)
        phases = []
        for phase in range(self.stride):
            firsts = [(i, phase + self.padding[0] - i * self.dilation) for i in range(self.size)]
            firsts = [(i, first // self.stride) for i, first in firsts if first % self.stride == 0]
            phases.append([(i, first) for i, first in firsts if -count < first < target])
        firsts = [first for taps in phases for _, first in taps] or [0]
        low = max(0, -min(firsts))
        padding = (low, max(0, max(firsts) + count - target), 0)
        return [[(i, first + low) for i, first in taps] for taps in phases], padding


def views(x: jax.Array, window: Window, value: float = 0.0) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields the pixels [b, y, x, c] that each kernel element (i, j) reads; skips elements that see only padding."""
    stride, y, n = window.stride, window.result(x.shape[1]), window.result(x.shape[2])
    (rows, above), (columns, beside) = window.taps(x.shape[1]), window.taps(x.shape[2])
    x = lax.pad(x, jnp.array(value, x.dtype), ((0, 0, 0), above, beside, (0, 0, 0)))
    for (i, top), (j, left) in itertools.product(rows, columns):
        yield (i, j), x[:, top : top + (y - 1) * stride + 1 : stride, left : left + (n - 1) * stride + 1 : stride]


def transposed(
    shape: tuple[int, ...], window: Window, maps: Sequence[tuple[jax.Array, float | int]], term: Callable
) -> jax.Array:
    """Transposes `views`: sums at each pixel term(i, j, *maps) over the kernel elements (i, j) that read it.

    The result is [b, h, w, c], of the given shape; `maps` are pairs of maps [b, y, x, c] and the value outside them.
    """
    stride, (b, h, w, c) = window.stride, shape
    m, n = -(-h // stride), -(-w // stride)
    (rows, above), (columns, beside) = window.phases(h), window.phases(w)
    maps = [lax.pad(a, jnp.array(value, a.dtype), ((0, 0, 0), above, beside, (0, 0, 0))) for a, value in maps]
    phases = []
    for taps in itertools.product(rows, columns):
        total = jnp.zeros((b, m, n, c), maps[0].dtype)
        for (i, top), (j, left) in itertools.product(*taps):
            total += term(i, j, *(a[:, top : top + m, left : left + n] for a in maps))
        phases.append(total)
    phases = lax.optimization_barrier(phases)
    lines = [jnp.stack(phases[k : k + stride], 3) for k in range(0, stride * stride, stride)]
    return jnp.stack(lines, 2).reshape(b, m * stride, n * stride, c)[:, :h, :w]


class Passes(NamedTuple):
    """A formulation: `forward` takes (x, kernel); the gradients `dx` and `dk` take (x, kernel, output gradient)."""

    forward: Callable
    dx: Callable
    dk: Callable


def by_vjp(forward: Callable) -> Passes:
    """Makes a formulation whose gradients JAX derives from the forward pass."""
    return Passes(
        forward,
        lambda x, kernel, g: jax.vjp(lambda x: forward(x, kernel), x)[1](g)[0],
        lambda x, kernel, g: jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](g)[0],
    )


def plain(groups: int, window: Window, rows: Window | None = None) -> Passes:
    """Returns XLA's convolution; `rows` is the window along rows if it differs from that along columns."""
    rows = rows or window

    def forward(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (rows.stride, window.stride),
            (rows.padding, window.padding),
            rhs_dilation=(rows.dilation, window.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return by_vjp(forward)
