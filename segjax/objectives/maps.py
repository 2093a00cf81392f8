"""Float maps between a network and a decision: these are averaged, decisions never are."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import struct

from segjax.checks import UserError
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


def to_output(maps: Maps, geometry: Geometry) -> tuple[dict[str, Any], dict[str, Any]]:
    """Brings maps to the size of the result, where each image fills its native size.

    All maps are resized at once. Vectors become pixels of the result.

    Args:
        maps: at a network's stride over the padded input.
        geometry: where the images lie.

    Returns:
        Scalars and vectors by name, float32 [b, y, x, ...].
    """
    named = {**maps.scalars, **maps.vectors}
    h, w = (max(n, 1) for n in next(iter(named.values())).shape[1:3])  # `resize` says what maps of nothing mean
    if geometry.resized:
        padded = jnp.array([[geometry.padded_size[0] / h, geometry.padded_size[1] / w]], jnp.float32)
        factor = geometry.native_size.astype(jnp.float32) * padded / geometry.valid_size.astype(jnp.float32)
    else:
        factor = jnp.array([[geometry.output_size[0] / h, geometry.output_size[1] / w]], jnp.float32)
    vectors = {name: x * factor[:, None, None] for name, x in maps.vectors.items()}
    parts = [x.reshape(*x.shape[:3], -1).astype(jnp.float32) for x in {**maps.scalars, **vectors}.values()]
    joined = jnp.concatenate(parts, -1)
    if geometry.resized:
        content = jnp.concatenate([geometry.valid_size, geometry.native_size], 1)
        joined = fit(joined, content, geometry.padded_size, geometry.output_size)
    else:
        joined = resize(joined, geometry.output_size)
    ends = [sum(x.shape[-1] for x in parts[: i + 1]) for i in range(len(parts))]
    split = [
        part.reshape(*part.shape[:3], *x.shape[3:])
        for part, x in zip(jnp.split(joined, ends[:-1], axis=-1), named.values(), strict=True)
    ]
    found = dict(zip(named, split, strict=True))
    return {n: found[n] for n in maps.scalars}, {n: found[n] for n in maps.vectors}


def _check_free(maps):
    if maps.fixed:
        raise UserError(f"The maps {', '.join(maps.fixed)} may be neither averaged nor mirrored.")
