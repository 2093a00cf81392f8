"""Float maps between a network and its decoded prediction; maps may be averaged, predictions never are."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Float32

from segjax.nn.resize import resize, resize_valid_region
from segjax.spec import Geometry


@struct.dataclass
class Maps:
    """The maps that a network outputs for a batch, at its own stride.

    Attributes:
        scalars: maps [b, h, w] or [b, h, w, k] by name; may be averaged.
        vectors: maps [b, h, w, 2] of (dy, dx) in pixels of the map, by name; may be averaged. Mirroring flips their
            sign, and resizing scales them.
        fixed: arrays that may not be averaged, by name, such as query masks, whose order differs between calls.
    """

    scalars: dict[str, Any]
    vectors: dict[str, Any] = struct.field(default_factory=dict)
    fixed: dict[str, Any] = struct.field(default_factory=dict)


def to_size(x: Float[Array, "b *space k"], size: tuple[int, ...]) -> Float[Array, "b *out k"]:
    """Resizes maps if their size differs; raises a UserError for empty maps."""
    return x if x.size and x.shape[1:-1] == size else resize(x, size)


def to_output(maps: Maps, geometry: Geometry) -> Maps:
    """Resizes maps to the output size, in which each image fills its native size.

    Takes maps of the padded input at the network's stride. Returns them as float32 [b, y, x, ...], with vectors in
    pixels of the result and without `fixed`.
    """
    size = geometry.output_size
    if not geometry.resized:
        return resample(maps, pixels_covered(size, maps), functools.partial(to_size, size=size))
    scale = geometry.native_size.astype(jnp.float32) * pixels_covered(geometry.padded_size, maps)
    function = functools.partial(
        resize_valid_region,
        valid_size=jnp.asarray(geometry.valid_size),
        native_size=jnp.asarray(geometry.native_size),
        padded_size=geometry.padded_size,
        size=size,
    )
    return resample(maps, scale / geometry.valid_size.astype(jnp.float32), function)


def pixels_covered(size: tuple[int, int], maps: Maps) -> Float32[Array, "1 2"]:
    """Returns how many rows and columns of an area of this size one pixel of the maps covers."""
    first = next(iter({**maps.scalars, **maps.vectors}.values()))
    h, w = (max(n, 1) for n in first.shape[1:3])  # `resize` raises the error for empty maps
    return jnp.array([[size[0] / h, size[1] / w]], jnp.float32)


def resample(maps: Maps, scale: Float[Array, "#b 2"], function: Callable[[jax.Array], jax.Array]) -> Maps:
    """Applies a function to all maps, concatenated as float32 [b, h, w, k], and multiplies vectors by `scale`."""
    named = {**maps.scalars, **{name: x * scale[:, None, None] for name, x in maps.vectors.items()}}
    parts = [x.reshape(*x.shape[:3], math.prod(x.shape[3:])).astype(jnp.float32) for x in named.values()]
    ends = list(itertools.accumulate(x.shape[-1] for x in parts))
    found = jnp.split(function(jnp.concatenate(parts, -1)), ends[:-1], axis=-1)
    found = {name: y.reshape(*y.shape[:3], *x.shape[3:]) for (name, x), y in zip(named.items(), found, strict=True)}
    return Maps({name: found[name] for name in maps.scalars}, {name: found[name] for name in maps.vectors})
