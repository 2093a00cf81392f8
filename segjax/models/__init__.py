"""Networks: one linen module a file, (images, train) -> dict of outputs at their own stride."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax import checks
from segjax.checks import UserError, check_keys, choose
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


def create(name: str, spec: DatasetSpec | None = None, *, classes: int | None = None, **settings) -> nn.Module:
    """Makes a model whose head fits a data set.

    Args:
        name: a key of `MODELS`.
        spec: the data set; its mode and classes set the number of logits a pixel.
        classes: number of logits a pixel, in place of a spec.
        **settings: keys of the model.

    Returns:
        An uninitialised linen module.

    Raises:
        UserError: no such model or key, or not one of spec and classes.

    Example:
        >>> create("unet", classes=19, widths=(8, 16)).channels
        19
    """
    module = choose("model.name", name, MODELS)
    check_keys(settings, checks.keys_of(module), "model")
    if (spec is None) == (classes is None):
        raise UserError("A model is made for a spec or for a number of classes: give one of the two.")
    return module(channels=classes if spec is None else spec.num_logits, **settings)


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
