"""Convolution, in the fastest formulation for the platform it is lowered for; all formulations give the same numbers.

GPUs run XLA's own convolution, and so do TPUs except for the first layer (see `segjax.nn.kernels.stem`). CPUs run the
formulations below: XLA's CPU convolution is about as fast as PyTorch's if it is one large matrix product, and slow
otherwise. Tables give milliseconds on one core of a CPU with AVX-512 (JAX 0.10.2, November 2026, float32, batch 2) for
PyTorch 2.13 (oneDNN, channels last), XLA's operation and the formulation here; the three columns are the forward pass
and the gradients of the maps and of the kernel. Only reverse-mode differentiation is supported.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from segjax.nn.kernels.depthwise import depthwise
from segjax.nn.kernels.formulations import Pads, Passes, Window, enabled, plain
from segjax.nn.kernels.overlaps import overlaps
from segjax.nn.kernels.rows import gradient_by_rows
from segjax.nn.kernels.stem import stem_by_column_pairs
from segjax.parallel import num_row_shards, platform_dependent
from segjax.spatial import shift_rows


def convolution(
    x: Float[Array, "b *space c"],
    kernel: Float[Array, "*size _ f"],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding: Pads | Sequence[Pads] = (0, 0),
) -> Float[Array, "b *out f"]:
    """Convolves maps of any number of spatial axes with a kernel.

    The kernel is [*size, c / groups, f]. Stride, dilation and padding (zeros before and after) are one for all axes or
    one per axis. The result has the dtype of `x`.

    Example:
        >>> convolution(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), padding=(1, 1))[0, 1].ravel()
        Array([6., 9., 6.], dtype=float32)
    """
    axes = x.ndim - 2
    alike = isinstance(stride, int) and isinstance(dilation, int) and isinstance(padding[0], int)
    if enabled() and axes == 2 and alike and kernel.shape[0] == kernel.shape[1]:
        return _square(x, kernel, groups, Window(kernel.shape[0], stride, dilation, tuple(padding)))
    letters = "ZYX"[-axes:] if axes <= 3 else "".join(map(str, range(axes)))
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * axes if isinstance(stride, int) else tuple(stride),
        (tuple(padding),) * axes if isinstance(padding[0], int) else tuple(padding),
        rhs_dilation=(dilation,) * axes if isinstance(dilation, int) else tuple(dilation),
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=groups,
    )


def _square(x, kernel, groups, window):
    """Convolves images with the same window along both axes."""
    size, stride, dilation, padding = window
    if (
        num_row_shards() > 1
        and stride == 1
        and dilation * (size - 1) == sum(padding)
        and max(padding) > -(-x.shape[1] // num_row_shards())
    ):
        # The halo is larger than a shard, which happens with ASPP's rates: convolve with one kernel row at a time.
        of_row = plain(groups, window, rows=Window(1, 1, 1, (0, 0))).forward
        shifts = (i * dilation - padding[0] for i in range(size))
        terms = [of_row(shift_rows(x, by), kernel[i : i + 1]) for i, by in enumerate(shifts) if abs(by) < x.shape[1]]
        return sum(terms[1:], terms[0])
    return _convolution(x, kernel, groups, window)


def _on_cpu(x, kernel, groups, window):
    """Returns the fastest known formulation of each pass on CPUs."""
    xla = plain(groups, window)
    c, f = x.shape[-1], kernel.shape[-1]
    if min(map(window.result, x.shape[1:3])) < 1:
        return xla
    if groups == 1 and window.size == 1 and window.padding == (0, 0):
        passes = _pointwise(window)
    elif 1 < groups == c == f:
        passes = depthwise(window)
    elif groups == 1 and window.stride == 1 and _fraction_on_pixels(x.shape, window) < 0.8:
        passes = overlaps(window)
    elif groups == 1 and window.size <= 3 and window.result(x.shape[2]) >= 256:
        passes = xla._replace(dk=gradient_by_rows(window))
    else:
        return xla
    if x.dtype in (jnp.bfloat16, jnp.float16):
        # Sums over a kernel and over pixels need more precision than the maps have.
        return Passes(*(_in_float32(f) for f in passes))
    return passes


def _fraction_on_pixels(shape, window):
    """Returns the fraction of a stride-1 convolution's multiplications that do not fall on padding."""

    def met(source):
        return sum(count for *_, count in window.spans(source)) / (window.size * window.result(source))

    return met(shape[1]) * met(shape[2])


def _in_float32(f):
    return lambda *args: f(*(a.astype(jnp.float32) for a in args)).astype(args[0].dtype)


def _by_platform(x, kernel, groups, window):
    """Returns the formulation of each platform; TPUs have their own only for the first layer of a backbone."""
    passes = {"cpu": _on_cpu(x, kernel, groups, window), "default": plain(groups, window)}
    of_image = x.shape[-1] <= 4 and groups == 1 and window.size > 1
    if of_image and (window.stride, window.dilation) == (2, 1) and x.shape[2] % 2 == 0:
        passes["tpu"] = stem_by_column_pairs(window)
    return passes


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x, kernel, groups, window):
    passes = _by_platform(x, kernel, groups, window)
    return platform_dependent(x, kernel, **{name: each.forward for name, each in passes.items()})


def _backward(groups, window, residuals, g):
    passes = _by_platform(*residuals, groups, window)
    return (
        platform_dependent(*residuals, g, **{name: each.dx for name, each in passes.items()}),
        platform_dependent(*residuals, g, **{name: each.dk for name, each in passes.items()}),
    )


_convolution.defvjp(lambda x, kernel, *static: (_convolution(x, kernel, *static), (x, kernel)), _backward)


def _pointwise(window):
    """1x1 convolution as a matrix product; XLA's are fast except for tall narrow results, which are transposed here.

    256 -> 64 channels at 64x128, 1024 -> 256 at 16x32, 256 -> 512 with stride 2 at 64x128::

        PyTorch   7.3  7.4  6.6     5.3  5.6  5.6    10.3 11.3 11.6
        XLA       6.9  5.6 18.0     5.8  5.5 12.6    11.4 11.5 63.4
        here      5.2  5.9  7.3     4.8  4.9  5.3    10.5 10.9 11.0
    """
    stride = window.stride

    def forward(x, kernel):
        return jnp.einsum("bhwc,cf->bhwf", x[:, ::stride, ::stride], kernel[0, 0])

    def dx(x, kernel, g):
        dx = jnp.einsum("bhwf,cf->bhwc", g, kernel[0, 0])
        gaps = [(0, n - (m - 1) * stride - 1, stride - 1) for n, m in zip(x.shape[1:3], g.shape[1:3], strict=True)]
        return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])

    def dk(x, kernel, g):
        x = x[:, ::stride, ::stride]
        if x.shape[-1] <= g.shape[-1]:
            return jnp.einsum("bhwc,bhwf->cf", x, g)[None, None]
        # Without the barrier XLA undoes the transposition.
        return lax.optimization_barrier(jnp.einsum("bhwf,bhwc->fc", g, x)).T[None, None]

    return Passes(forward, dx, dk)
