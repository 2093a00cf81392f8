"""Float maps between a network and a decision: these are averaged, decisions never are."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import struct

from segjax.checks import UserError
from segjax.nn import resize as sample
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


def mirror(maps: Maps, axis: int) -> Maps:
    """Mirrors maps along their rows or columns.

    Args:
        maps: of mirrored images, for instance.
        axis: 1 turns rows around, 2 columns.

    Returns:
        The maps of the images turned back.

    Raises:
        UserError: maps that cannot be mirrored, by name.

    Example:
        >>> maps = Maps({"logits": jnp.array([[[1.0, 2.0]]])}, {"offset": jnp.array([[[[0.0, 3.0], [0.0, 1.0]]]])})
        >>> flipped = mirror(maps, axis=2)
        >>> flipped.scalars["logits"].tolist(), flipped.vectors["offset"][..., 1].tolist()
        ([[[2.0, 1.0]]], [[[-1.0, -3.0]]])
    """
    _check_free(maps)
    sign = jnp.array([-1.0 if axis == 1 else 1.0, -1.0 if axis == 2 else 1.0], jnp.float32).reshape(1, 1, 1, 2)
    return Maps(
        {name: jnp.flip(x, axis) for name, x in maps.scalars.items()},
        {name: jnp.flip(x, axis) * sign.astype(x.dtype) for name, x in maps.vectors.items()},
    )


def mean(parts: Sequence[Maps]) -> Maps:
    """Averages maps of the same images.

    Args:
        parts: maps of one size, with the same names.

    Returns:
        Their mean, float32.

    Raises:
        UserError: maps that may not be averaged, by name.

    Example:
        >>> low, high = (Maps({"logits": jnp.full((1, 1, 1, 2), value)}) for value in (0.0, 1.0))
        >>> mean([low, high]).scalars["logits"]
        Array([[[[0.5, 0.5]]]], dtype=float32)
    """
    for each in parts:
        _check_free(each)

    def average(kind):
        names = getattr(parts[0], kind)
        return {n: sum(getattr(each, kind)[n].astype(jnp.float32) for each in parts) / len(parts) for n in names}

    return Maps(average("scalars"), average("vectors"))


def resize(maps: Maps, size: tuple[int, int]) -> Maps:
    """Brings maps to another size, such as that of maps that they are averaged with.

    Args:
        maps: of one size.
        size: rows and columns of the result.

    Returns:
        The maps, float32, vectors in pixels of the result.

    Raises:
        UserError: maps that cannot be resized, by name.

    Example:
        >>> maps = Maps({"centre": jnp.ones((1, 2, 2))}, {"offset": jnp.ones((1, 2, 2, 2))})
        >>> resize(maps, (2, 6)).vectors["offset"][0, 0, 0].tolist()
        [1.0, 3.0]
    """
    _check_free(maps)
    return _at_once(maps, _pitch(size, maps), functools.partial(sample.resize, size=size))


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
        return _at_once(maps, _pitch(size, maps), functools.partial(sample.resize, size=size))
    scale = geometry.native_size.astype(jnp.float32) * _pitch(geometry.padded_size, maps)
    content = jnp.concatenate([geometry.valid_size, geometry.native_size], 1)
    fit = functools.partial(sample.fit, content=content, canvas=geometry.padded_size, size=size)
    return _at_once(maps, scale / geometry.valid_size.astype(jnp.float32), fit)


def _pitch(size, maps):
    """Rows and columns of an area of some size that a pixel of the maps covers, float32 [1, 2]."""
    h, w = (
        max(n, 1) for n in next(iter({**maps.scalars, **maps.vectors}.values())).shape[1:3]
    )  # `sample` names maps of nothing
    return jnp.array([[size[0] / h, size[1] / w]], jnp.float32)


def _at_once(maps, scale, resample):
    """Resamples all maps as one, vectors times `scale` [b or 1, 2]."""
    vectors = {name: x * scale[:, None, None] for name, x in maps.vectors.items()}
    parts = [
        x.reshape(*x.shape[:3], math.prod(x.shape[3:])).astype(jnp.float32)
        for x in {**maps.scalars, **vectors}.values()
    ]
    ends = list(itertools.accumulate(x.shape[-1] for x in parts))
    found = jnp.split(resample(jnp.concatenate(parts, -1)), ends[:-1], axis=-1)
    named = {**maps.scalars, **maps.vectors}.items()
    found = {name: y.reshape(*y.shape[:3], *x.shape[3:]) for (name, x), y in zip(named, found, strict=True)}
    return Maps({name: found[name] for name in maps.scalars}, {name: found[name] for name in maps.vectors})


def _check_free(maps):
    if maps.fixed:
        raise UserError(f"The maps {', '.join(maps.fixed)} may not be averaged, mirrored or resized.")
