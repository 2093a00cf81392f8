"""What may be done to float maps before a decision, in training or at test time: mirror, resize and average them."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp

from segjax.checks import UserError
from segjax.objectives.maps import Maps, pixels_covered, resample, to_size


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
    return resample(maps, pixels_covered(size, maps), functools.partial(to_size, size=size))


def _check_free(maps):
    if maps.fixed:
        raise UserError(f"The maps {', '.join(maps.fixed)} may not be averaged, mirrored or resized.")
