"""Float maps between a network and a decision: these are averaged, decisions never are."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Float32

from segjax.nn.resize import fit, resize
from segjax.spec import Geometry


@struct.dataclass
class Maps:
    """What a network says about a batch, at its own stride.

    Attributes:
        scalars: maps by name [b, h, w] or [b, h, w, k]; may be averaged.
        vectors: maps by name of (dy, dx) in pixels of the map [b, h, w, 2]; may be averaged, but mirroring turns them
            around and resizing scales them.
        fixed: what may not be averaged, by name, such as the masks of queries, whose order differs from call to call.
    """

    scalars: dict[str, Any]
    vectors: dict[str, Any] = struct.field(default_factory=dict)
    fixed: dict[str, Any] = struct.field(default_factory=dict)


def to_size(x: Float[Array, "b *space k"], size: tuple[int, ...]) -> Float[Array, "b *out k"]:
    """Resizes maps that do not have this size already; raises a UserError for maps without pixels."""
    return x if x.size and x.shape[1:-1] == size else resize(x, size)


def to_output(maps: Maps, geometry: Geometry) -> Maps:
    """Brings maps to the size of the result, where each image fills its native size.

    Args:
        maps: at a network's stride over the padded input.
        geometry: where the images lie.

    Returns:
        The maps, float32 [b, y, x, ...], vectors in pixels of the result; `fixed` ones are left out.
    """
    size = geometry.output_size
    if not geometry.resized:
        return resample(maps, pixels_covered(size, maps), functools.partial(to_size, size=size))
    scale = geometry.native_size.astype(jnp.float32) * pixels_covered(geometry.padded_size, maps)
    content = jnp.concatenate([geometry.valid_size, geometry.native_size], 1)
    function = functools.partial(fit, content=content, canvas=geometry.padded_size, size=size)
    return resample(maps, scale / geometry.valid_size.astype(jnp.float32), function)


def pixels_covered(size: tuple[int, int], maps: Maps) -> Float32[Array, "1 2"]:
    """Rows and columns of an area of some size that a pixel of the maps covers."""
    first = next(iter({**maps.scalars, **maps.vectors}.values()))
    h, w = (max(n, 1) for n in first.shape[1:3])  # what maps without pixels mean, `resize` says
    return jnp.array([[size[0] / h, size[1] / w]], jnp.float32)


def resample(maps: Maps, scale: Float[Array, "#b 2"], function: Callable[[jax.Array], jax.Array]) -> Maps:
    """Applies a function to all maps at once, float32 [b, h, w, k], vectors multiplied by `scale`."""
    named = {**maps.scalars, **{name: x * scale[:, None, None] for name, x in maps.vectors.items()}}
    parts = [x.reshape(*x.shape[:3], math.prod(x.shape[3:])).astype(jnp.float32) for x in named.values()]
    ends = list(itertools.accumulate(x.shape[-1] for x in parts))
    found = jnp.split(function(jnp.concatenate(parts, -1)), ends[:-1], axis=-1)
    found = {name: y.reshape(*y.shape[:3], *x.shape[3:]) for (name, x), y in zip(named.items(), found, strict=True)}
    return Maps({name: found[name] for name in maps.scalars}, {name: found[name] for name in maps.vectors})
