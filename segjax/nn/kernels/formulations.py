"""What a formulation is made of: the switch, the windows of a kernel, the three passes of a convolution."""

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
    """Within this context programs are traced with plain `lax` operations only.

    A function that was traced before keeps its formulations: make a new one to trace it again.

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
    """Whether programs that are traced here take the fast formulations."""
    return _ON.get()


class Window(NamedTuple):
    """Where the elements of a square kernel lie: its rows, and stride, dilation and padding as of a convolution."""

    size: int
    stride: int
    dilation: int
    padding: Pads

    def result(self, source: int) -> int:
        """Rows of the result from rows of the maps."""
        return (source + sum(self.padding) - self.dilation * (self.size - 1) - 1) // self.stride + 1

    def spans(self, source: int) -> list[tuple[int, int, int, int]]:
        """The overlap of maps of `source` rows with the result for each row of a kernel of stride 1.

        Returns:
            (row of the kernel, first row of the result, first row of the maps, number of rows); rows of the kernel that
            meet padding only are left out.

        Example:
            >>> Window(3, 1, 2, (2, 2)).spans(5)  # the first row of the kernel lies two rows above
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
        """Where each row of the kernel begins: row r of the result meets row first + r * stride of the padded maps.

        Returns:
            (row of the kernel, first) of those that meet any pixel, at least one; and that padding, for `lax.pad`.

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
        """What meets each row of the maps: row phase + m * stride of them, row first + m of the padded result.

        Returns:
            For each phase, the remainder of a row by the stride, (row of the kernel, first) of those that meet it; and
            the padding of the result, for `lax.pad`.

        Example:
            >>> Window(3, 2, 1, (1, 1)).phases(5)  # even rows lie under the kernel's middle, odd ones under two others
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
    """The pixels [b, y, x, c] that each kernel element (i, j) meets; elements that meet padding only are left out."""
    stride, y, n = window.stride, window.result(x.shape[1]), window.result(x.shape[2])
    (rows, above), (columns, beside) = window.taps(x.shape[1]), window.taps(x.shape[2])
    x = lax.pad(x, jnp.array(value, x.dtype), ((0, 0, 0), above, beside, (0, 0, 0)))
    for (i, top), (j, left) in itertools.product(rows, columns):
        yield (i, j), x[:, top : top + (y - 1) * stride + 1 : stride, left : left + (n - 1) * stride + 1 : stride]


def transposed(
    shape: tuple[int, ...], window: Window, maps: Sequence[tuple[jax.Array, float | int]], term: Callable
) -> jax.Array:
    """What `views` takes apart put together: at each pixel the sum of term(i, j, *maps) over the elements it meets.

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
    """A formulation: the result from (x, kernel), the gradients of both from (x, kernel, gradient of the result)."""

    forward: Callable
    dx: Callable
    dk: Callable


def by_vjp(forward: Callable) -> Passes:
    """Formulation whose gradients are what JAX makes of the forward pass."""
    return Passes(
        forward,
        lambda x, kernel, g: jax.vjp(lambda x: forward(x, kernel), x)[1](g)[0],
        lambda x, kernel, g: jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](g)[0],
    )


def plain(groups: int, window: Window, rows: Window | None = None) -> Passes:
    """XLA's convolution; `rows` where the kernel's rows lie otherwise than its columns."""
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
