"""Backbones map (images, train) to a dict of features, "c1" to "c5" at strides 2, 4, 8, 16 and 32.

The dict holds the features that a network has: a ConvNeXt has no "c1". No stride exceeds the output stride.

Besides the published networks there are resnet18_half, a ResNet-18 with half the channels for small machines, and a
tiny network of each family for tests, NAME_micro. NAME_deep replaces the 7x7 convolution of the stem by three 3x3
convolutions, as in DeepLab's ResNets.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import linen as nn

from segjax.checks import UserError, check_choice, choose
from segjax.nn.backbones.convnext import ConvNeXt
from segjax.nn.backbones.mobilenet import V2_MICRO, V3_LARGE, V3_MICRO, V3_SMALL, MobileNet
from segjax.nn.backbones.resnet import ResNet
from segjax.nn.backbones.vgg import VGG
from segjax.nn.layers import LayerConfig


class Backbone(NamedTuple):
    """A network: its family (which sets the names in published weights), its module, and the module's settings."""

    family: str
    module: type[nn.Module]
    settings: dict[str, Any]


RESNETS = {
    "resnet18": {"blocks": (2, 2, 2, 2), "bottleneck": False},
    "resnet34": {"blocks": (3, 4, 6, 3), "bottleneck": False},
    "resnet50": {"blocks": (3, 4, 6, 3)},
    "resnet101": {"blocks": (3, 4, 23, 3)},
    "resnet152": {"blocks": (3, 8, 36, 3)},
}
# The paper does not give the epsilon of the norms; this is torchvision's.
V3 = {"stem": 16, "activation": nn.hard_swish, "epsilon": 1e-3}
BACKBONES = {
    **{name: Backbone("resnet", ResNet, settings) for name, settings in RESNETS.items()},
    **{f"{name}_deep": Backbone("resnet", ResNet, settings | {"stem": "deep"}) for name, settings in RESNETS.items()},
    "vgg16": Backbone("vgg", VGG, {"normalised": False}),
    "vgg16_bn": Backbone("vgg", VGG, {}),
    "mobilenet_v2": Backbone("mobilenet_v2", MobileNet, {}),
    "mobilenet_v3_small": Backbone("mobilenet_v3", MobileNet, V3 | {"rows": V3_SMALL, "last": 576}),
    "mobilenet_v3_large": Backbone("mobilenet_v3", MobileNet, V3 | {"rows": V3_LARGE, "last": 960}),
    "convnext_tiny": Backbone("convnext", ConvNeXt, {}),
    "convnext_small": Backbone("convnext", ConvNeXt, {"blocks": (3, 3, 27, 3)}),
    "resnet18_half": Backbone("resnet", ResNet, {"blocks": (2, 2, 2, 2), "bottleneck": False, "width": 32}),
    "resnet_micro": Backbone("resnet", ResNet, {"blocks": (1, 1, 2, 3), "width": 8}),
    "vgg_micro": Backbone("vgg", VGG, {"widths": ((8,), (8,), (16,), (16, 16), (16, 16))}),
    "mobilenet_v2_micro": Backbone("mobilenet_v2", MobileNet, {"rows": V2_MICRO, "stem": 8, "last": 48}),
    "mobilenet_v3_micro": Backbone("mobilenet_v3", MobileNet, V3 | {"rows": V3_MICRO, "last": 48}),
    "convnext_micro": Backbone("convnext", ConvNeXt, {"blocks": (1, 1, 1, 2), "widths": (8, 16, 16, 24)}),
}


def create(
    name: str,
    *,
    layer_config: LayerConfig | None = None,
    output_stride: int = 32,
    multi_grid: Sequence[int] = (1, 1, 1),
    variant: str = "atrous",
    module_name: str | None = None,
) -> nn.Module:
    """Makes a backbone.

    Args:
        name: a key of `BACKBONES`.
        layer_config: norm and dtype.
        output_stride: 8, 16 or 32, stride of the last maps; layers beyond it use dilation instead of stride.
        multi_grid: factors on the dilations in a ResNet's last stage, one per block (DeepLabV3, section 3.2.1).
        variant: where dilation starts. "atrous": the same weights compute the same function at every output stride, up
            to resolution (except for multi-grid, and for MobileNetV3's means over the map). "torchvision": the same
            for a ResNet; a dilated MobileNet also dilates its strided layer, and its c1 to c4 are the first block of
            each stage. "smp" (and detectron2): every layer of a dilated stage is dilated.
        module_name: name of the submodule, if it is one.

    Returns:
        An uninitialised linen module, (images, train) -> features by name.

    Raises:
        UserError: the backbone, output stride or variant is unknown, or the multi-grid does not fit the backbone.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> net = create("resnet_micro", output_stride=16)
        >>> images = jnp.zeros((1, 64, 96, 3))
        >>> maps, _ = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), images, train=False))
        >>> maps["c2"].shape, maps["c5"].shape
        ((1, 16, 24, 32), (1, 4, 6, 256))
    """
    check_settings(name, output_stride, multi_grid, variant)
    _, module, settings = BACKBONES[name]
    grid = {} if tuple(multi_grid) == (1, 1, 1) else {"multi_grid": tuple(multi_grid)}
    return module(
        layer_config or LayerConfig(),
        output_stride=output_stride,
        variant=variant,
        name=module_name,
        **settings,
        **grid,
    )


def layer_names(backbone: str) -> tuple[str, ...]:
    """Names the layers of a backbone, from input to output.

    Args:
        backbone: a key of `BACKBONES`.

    Returns:
        Names of its submodules.

    Example:
        >>> layer_names("vgg_micro")[:3]
        ('conv1_0', 'conv2_0', 'conv3_0')
    """
    return create(backbone).layers


def check_settings(
    backbone: str, output_stride: int = 32, multi_grid: Sequence[int] = (1, 1, 1), variant: str = "atrous"
) -> None:
    """Checks the arguments of `create`.

    Args:
        backbone: a key of `BACKBONES`.
        output_stride: 8, 16 or 32.
        multi_grid: factors on the dilations in a ResNet's last stage.
        variant: "atrous", "torchvision" or "smp".

    Raises:
        UserError: the backbone, output stride or variant is unknown, or the multi-grid does not fit the backbone.
    """
    family, _, settings = choose("model.backbone", backbone, BACKBONES)
    check_choice("model.variant", variant, ("atrous", "torchvision", "smp"))
    if output_stride not in (8, 16, 32):
        raise UserError(f"model.output_stride={output_stride} is not one of 8, 16, 32.")
    if tuple(multi_grid) == (1, 1, 1):
        return
    if family != "resnet":
        raise UserError(f"model.multi_grid is for ResNets only: leave it at (1, 1, 1) with {backbone!r}.")
    blocks = settings["blocks"][-1]
    if len(multi_grid) != blocks or min(multi_grid) < 1:
        raise UserError(
            f"model.multi_grid={multi_grid} must be {blocks} positive factors, one per block of the last stage."
        )
