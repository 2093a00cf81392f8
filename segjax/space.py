"""Operations on maps whose rows are divided over devices, for which XLA would gather whole maps.

XLA divides the rest of a step's program itself: convolution and pooling get the rows that they need from the
neighbours, sums over pixels are sums over devices. Where rows are whole these are the plain operations.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int32, Shaped

from segjax.parallel import DATA, SPACE, shards


def multiply_rows(
    rows: Float[Array, "*images y h"], x: Float[Array, "b h w c"], reach: tuple[int, int] | None
) -> Float[Array, "b y w c"]:
    """Multiplies the rows of maps by a matrix, with few rows from other devices: XLA would gather the maps.

    Args:
        rows: weights [y, h], or of each image [b, y, h].
        x: maps [b, h, w, c].
        reach: each device's rows of the result need none of `x` but its own and this many above and below, see
            `reach_of`; None where they may need any.

    Returns:
        Maps [b, y, w, c].
    """
    count = shards()
    product = "byh,bhwc->bywc" if rows.ndim == 3 else "yh,bhwc->bywc"

    def multiply(rows, x):
        return jnp.einsum(product, rows, x, precision="highest")

    if count == 1:
        return multiply(rows, x)
    y, h = rows.shape[-2:]
    x = filled(x)
    rows = jnp.pad(rows, ((0, 0),) * (rows.ndim - 2) + ((0, -y % count), (0, -h % count)))

    def local(rows, x):
        here, n = lax.axis_index(SPACE), x.shape[1]

        def from_device(ahead, part, first):
            """Rows of the device so many places ahead, all around, and what they are multiplied by."""
            if ahead:
                part = lax.ppermute(part, SPACE, [((i + ahead) % count, i) for i in range(count)])
            start = (here + ahead) % count * n + first
            return lax.dynamic_slice_in_dim(rows, start, part.shape[1], -1), part

        if reach is None or sum(reach) > n:
            return sum(multiply(*from_device(ahead, x, 0)) for ahead in range(count))
        above, below = reach
        parts = [from_device(0, x, 0)]
        if above:
            parts.append(from_device(-1, x[:, n - above :], n - above))
        if below:
            parts.append(from_device(1, x[:, :below], 0))
        weights, pixels = zip(*parts, strict=True)
        return multiply(jnp.concatenate(weights, -1), jnp.concatenate(pixels, 1))

    of_rows = P(*(DATA, SPACE)[-(rows.ndim - 1) :])
    mapped = jax.shard_map(local, in_specs=(of_rows, P(DATA, SPACE)), out_specs=P(DATA, SPACE))
    return mapped(rows, x)[:, :y]


def shift_rows(x: Shaped[Array, "b h w c"], by: int) -> Shaped[Array, "b h w c"]:
    """Moves maps up by whole rows, any number of them: XLA's halos end at the next device, beyond it would gather.

    Args:
        x: maps [b, h, w, c].
        by: rows; negative moves them down.

    Returns:
        Maps whose row i is row i + by of `x`, 0 where there is none.

    Example:
        >>> shift_rows(jnp.arange(3).reshape(1, 3, 1, 1), 1).ravel()
        Array([1, 2, 0], dtype=int32)
    """
    count, h = shards(), x.shape[1]

    def local(x):
        n = x.shape[1]
        ahead, first = divmod(by, n)

        def from_device(ahead, part):
            return lax.ppermute(part, SPACE, [(i + ahead, i) for i in range(count) if 0 <= i + ahead < count])

        parts = [from_device(ahead, x[:, first:])] + ([from_device(ahead + 1, x[:, :first])] if first else [])
        return jnp.concatenate(parts, 1)

    if count == 1:
        by = max(-h, min(h, by))
        pads = (max(0, -by), max(0, by))
        return lax.slice_in_dim(jnp.pad(x, ((0, 0), pads, (0, 0), (0, 0))), pads[1], pads[1] + h, axis=1)
    return jax.shard_map(local, in_specs=P(DATA, SPACE), out_specs=P(DATA, SPACE))(filled(x))[:, :h]


def row_by_row(f: Callable, x: Shaped[Array, "b h w c"], *whole: jax.Array) -> jax.Array:
    """Applies a function of maps to each device's own rows, where rows are divided.

    Args:
        f: (maps [b, n, w, c], *whole) -> maps [b, k n, ...], each k rows of which depend on one row alone.
        x: maps [b, h, w, c].
        *whole: arrays that every device holds whole.

    Returns:
        Maps [b, k h, ...].
    """
    h, x = x.shape[1], filled(x)
    mapped = jax.shard_map(f, in_specs=(P(DATA, SPACE), *(P() for _ in whole)), out_specs=P(DATA, SPACE))
    y = mapped(x, *whole)
    return y[:, : h * y.shape[1] // x.shape[1]]


def top_k(x: Float[Array, "b h w"], k: int) -> tuple[Float[Array, "b k"], Int32[Array, "b k"]]:
    """The largest pixels of each map: each device's, and of these few the largest.

    Args:
        x: maps [b, h, w].
        k: how many, at most h w.

    Returns:
        Values, largest first, and places in the map as row w + column, of equal ones the first.

    Example:
        >>> [a.tolist() for a in top_k(jnp.array([[[1.0, 3.0], [2.0, 3.0]]]), 3)]
        [[[3.0, 3.0, 2.0]], [[1, 3, 2]]]
    """

    def of_rows(x):
        return tuple(lax.top_k(x.reshape(x.shape[0], -1), min(k, x.shape[1] * x.shape[2])))

    def local(x):
        values, places = of_rows(x)
        return values, places + lax.axis_index(SPACE) * (x.shape[1] * x.shape[2])

    if shards() == 1:
        return of_rows(x)
    each = jax.shard_map(local, in_specs=P(DATA, SPACE), out_specs=P(DATA, SPACE))
    values, places = each(filled(x, -jnp.inf))
    values, chosen = lax.top_k(values, k)
    return values, jnp.take_along_axis(places, chosen, axis=1)


def filled(x: Shaped[Array, "b h ..."], value: float | int = 0) -> Shaped[Array, "b _ ..."]:
    """Adds rows below, so that all devices have the same number; XLA divides others just so, but not in all it does.

    Args:
        x: maps [b, h, ...].
        value: of the rows.

    Returns:
        Maps whose rows come out even.
    """
    pads = ((0, 0), (0, -x.shape[1] % shards()), *((0, 0),) * (x.ndim - 2))
    return jnp.pad(x, pads, constant_values=value)
