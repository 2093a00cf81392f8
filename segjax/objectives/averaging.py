"""Mirrors, resizes and averages float maps before they are decoded, in training or at test time."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp

from segjax.checks import UserError
from segjax.objectives.maps import Maps, pixels_covered, resample, to_size


def mirror(maps: Maps, axis: int) -> Maps:
    """Mirrors maps along their rows or columns.

    Args:
        maps: for instance, maps of mirrored images.
        axis: 1 reverses rows, 2 reverses columns.

    Returns:
        The mirrored maps; vectors change sign along that axis.

    Raises:
        UserError: some maps cannot be mirrored; names them.

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
        parts: maps of equal size and with equal names.

    Returns:
        Their mean, float32.

    Raises:
        UserError: some maps may not be averaged; names them.

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
    """Resizes maps, for instance to average them with others.

    Args:
        maps: maps of equal size.
        size: rows and columns of the result.

    Returns:
        The maps, float32; vectors are in pixels of the result.

    Raises:
        UserError: some maps cannot be resized; names them.

    Example:
        >>> maps = Maps({"centre": jnp.ones((1, 2, 2))}, {"offset": jnp.ones((1, 2, 2, 2))})
        >>> resize(maps, (2, 6)).vectors["offset"][0, 0, 0].tolist()
        [1.0, 3.0]
    """
    _check_free(maps)
    return resample(maps, pixels_covered(size, maps), functools.partial(to_size, size=size))


def _check_free(maps):
    if maps.fixed:
        raise UserError(f"The maps {', '.join(maps.fixed)} may not be averaged, mirrored or resized.")
