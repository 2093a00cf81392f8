"""A convolution's three passes, and XLA's own formulation of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax

from segjax.nn.kernels.windows import Window


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
