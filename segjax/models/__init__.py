"""Networks: one linen module a file, (images, train) -> dict of outputs at their own stride."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.checks import check_keys, choose
from segjax.models.deeplab import DeepLabV3, DeepLabV3Plus
from segjax.models.fcn import FCN
from segjax.models.lraspp import LRASPP
from segjax.models.panoptic_deeplab import PanopticDeepLab
from segjax.models.unet import UNet
from segjax.spec import DatasetSpec

MODELS = {
    "unet": UNet,
    "fcn": FCN,
    "deeplabv3": DeepLabV3,
    "deeplabv3plus": DeepLabV3Plus,
    "lraspp": LRASPP,
    "panoptic_deeplab": PanopticDeepLab,
}


def create(name: str, spec: DatasetSpec, **kwargs) -> nn.Module:
    """Makes a model whose head fits a data set.

    Args:
        name: a key of `MODELS`.
        spec: the data set; its mode and classes set the number of logits a pixel.
        **kwargs: attributes of the model's module.

    Returns:
        An uninitialised linen module.

    Raises:
        UserError: no such model, or an attribute that it does not have.

    Example:
        >>> create("unet", DatasetSpec(("sky", "road")), widths=(8, 16)).channels
        2
    """
    module = choose("model.name", name, MODELS)
    check_keys(kwargs, [f for f in module.__dataclass_fields__ if f not in ("parent", "channels")], "model")
    return module(channels=spec.channels, **kwargs)


class Cost(NamedTuple):
    """What a model costs.

    parameters: number of them.
    flops: of the forward pass of one image; a multiplication and an addition are two.
    strides: pixels of the image per row of each output.
    """

    parameters: int
    flops: float
    strides: dict[str, int]


def cost(model: nn.Module, size: tuple[int, int], channels: int = 3) -> Cost:
    """Counts a model's parameters and operations from shapes alone.

    Args:
        model: from `create`.
        size: rows and columns of the image.
        channels: of the image.

    Returns:
        The cost in evaluation, as XLA counts it for the program that TPUs and GPUs get.

    Example:
        >>> model = create("unet", DatasetSpec(("sky", "road")), widths=(8, 16))
        >>> cost(model, (64, 64))[::2]
        (6642, {'logits': 1})
    """
    image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    traced = jax.jit(lambda v, x: model.apply(v, x, train=False)).trace(variables, image)
    return Cost(
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"])),
        flops=traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"],
        strides={name: round((size[0] - 2 * model.margin) / out.shape[1]) for name, out in traced.out_info.items()},
    )
