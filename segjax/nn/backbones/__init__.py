"""Backbones: (images, train) -> {"c1" .. "c5"}, maps at strides 2, 4, 8, 16 and 32, none above the output stride.

The published networks; for small machines a ResNet-18 of half the channels, resnet18_half; and, for tests, a tiny one
of each family: NAME_micro. The stem of NAME_deep is three 3x3 convolutions in place of a 7x7 one, as DeepLab's ResNets
have it.
"""

import functools
from collections.abc import Sequence

from flax import linen as nn

from segjax.checks import UserError, check_choice, choose
from segjax.nn.backbones.convnext import ConvNeXt
from segjax.nn.backbones.mobilenet import V3_LARGE, V3_SMALL, MobileNet, Row, rows_v2
from segjax.nn.backbones.resnet import ResNet
from segjax.nn.backbones.vgg import VGG
from segjax.nn.layers import Style

# The paper does not give the norms' epsilon: this is torchvision's.
_mobilenet_v3 = functools.partial(MobileNet, stem=16, activation=nn.hard_swish, epsilon=1e-3)
_RESNETS = {
    "resnet18": functools.partial(ResNet, blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet34": functools.partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=False),
    "resnet50": functools.partial(ResNet, blocks=(3, 4, 6, 3)),
    "resnet101": functools.partial(ResNet, blocks=(3, 4, 23, 3)),
    "resnet152": functools.partial(ResNet, blocks=(3, 8, 36, 3)),
}
BACKBONES = {
    **_RESNETS,
    **{f"{name}_deep": functools.partial(network, stem="deep") for name, network in _RESNETS.items()},
    "vgg16": functools.partial(VGG, normalised=False),
    "vgg16_bn": functools.partial(VGG),
    "mobilenet_v2": functools.partial(MobileNet),
    "mobilenet_v3_small": functools.partial(_mobilenet_v3, rows=V3_SMALL, last=576),
    "mobilenet_v3_large": functools.partial(_mobilenet_v3, rows=V3_LARGE, last=960),
    "convnext_tiny": functools.partial(ConvNeXt),
    "convnext_small": functools.partial(ConvNeXt, blocks=(3, 3, 27, 3)),
    "resnet18_half": functools.partial(ResNet, blocks=(2, 2, 2, 2), bottleneck=False, width=32),
    "resnet_micro": functools.partial(ResNet, blocks=(1, 1, 2, 3), width=8),
    "vgg_micro": functools.partial(VGG, widths=((8,), (8,), (16,), (16, 16), (16, 16))),
    "mobilenet_v2_micro": functools.partial(
        MobileNet, rows=rows_v2(8, (1, 8, 1, 1), (2, 8, 1, 2), (2, 16, 1, 2), (2, 16, 2, 2), (2, 24, 2, 2)),
        stem=8, last=48,
    ),
    "mobilenet_v3_micro": functools.partial(
        _mobilenet_v3,
        rows=(
            Row(3, 16, 16, True, nn.relu, 2),
            Row(5, 32, 24, False, nn.relu, 2),
            Row(5, 48, 24, True, nn.hard_swish, 2),
            Row(3, 48, 24, False, nn.hard_swish, 1),
            Row(5, 48, 24, True, nn.hard_swish, 2),
            Row(5, 48, 24, True, nn.hard_swish, 1),
        ),
        last=48,
    ),
    "convnext_micro": functools.partial(ConvNeXt, blocks=(1, 1, 1, 2), widths=(8, 16, 16, 24)),
}  # fmt: skip


def create(
    backbone: str,
    style: Style,
    output_stride: int = 32,
    multi_grid: Sequence[int] = (1, 1, 1),
    convention: str = "atrous",
    name: str | None = None,
) -> nn.Module:
    """Makes a backbone.

    Args:
        backbone: a key of `BACKBONES`.
        style: norm and dtype.
        output_stride: 8, 16 or 32, of the last maps; layers that lose their stride to it make later ones dilated.
        multi_grid: factors of the dilations in a ResNet's last stage, one a block (DeepLabV3, section 3.2.1).
        convention: "atrous", where the same weights are the same function at every output stride, up to its
            resolution (means over the map, in MobileNetV3, and multi-grid aside); "torchvision", the same in a ResNet,
            while a dilated MobileNet dilates its strided layer as well and its c1 to c4 are the first block of each
            stage; "smp" (and detectron2), where every layer of a dilated stage is dilated.
        name: of the submodule, where it is one.

    Returns:
        An uninitialised linen module, (images, train) -> {"c1" .. "c5"}.

    Raises:
        UserError: no such backbone, output stride or convention, or a multi-grid that does not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> net = create("resnet_micro", Style(), output_stride=16)
        >>> images = jnp.zeros((1, 64, 96, 3))
        >>> maps, _ = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), images, train=False))
        >>> maps["c2"].shape, maps["c5"].shape
        ((1, 16, 24, 32), (1, 4, 6, 256))
    """
    check(backbone, output_stride, multi_grid, convention)
    network = functools.partial(
        BACKBONES[backbone], style, output_stride=output_stride, convention=convention, name=name
    )
    return network() if tuple(multi_grid) == (1, 1, 1) else network(multi_grid=tuple(multi_grid))


def check(
    backbone: str, output_stride: int = 32, multi_grid: Sequence[int] = (1, 1, 1), convention: str = "atrous"
) -> None:
    """Checks the arguments of `create`.

    Args:
        backbone: a key of `BACKBONES`.
        output_stride: 8, 16 or 32.
        multi_grid: factors of the dilations in a ResNet's last stage.
        convention: "atrous", "torchvision" or "smp".

    Raises:
        UserError: no such backbone, output stride or convention, or a multi-grid that does not fit.
    """
    network = choose("model.backbone", backbone, BACKBONES)
    check_choice("model.convention", convention, ("atrous", "torchvision", "smp"))
    if output_stride not in (8, 16, 32):
        raise UserError(f"model.output_stride={output_stride} is not one of 8, 16, 32.")
    if tuple(multi_grid) == (1, 1, 1):
        return
    if network.func is not ResNet:
        raise UserError(f"model.multi_grid is for ResNets only: leave it at (1, 1, 1) with {backbone!r}.")
    blocks = network.keywords["blocks"][-1]
    if len(multi_grid) != blocks or min(multi_grid) < 1:
        raise UserError(
            f"model.multi_grid={multi_grid} must be {blocks} positive factors, one a block of the last stage."
        )
