"""Counts the parameters and operations of a model from shapes alone."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn


class ModelCost(NamedTuple):
    """The cost of a model.

    parameters: number of parameters.
    flops: operations of the forward pass for one image; a multiplication and an addition count as two.
    strides: rows of the image per row of each output.
    """

    parameters: int
    flops: float
    strides: dict[str, int]


def model_cost(model: nn.Module, size: tuple[int, int], channels: int = 3) -> ModelCost:
    """Counts a model's parameters and operations from shapes alone.

    Args:
        model: from `segjax.models.create`.
        size: rows and columns of the image.
        channels: channels of the image.

    Returns:
        The cost in evaluation mode, as XLA counts it for the TPU program.

    Example:
        >>> from segjax.models import create
        >>> model_cost(create("unet", classes=2, widths=(8, 16)), (64, 64))[::2]
        (6642, {'logits': 1})
    """
    image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    traced = jax.jit(lambda v, x: model.apply(v, x, train=False)).trace(variables, image)
    return ModelCost(
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"])),
        flops=traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"],
        strides={name: round((size[0] - 2 * model.margin) / out.shape[1]) for name, out in traced.out_info.items()},
    )
