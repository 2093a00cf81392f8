"""Which tensor of a state dict goes where, by name and shape."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from segjax.weights import names

HEADS = ("head", "aux_head", "head_c3", "head_c4", "head_low", "head_high")
IGNORED = "num_batches_tracked"


class Mismatch(NamedTuple):
    """A tensor of another shape than ours.

    Attributes:
        name: of our leaf.
        source: of their tensor.
        ours: shape of our leaf.
        theirs: shape of their tensor.
    """

    name: str
    source: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


class Match(NamedTuple):
    """What a layout makes of a state dict.

    Attributes:
        kind: of our backbone; None where it is no published one.
        known: whether the layout has that kind.
        wanted: their tensor for each of our leaves, where the layout has such a leaf.
        sources: their tensor for each of our leaves that fits.
        mismatched: our leaves whose tensor has another shape.
        reinitialised: leaves of heads for another number of classes.
        classes: their number of classes and ours, where it differs.
        biases: their biases that our batch norms' means take up, by leaf.
        missing: our leaves without a tensor.
        unused: their tensors that are not asked for.
        alone: whether the source has the backbone only.
        lacking: what of `missing` is a fault.
        left_over: what of `unused` is a fault, for it belongs to parts that are loaded.
        decoder: what stands on the backbone in that layout.
        epsilon: of their batch norms, minus ours; where it is not 0, they have backbones only.
    """

    kind: str | None
    known: bool
    wanted: dict[str, str]
    sources: dict[str, str]
    mismatched: tuple[Mismatch, ...]
    reinitialised: tuple[str, ...]
    classes: tuple[int, int] | None
    biases: dict[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    alone: bool
    lacking: tuple[str, ...]
    left_over: tuple[str, ...]
    decoder: names.Decoder
    epsilon: float

    @property
    def sound(self) -> bool:
        """Whether strict loading accepts it."""
        return bool(self.sources) and not (self.lacking or self.mismatched or self.left_over)


def match(
    tensors: Mapping[str, Any],
    ours: Mapping[str, tuple[int, ...]],
    params: Mapping[str, Any],
    layout: str,
    kind: str | None,
) -> Match:
    """Finds the tensor of each of our leaves.

    Args:
        tensors: the state dict.
        ours: shapes of our leaves by path, such as "backbone/conv1/norm/mean".
        params: of our network, or of a backbone.
        layout: one of `names.LAYOUTS`.
        kind: family of our backbone; None where it is no published one.

    Returns:
        What was found.
    """
    root = "backbone/" if "backbone" in params else ""
    tree = params.get("backbone", params)
    family = names.FAMILIES.get((layout, kind), names.Family())
    rules = family.rules(tree)
    inner = {name: names.translate(name.removeprefix(root), rules) for name in ours if name.startswith(root)}
    outer = [name for name in ours if name not in inner]

    prefix = max(family.prefixes, key=lambda p: sum(t is not None and p + t in tensors for t in inner.values()))
    classifier = prefix == family.prefixes[0]
    if classifier:
        decoder = names.CLASSIFIERS.get((layout, kind), names.Decoder())
    else:
        decoder = names.decoder(layout, kind, params)
    wanted = {name: prefix + theirs for name, theirs in inner.items() if theirs}
    wanted |= {name: theirs for name in outer if (theirs := names.translate(name, decoder.rules))}
    alone = classifier or not any(wanted.get(name) in tensors for name in outer)

    sources, mismatched, reinitialised, classes = _compare(tensors, ours, wanted)
    biases = _biases(tensors, ours, wanted)
    used = {*wanted.values(), *biases.values()}
    missing = tuple(name for name in ours if wanted.get(name) not in tensors)
    unused = tuple(name for name in tensors if name not in used and not name.endswith(IGNORED))

    def belongs(name):
        own = name.startswith(prefix) and re.fullmatch(family.own, name.removeprefix(prefix))
        return own or (not alone and re.fullmatch(decoder.own, name))

    return Match(
        kind=kind,
        known=(layout, kind) in names.FAMILIES,
        wanted=wanted,
        sources=sources,
        mismatched=mismatched,
        reinitialised=reinitialised,
        classes=classes,
        biases=biases,
        missing=missing,
        unused=unused,
        alone=alone,
        lacking=tuple(name for name in missing if name in inner or not alone),
        left_over=tuple(filter(belongs, unused)),
        decoder=decoder,
        epsilon=family.epsilon,
    )


def _compare(tensors, ours, wanted):
    """Which of the tensors have our shape, which have another, and which differ in the number of classes only."""
    sources, mismatched, reinitialised, classes = {}, [], [], None
    for name, theirs in wanted.items():
        if theirs not in tensors:
            continue
        shape = tuple(tensors[theirs].shape)
        turned = turn(np.broadcast_to(np.float32(0), shape), ours[name]).shape
        if turned == ours[name]:
            sources[name] = theirs
        elif name.partition("/")[0] in HEADS and len(turned) == len(ours[name]) and turned[:-1] == ours[name][:-1]:
            reinitialised.append(name)
            classes = turned[-1], ours[name][-1]
        else:
            mismatched.append(Mismatch(name, theirs, ours[name], shape))
    return sources, tuple(mismatched), tuple(reinitialised), classes


def _biases(tensors, ours, wanted):
    """Biases before a batch norm, which ours do not have: torchvision's VGG with batch norm has them."""
    found = {}
    for name in ours:
        conv = name.removesuffix("norm/mean") + "conv"
        if name.endswith("/norm/mean") and f"{conv}/kernel" in wanted and f"{conv}/bias" not in ours:
            bias = wanted[f"{conv}/kernel"].removesuffix("weight") + "bias"
            found |= {name: bias} if bias in tensors else {}
    return found


def turn(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Puts PyTorch's axes in our order.

    Args:
        x: a convolution's kernel (O, I, h, w), a dense layer's (O, I), or a tensor whose axes are ours but for axes of
            length 1.
        shape: of our leaf: (h, w, I, O), (I, O), or another; a dense kernel for a convolution is that of a layer that
            took all pixels of (c, h, w).

    Returns:
        A view, of the shape that is asked for if x fits.

    Example:
        >>> turn(np.zeros((5, 3, 2, 2)), (2, 2, 3, 5)).shape, turn(np.zeros((7, 12)), (2, 2, 3, 7)).shape
        ((2, 2, 3, 5), (2, 2, 3, 7))
    """
    if x.ndim == 2 and len(shape) == 4 and x.shape[1] == np.prod(shape[:3]):
        x = x.reshape(-1, shape[2], *shape[:2])
    if x.ndim == 4:
        return x.transpose(2, 3, 1, 0)
    if x.ndim == 2:
        return x.T
    return x.reshape(shape) if x.size == np.prod(shape) else x
