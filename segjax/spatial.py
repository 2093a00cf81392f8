"""Operations on maps with sharded rows for which XLA would all-gather full maps.

XLA shards the rest of a step itself: convolution and pooling use halo exchange, and sums over pixels become sums over
devices. If rows are not sharded, the functions here are the plain operations.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int32, Shaped

from segjax.parallel import DATA, SPACE, num_row_shards


def multiply_rows(
    rows: Float[Array, "*images y h"], x: Float[Array, "b h w c"], reach: tuple[int, int] | None
) -> Float[Array, "b y w c"]:
    """Multiplies the rows of maps by a matrix, with a halo exchange where XLA alone would all-gather the maps.

    Args:
        rows: weights [y, h], or [b, y, h] for each image.
        x: maps [b, h, w, c].
        reach: size of the halo: how many rows of `x` above and below its own a device needs; None if it may need any
            row.

    Returns:
        Maps [b, y, w, c].
    """
    count = num_row_shards()
    product = "byh,bhwc->bywc" if rows.ndim == 3 else "yh,bhwc->bywc"

    def multiply(rows, x):
        return jnp.einsum(product, rows, x, precision="highest")

    if count == 1:
        return multiply(rows, x)
    y, h = rows.shape[-2:]
    x = pad_rows_to_shards(x)
    rows = jnp.pad(rows, ((0, 0),) * (rows.ndim - 2) + ((0, -y % count), (0, -h % count)))

    def local(rows, x):
        here, n = lax.axis_index(SPACE), x.shape[1]

        def from_device(ahead, part, first):
            """Fetches the rows of the device `ahead` places on, cyclically, and slices their weights."""
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
    """Shifts maps up by any number of rows; XLA's halos reach only the next device, and beyond it would all-gather.

    Args:
        x: maps [b, h, w, c].
        by: number of rows; negative shifts down.

    Returns:
        Maps whose row i is row i + by of `x`, or 0 beyond the edge.

    Example:
        >>> shift_rows(jnp.arange(3).reshape(1, 3, 1, 1), 1).ravel()
        Array([1, 2, 0], dtype=int32)
    """
    count, h = num_row_shards(), x.shape[1]

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
    return jax.shard_map(local, in_specs=P(DATA, SPACE), out_specs=P(DATA, SPACE))(pad_rows_to_shards(x))[:, :h]


def map_rows(f: Callable, x: Shaped[Array, "b h w c"], *replicated: jax.Array) -> jax.Array:
    """Applies a function of maps to each device's own rows.

    Args:
        f: (maps [b, n, w, c], *replicated) -> maps [b, k n, ...], where rows k i .. k i + k - 1 depend on row i only.
        x: maps [b, h, w, c].
        *replicated: replicated arrays.

    Returns:
        Maps [b, k h, ...].
    """
    h, x = x.shape[1], pad_rows_to_shards(x)
    mapped = jax.shard_map(f, in_specs=(P(DATA, SPACE), *(P() for _ in replicated)), out_specs=P(DATA, SPACE))
    y = mapped(x, *replicated)
    return y[:, : h * y.shape[1] // x.shape[1]]


def top_k(x: Float[Array, "b h w"], k: int) -> tuple[Float[Array, "b k"], Int32[Array, "b k"]]:
    """Finds the k largest pixels of each map: first those of each shard, then the largest of them.

    Args:
        x: maps [b, h, w].
        k: number of pixels, at most h w.

    Returns:
        Values, largest first, and flat indices, row * w + column; on ties the first comes first.

    Example:
        >>> [a.tolist() for a in top_k(jnp.array([[[1.0, 3.0], [2.0, 3.0]]]), 3)]
        [[[3.0, 3.0, 2.0]], [[1, 3, 2]]]
    """

    def of_rows(x):
        return tuple(lax.top_k(x.reshape(x.shape[0], -1), min(k, x.shape[1] * x.shape[2])))

    def local(x):
        values, places = of_rows(x)
        return values, places + lax.axis_index(SPACE) * (x.shape[1] * x.shape[2])

    if num_row_shards() == 1:
        return of_rows(x)
    each = jax.shard_map(local, in_specs=P(DATA, SPACE), out_specs=P(DATA, SPACE))
    values, places = each(pad_rows_to_shards(x, -jnp.inf))
    values, chosen = lax.top_k(values, k)
    return values, jnp.take_along_axis(places, chosen, axis=1)


def pad_rows_to_shards(x: Shaped[Array, "b h ..."], value: float | int = 0) -> Shaped[Array, "b _ ..."]:
    """Pads maps with rows at the bottom until all shards are equal, which some operations need.

    Args:
        x: maps [b, h, ...].
        value: value of the added rows.

    Returns:
        Maps whose rows divide evenly.
    """
    pads = ((0, 0), (0, -x.shape[1] % num_row_shards()), *((0, 0),) * (x.ndim - 2))
    return jnp.pad(x, pads, constant_values=value)
