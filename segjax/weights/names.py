"""Names of our modules' tensors in each layout.

A rule is a pair: our path, as a regular expression, and their name. A path is that of a module, whose leaves then
have PyTorch's names, or of a single leaf.
"""

import itertools
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

LAYOUTS = ("torchvision", "timm", "smp")
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

NOTHING = "(?!)"  # a pattern that nothing matches

Rules = tuple[tuple[str, str], ...]


def _layer(ours: str, conv: str, norm: str) -> Rules:
    """Rules of a `ConvNorm`."""
    return (f"{ours}/conv", conv), (f"{ours}/norm", norm)


# Backbones --------------------------------------------------------------------------------------------------------

RESNET = (
    *_layer("conv1", "conv1", "bn1"),
    *_layer(r"layer(\d)_(\d+)/conv(\d)", r"layer\1.\2.conv\3", r"layer\1.\2.bn\3"),
    *_layer(r"layer(\d)_(\d+)/downsample", r"layer\1.\2.downsample.0", r"layer\1.\2.downsample.1"),
)
# timm's "deep" stem is one Sequential with ReLUs in between; its last norm has the plain stem's name. Of its variants
# only "s" (64, 64 and 128 channels, strided shortcuts) is our deep ResNet.
TIMM_RESNET = (
    *RESNET,
    *_layer("conv1_0", "conv1.0", "conv1.1"),
    *_layer("conv1_1", "conv1.3", "conv1.4"),
    *_layer("conv1_2", "conv1.6", "bn1"),
)
# torchvision's `features`: the stem, then stages and the downsampling layers before them, alternating.
CONVNEXT = tuple(
    rule
    for stage in range(1, 5)
    for rule in (
        (rf"stage{stage}_(\d+)/depthwise", rf"{2 * stage - 1}.\1.block.0"),  # 1 permutes the axes
        (rf"stage{stage}_(\d+)/norm", rf"{2 * stage - 1}.\1.block.2"),
        (rf"stage{stage}_(\d+)/expand", rf"{2 * stage - 1}.\1.block.3"),  # 4 is the activation
        (rf"stage{stage}_(\d+)/project", rf"{2 * stage - 1}.\1.block.5"),
        (rf"stage{stage}_(\d+)/scale", rf"{2 * stage - 1}.\1.layer_scale"),
        (f"downsample{stage}/norm", f"{2 * stage - 2}.0"),
        (f"downsample{stage}/conv", f"{2 * stage - 2}.1"),
    )
) + _layer("stem", "0.0", "0.1")
# Blocks of each stage of timm's MobileNetV3 large and small.
TIMM_STAGES = {15: (1, 2, 3, 4, 2, 3), 11: (1, 2, 3, 2, 3)}


def _resnet(tree: Mapping) -> Rules:
    return RESNET


def _timm_resnet(tree: Mapping) -> Rules:
    return TIMM_RESNET


def _convnext(tree: Mapping) -> Rules:
    return CONVNEXT


def _vgg(tree: Mapping) -> Rules:
    """Rules of torchvision's `features`: convolution, optional norm and ReLU, and pooling after each stage."""
    rules, index = (), 0
    for _, layers in itertools.groupby(sorted(tree), lambda name: name.partition("_")[0]):
        for layer in layers:
            rules += _layer(layer, f"{index}", f"{index + 1}")
            index += 3 if "norm" in tree[layer] else 2
        index += 1
    return rules


def _parts(tree: Mapping, block: int) -> list[str]:
    """Returns the parts that a MobileNet's block has, in order."""
    return [part for part in ("expand", "depthwise", "squeeze", "project") if part in tree[f"block_{block}"]]


def _count(tree: Mapping) -> int:
    return sum(name.startswith("block_") for name in tree)


def _mobilenet_v2(tree: Mapping) -> Rules:
    count = _count(tree)
    rules = _layer("stem", "0.0", "0.1") + _layer("last", f"{count + 1}.0", f"{count + 1}.1")
    for i in range(count):
        for j, part in enumerate(_parts(tree, i)):
            theirs = f"{i + 1}.conv.{j}"
            # The last convolution and its norm are in the block itself, without a Sequential of their own.
            pair = (theirs, f"{i + 1}.conv.{j + 1}") if part == "project" else (f"{theirs}.0", f"{theirs}.1")
            rules += _layer(f"block_{i}/{part}", *pair)
    return rules


def _mobilenet_v3(tree: Mapping) -> Rules:
    count = _count(tree)
    rules = _layer("stem", "0.0", "0.1") + _layer("last", f"{count + 1}.0", f"{count + 1}.1")
    for i in range(count):
        for j, part in enumerate(_parts(tree, i)):
            theirs = f"{i + 1}.block.{j}"
            rules += _layer(f"block_{i}/{part}", f"{theirs}.0", f"{theirs}.1")
            rules += (f"block_{i}/{part}/reduce", f"{theirs}.fc1"), (f"block_{i}/{part}/expand", f"{theirs}.fc2")
    return rules


def _timm_mobilenet_v3(tree: Mapping) -> Rules:
    count = _count(tree)
    if count not in TIMM_STAGES:
        return ()
    stages = TIMM_STAGES[count]
    places = [f"blocks.{stage}.{i}" for stage, blocks in enumerate(stages) for i in range(blocks)]
    rules = _layer("stem", "conv_stem", "bn1")
    rules += _layer("last", f"blocks.{len(stages)}.0.conv", f"blocks.{len(stages)}.0.bn1")
    for i, place in enumerate(places):
        parts = [part for part in _parts(tree, i) if part != "squeeze"]
        # A block that does not expand is a depthwise separable convolution, whose projection is "pw".
        names = ("conv_pw", "conv_dw", "conv_pwl") if len(parts) == 3 else ("conv_dw", "conv_pw")
        for j, (part, name) in enumerate(zip(parts, names, strict=True), 1):
            rules += _layer(f"block_{i}/{part}", f"{place}.{name}", f"{place}.bn{j}")
        rules += ((f"block_{i}/squeeze/(reduce|expand)", rf"{place}.se.conv_\1"),)
    return rules


class Family(NamedTuple):
    """A family of backbones in a layout.

    Attributes:
        rules: rules of its modules, given the backbone's parameters.
        prefixes: prefix of its names in a classifier and, if the layout has one, in a segmentation network.
        pattern: pattern of the backbone's names, without the prefix.
        epsilon: epsilon of its batch norms, minus ours.
    """

    rules: Callable[[Mapping], Rules] = lambda tree: ()
    prefixes: tuple[str, ...] = ("",)
    pattern: str = NOTHING
    epsilon: float = 0.0


FEATURES = ("features.", "backbone."), r"\d+\..*"
RESIDUAL = r"(conv1|bn1|layer\d)\..*"
FAMILIES = {
    ("torchvision", "resnet"): Family(_resnet, ("", "backbone."), RESIDUAL),
    ("torchvision", "vgg"): Family(_vgg, *FEATURES),
    ("torchvision", "mobilenet_v2"): Family(_mobilenet_v2, *FEATURES),
    ("torchvision", "mobilenet_v3"): Family(_mobilenet_v3, *FEATURES),
    ("torchvision", "convnext"): Family(_convnext, *FEATURES),
    ("timm", "resnet"): Family(_timm_resnet, ("",), RESIDUAL),
    # Ours has 1e-3, like the paper's code and torchvision; timm's has PyTorch's 1e-5.
    ("timm", "mobilenet_v3"): Family(
        _timm_mobilenet_v3, ("",), r"(conv_stem|bn1|blocks\.\d+)\..*", epsilon=1e-5 - 1e-3
    ),
    ("smp", "resnet"): Family(_resnet, ("", "encoder."), RESIDUAL),
}


# The rest of the network ------------------------------------------------------------------------------------------


PYRAMID_SETTINGS = {"multi_grid": (1, 1, 1), "pooling": ()}  # equal in all published pyramids, and visible in no shape


def _pyramid(tree: Mapping, place: str, separable: bool) -> Rules:
    """Rules of an ASPP; its pooling branch follows the others and starts with the pooling itself."""
    pool = sum(name.startswith("conv_") for name in tree)
    rules = _layer(r"aspp/conv_(\d+)", rf"{place}.convs.\1.0", rf"{place}.convs.\1.1")
    rules += _layer("aspp/pool", f"{place}.convs.{pool}.1", f"{place}.convs.{pool}.2")
    rules += _layer("aspp/project", f"{place}.project.0", f"{place}.project.1")
    if separable:
        rules += ((r"aspp/conv_(\d+)/depthwise", rf"{place}.convs.\1.0.0"),)
        rules += _layer(r"aspp/conv_(\d+)/pointwise", rf"{place}.convs.\1.0.1", rf"{place}.convs.\1.1")
    return rules


class Decoder(NamedTuple):
    """Everything but the backbone of a network, in a layout.

    Attributes:
        rules: of its modules.
        pattern: pattern of the decoder's names.
        settings: attributes that make our model the same network.
        align_corners: how its maps are upsampled: True for aligned corner pixels, False for half-pixel centres.
    """

    rules: Rules = ()
    pattern: str = NOTHING
    settings: Mapping[str, Any] = types.MappingProxyType({})
    align_corners: bool = False


def decoder(layout: str, kind: str | None, tree: Mapping[str, Any]) -> Decoder:
    """Returns a layout's rules for everything but the backbone of our network.

    Args:
        layout: one of `LAYOUTS`.
        kind: family of the backbone, see `segjax.nn.backbones.BACKBONES`.
        tree: parameters of the network.

    Returns:
        The rules and settings; empty where the layout has no such network.
    """
    plus, pyramid = "low" in tree, "aspp" in tree
    if layout == "torchvision" and not plus:
        mobile = kind == "mobilenet_v3"
        aux = (*_layer("aux_conv", "aux_classifier.0", "aux_classifier.1"), ("aux_head", "aux_classifier.4"))
        settings = {"variant": "torchvision", "output_stride": 16 if mobile else 8}
        settings |= {"aux": "c3" if mobile else "c4"} if "aux_head" in tree else {}
        if pyramid:
            rules = _pyramid(tree["aspp"], "classifier.0", False) + _layer("conv", "classifier.1", "classifier.2")
            # At output stride 8 our rates are doubled, and torchvision has 12, 24 and 36 at both strides.
            settings |= {"atrous_rates": (12, 24, 36) if mobile else (6, 12, 18), "separable": False} | PYRAMID_SETTINGS
            return Decoder((*rules, ("head", "classifier.4"), *aux), r"classifier\..*", settings)
        if "head_low" in tree:
            rules = _layer("conv", "classifier.cbr.0", "classifier.cbr.1")
            rules += ("scale", "classifier.scale.1"), ("head_(low|high)", r"classifier.\1_classifier")
            return Decoder(rules, r"classifier\..*", settings)
        if "conv" in tree:
            rules = _layer("conv", "classifier.0", "classifier.1")
            return Decoder((*rules, ("head", "classifier.4"), *aux), r"classifier\..*", settings)
    own, head = r"(decoder|segmentation_head)\..*", ("head", "segmentation_head.0")
    if layout == "smp" and plus:
        rules = _pyramid(tree["aspp"], "decoder.aspp.0", True) + _layer("low", "decoder.block1.0", "decoder.block1.1")
        for ours, conv, norm in (
            ("refine_0", "decoder.aspp.1", "decoder.aspp.2"),
            ("fuse_0", "decoder.block2.0", "decoder.block2.1"),
        ):
            rules += ((f"{ours}/depthwise", f"{conv}.0"), *_layer(f"{ours}/pointwise", f"{conv}.1", norm))
        settings = {"variant": "smp", "output_stride": 16, "atrous_rates": (12, 24, 36), "refine": 1, "fuse": 1}
        settings |= PYRAMID_SETTINGS
        return Decoder((*rules, head), own, settings, align_corners=True)
    if layout == "smp" and "up_0" in tree:
        levels = sum(name.startswith("up_") for name in tree)
        rules = (head,)
        for i in range(levels):
            place = rf"decoder.blocks.{levels - 1 - i}.conv\1"
            rules += _layer(rf"up_{i}/conv(\d)", f"{place}.0", f"{place}.1")
        return Decoder(rules, own)
    return Decoder()


# The dense layers of torchvision's VGG are the first convolutions of the paper's FCN.
CLASSIFIERS = {("torchvision", "vgg"): Decoder((("fc6", "classifier.0"), ("fc7", "classifier.3")))}


def translate(path: str, rules: Iterable[tuple[str, str]]) -> str | None:
    """Translates the path of one of our leaves to their name.

    Args:
        path: path of the leaf, below the backbone or the network.
        rules: pairs of our path and their name.

    Returns:
        Their tensor's name; None if no rule matches.

    Example:
        >>> translate("layer1_0/conv2/norm/var", RESNET)
        'layer1.0.bn2.running_var'
    """
    module, _, leaf = path.rpartition("/")
    for pattern, name in rules:
        if match := re.fullmatch(pattern, path):
            return match.expand(name)
        if match := re.fullmatch(pattern, module):
            return f"{match.expand(name)}.{LEAVES[leaf]}"
    return None
