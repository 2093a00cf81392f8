"""The door to the formulations that are faster on one platform; `disabled` leaves plain `lax` operations.

Each function here is one operation that a layer calls. Which formulation it takes is decided while a program is
traced. Exports and converters need plain operations: without custom gradients, barriers and choices by platform.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from segjax.nn.kernels import conv, scaling

Pads = tuple[int, int]
_ON = contextvars.ContextVar("kernels", default=True)


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Within this context programs are traced with plain `lax` operations only.

    A function that was traced before keeps its formulations: make a new one to trace it again.

    Example:
        >>> import jax
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


def convolution(
    x: Float[Array, "b *space c"],
    kernel: Float[Array, "*size i f"],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding: Pads | Sequence[Pads] = (0, 0),
) -> Float[Array, "b *out f"]:
    """Convolution of maps of any number of space axes with a kernel.

    Args:
        x: maps [b, *space, c].
        kernel: its size along each axis, c / groups, channels of the result.
        stride: of the result, along all axes or each.
        dilation: distance between the kernel's elements, in pixels, along all axes or each.
        groups: of channels that are convolved apart.
        padding: zeros before and after, along all axes or each.

    Returns:
        Maps [b, *out, f] of the dtype of x.

    Example:
        >>> convolution(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), padding=(1, 1))[0, 1].ravel()
        Array([6., 9., 6.], dtype=float32)
    """
    alike = isinstance(stride, int) and isinstance(dilation, int) and isinstance(padding[0], int)
    if enabled() and x.ndim == 4 and alike and kernel.shape[0] == kernel.shape[1]:
        return conv.convolution(x, kernel, stride, dilation, groups, tuple(padding))
    axes = x.ndim - 2
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


def max_pool(
    x: Float[Array, "b h w c"], window: int, stride: int, dilation: int = 1, padding: Pads = (0, 0)
) -> Float[Array, "b i j c"]:
    """Largest value of each window; of several equal ones the first gets the gradient, as in XLA and PyTorch.

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
    place = scaling.Window(window, stride, dilation, padding)
    if enabled():
        return scaling.max_pool(x, place)
    if dilation == 1:
        return scaling.reduce_window(place, x)
    # JAX has no gradient of dilated windows.
    return functools.reduce(jnp.maximum, (view for _, view in scaling.views(x, place, -jnp.inf)))


def mean_pool(x: Float[Array, "b h w c"], window: tuple[int, int]) -> Float[Array, "b i j c"]:
    """Mean of each window that fits into the maps, stride 1; of all pixels where the window is larger.

    Args:
        x: maps [b, h, w, c].
        window: rows and columns.

    Returns:
        Means [b, i, j, c] of the dtype of x, taken in float32.

    Example:
        >>> mean_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), (1, 2)).ravel()
        Array([0.5, 2.5], dtype=float32)
    """
    window = tuple(map(min, window, x.shape[1:3]))
    if window == x.shape[1:3]:
        return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
    total = x.astype(jnp.float32)
    total = scaling.sum_pool(total, window) if enabled() else nn.pool(total, 0.0, lax.add, window, (1, 1), "VALID")
    return (total / (window[0] * window[1])).astype(x.dtype)


def double(x: Float[Array, "b h w c"], kernel: Float[Array, "2 2 c f"]) -> Float[Array, "b i j f"]:
    """Transposed 2x2 convolution of stride 2: each pixel becomes a 2x2 block of pixels.

    Args:
        x: maps [b, h, w, c].
        kernel: rows, columns, channels of the maps and of the result; as `jax.lax.conv_transpose` takes it.

    Returns:
        Maps [b, 2 h, 2 w, f].

    Example:
        >>> double(jnp.ones((1, 1, 1, 1)), jnp.arange(4.0).reshape(2, 2, 1, 1)).ravel()
        Array([3., 2., 1., 0.], dtype=float32)
    """
    if enabled():
        return scaling.double(x, kernel)
    return lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def resample(
    x: Float[Array, "b h w c"],
    rows: Float[Array, "*images y h"] | None,
    columns: Float[Array, "*images x w"] | None,
    reach: tuple[int, int] | None = None,
) -> Float[Array, "b y x c"]:
    """Multiplies the rows and the columns of maps by a matrix each.

    Args:
        x: maps [b, h, w, c].
        rows: weights [y, h], or of each image [b, y, h]; None leaves the rows as they are.
        columns: weights [x, w], or of each image [b, x, w]; None leaves the columns as they are.
        reach: see `segjax.space.multiply_rows`.

    Returns:
        Maps [b, y, x, c].
    """
    return scaling.resample(x, rows, columns, reach) if enabled() else scaling.rows_first(x, rows, columns, reach)
