"""Convolution, in the formulation that is fastest on the platform it is lowered for: the same numbers in each.

GPUs run XLA's own operations, and TPUs but for the first layer, see `segjax.nn.kernels.paired`. A CPU runs what is
below: XLA's convolution there is a good match of PyTorch's where it is a large matrix product, and slow where it is
not. Times are milliseconds on one core of a CPU with AVX-512, JAX 0.10.2, November 2026, float32, batch 2: of PyTorch
2.13 (oneDNN, channels last), of XLA's operation, and of the formulation here; each for the forward pass, the gradient
of the maps and the gradient of the kernel. Convolutions and pooling have gradients in reverse mode only.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from segjax.nn.kernels.depthwise import depthwise
from segjax.nn.kernels.paired import paired
from segjax.nn.kernels.passes import Passes, by_vjp, plain
from segjax.nn.kernels.windows import Pads, Window, filled, line_views
from segjax.parallel import by_platform, shards
from segjax.space import shift_rows


def convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw i f"],
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    padding: Pads = (0, 0),
) -> Float[Array, "b y x f"]:
    """Convolution of maps with a kernel.

    Args:
        x: maps [b, h, w, c].
        kernel: rows, columns, c / groups, channels of the result.
        stride: of the result.
        dilation: distance between the kernel's elements, in pixels.
        groups: of channels that are convolved apart.
        padding: zeros before and after, both axes.

    Returns:
        Maps [b, y, x, f] of the dtype of x.

    Example:
        >>> convolution(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), padding=(1, 1))[0, 1].ravel()
        Array([6., 9., 6.], dtype=float32)
    """
    reach = dilation * (kernel.shape[0] - 1)
    if shards() > 1 and stride == 1 and reach == sum(padding) and max(padding) > -(-x.shape[1] // shards()):
        # Wider than a device's share of the rows, as an atrous pyramid's rates can be: the kernel's rows one by one.
        columns = Window(kernel.shape[1], 1, dilation, padding)
        of_row = plain(groups, columns, rows=Window(1, 1, 1, (0, 0))).forward
        shifts = (i * dilation - padding[0] for i in range(kernel.shape[0]))
        terms = [of_row(shift_rows(x, by), kernel[i : i + 1]) for i, by in enumerate(shifts) if abs(by) < x.shape[1]]
        return sum(terms[1:], terms[0])
    return _convolution(x, kernel, groups, Window(kernel.shape[0], stride, dilation, padding))


def _on_cpu(x, kernel, groups, window):
    """The fastest known formulation of each pass."""
    xla = plain(groups, window)
    c, f = x.shape[-1], kernel.shape[-1]
    if kernel.shape[0] != kernel.shape[1] or min(map(window.result, x.shape[1:3])) < 1:
        return xla
    if groups == 1 and window.size == 1 and window.padding == (0, 0):
        passes = _pointwise(window)
    elif 1 < groups == c == f:
        passes = depthwise(window)
    elif groups == 1 and window.stride == 1 and _share(x.shape, window) < 0.8:
        passes = _overlaps(window)
    elif groups == 1 and window.size <= 3 and window.result(x.shape[2]) >= 256:
        passes = xla._replace(dk=_row_by_row(window))
    else:
        return xla
    if x.dtype in (jnp.bfloat16, jnp.float16):
        # The sums over a kernel and over pixels need more digits than the maps have.
        return Passes(*(_in_float32(f) for f in passes))
    return passes


def _in_float32(f):
    return lambda *args: f(*(a.astype(jnp.float32) for a in args)).astype(args[0].dtype)


def _formulations(x, kernel, groups, window):
    """Those of each platform for `by_platform`; TPUs have one of their own for the first layer of a backbone only."""
    passes = {"cpu": _on_cpu(x, kernel, groups, window), "default": plain(groups, window)}
    of_image = x.shape[-1] <= 4 and groups == 1 and kernel.shape[0] == kernel.shape[1] > 1
    if of_image and (window.stride, window.dilation) == (2, 1) and x.shape[2] % 2 == 0:
        passes["tpu"] = paired(window)
    return passes


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x, kernel, groups, window):
    passes = _formulations(x, kernel, groups, window)
    return by_platform(x, kernel, **{name: each.forward for name, each in passes.items()})


def _backward(groups, window, residuals, g):
    passes = _formulations(*residuals, groups, window)
    return (
        by_platform(*residuals, g, **{name: each.dx for name, each in passes.items()}),
        by_platform(*residuals, g, **{name: each.dk for name, each in passes.items()}),
    )


_convolution.defvjp(lambda x, kernel, *static: (_convolution(x, kernel, *static), (x, kernel)), _backward)


def _pointwise(window):
    """A 1x1 convolution is a matrix product, and XLA has fast ones, but for tall narrow results: these are transposed.

    256 -> 64 channels at 64x128, 1024 -> 256 at 16x32, 256 -> 512 with stride 2 at 64x128::

        PyTorch   7.3  7.4  6.6     5.3  5.6  5.6    10.3 11.3 11.6
        XLA       6.9  5.6 18.0     5.8  5.5 12.6    11.4 11.5 63.4
        here      5.2  5.9  7.3     4.8  4.9  5.3    10.5 10.9 11.0
    """
    stride = window.stride

    def forward(x, kernel):
        return jnp.einsum("bhwi,if->bhwf", x[:, ::stride, ::stride], kernel[0, 0])

    def dx(x, kernel, g):
        dx = jnp.einsum("bhwf,if->bhwi", g, kernel[0, 0])
        gaps = [(0, n - (m - 1) * stride - 1, stride - 1) for n, m in zip(x.shape[1:3], g.shape[1:3], strict=True)]
        return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])

    def dk(x, kernel, g):
        x = x[:, ::stride, ::stride]
        if x.shape[-1] <= g.shape[-1]:
            return jnp.einsum("bhwi,bhwf->if", x, g)[None, None]
        # Without the barrier XLA takes the transposition back.
        return lax.optimization_barrier(jnp.einsum("bhwf,bhwi->fi", g, x)).T[None, None]

    return Passes(forward, dx, dk)


def _row_by_row(window):
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


def _share(shape, window):
    """Share of the products of a convolution of stride 1 whose pixel is not padding."""

    def met(source):
        return sum(count for *_, count in window.spans(source)) / (window.size * window.result(source))

    return met(shape[1]) * met(shape[2])


def _overlaps(window):
    """A widely dilated kernel on small maps, mostly on padding: one matrix product an element, of the pixels it meets.

    3x3, 2048 -> 256 channels, batch 1: dilation 6, 12 and 18 at 16x32, 36 at 32x64::

        PyTorch   32 34 48     21 22 123     14 15 93      41  46 354
        XLA       54 62 55     59 61  60     83 62 63     466 227 511
        here      48 34 51     21 21  30     10 10 17      40  41  66
    """

    def forward(x, kernel):
        b, h, w, _ = x.shape
        y = jnp.zeros((b, window.result(h), window.result(w), kernel.shape[-1]), x.dtype)
        for (i, top, row, m), (j, left, column, n) in itertools.product(window.spans(h), window.spans(w)):
            part = jnp.einsum("bhwi,if->bhwf", x[:, row : row + m, column : column + n], kernel[i, j])
            y += jnp.pad(part, ((0, 0), (top, y.shape[1] - top - m), (left, y.shape[2] - left - n), (0, 0)))
        return y

    def dk(x, kernel, g):
        # JAX would pad each element's gradient to the whole kernel, and add those up.
        elements = [
            jnp.einsum("bhwi,bhwf->if", x[:, row : row + m, column : column + n], g[:, top : top + m, left : left + n])
            for (_, top, row, m), (_, left, column, n) in itertools.product(*map(window.spans, x.shape[1:3]))
        ]
        return filled(jnp.stack(elements), x, kernel, window) if elements else jnp.zeros_like(kernel)

    return by_vjp(forward)._replace(dk=dk)
