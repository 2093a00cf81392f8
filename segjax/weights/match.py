"""Matches the tensors of a state dict to our leaves, by name and shape."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from segjax.weights import names

HEADS = ("head", "aux_head", "head_c3", "head_c4", "head_low", "head_high")
IGNORED = "num_batches_tracked"


class Mismatch(NamedTuple):
    """A tensor whose shape differs from ours.

    Attributes:
        name: path of our leaf.
        source: name of their tensor.
        ours: shape of our leaf.
        theirs: shape of their tensor.
    """

    name: str
    source: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


class Match(NamedTuple):
    """How the tensors of a state dict match our leaves in a layout.

    Attributes:
        kind: family of our backbone; None if it has no published weights.
        known: whether the layout has that family.
        wanted: their tensor for each of our leaves that the layout has.
        sources: their tensor for each of our leaves that matches.
        mismatched: our leaves whose tensor has another shape.
        reinitialised: leaves of heads with another number of classes.
        classes: their number of classes and ours, if it differs.
        biases: their biases to subtract from the means of our batch norms, by leaf.
        missing: our leaves without a tensor.
        unused: their tensors that no leaf uses.
        backbone_only: whether the source has the backbone only.
        missing_required: the part of `missing` that is an error.
        unexpected: the part of `unused` that is an error, since it belongs to parts that are loaded.
        decoder: the rest of the network in that layout.
        epsilon: epsilon of their batch norms, minus ours; other than 0 only in layouts that have backbones alone.
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
    backbone_only: bool
    missing_required: tuple[str, ...]
    unexpected: tuple[str, ...]
    decoder: names.Decoder
    epsilon: float

    @property
    def sound(self) -> bool:
        """Whether strict loading accepts it."""
        return bool(self.sources) and not (self.missing_required or self.mismatched or self.unexpected)


def match_tensors(
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
        params: parameters of our network, or of a backbone.
        layout: one of `names.LAYOUTS`.
        kind: family of our backbone; None if it has no published weights.

    Returns:
        The match.
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
    backbone_only = classifier or not any(wanted.get(name) in tensors for name in outer)

    sources, mismatched, reinitialised, classes = _compare(tensors, ours, wanted)
    biases = _biases(tensors, ours, wanted)
    used = {*wanted.values(), *biases.values()}
    missing = tuple(name for name in ours if wanted.get(name) not in tensors)
    unused = tuple(name for name in tensors if name not in used and not name.endswith(IGNORED))

    def belongs(name):
        own = name.startswith(prefix) and re.fullmatch(family.pattern, name.removeprefix(prefix))
        return own or (not backbone_only and re.fullmatch(decoder.pattern, name))

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
        backbone_only=backbone_only,
        missing_required=tuple(name for name in missing if name in inner or not backbone_only),
        unexpected=tuple(filter(belongs, unused)),
        decoder=decoder,
        epsilon=family.epsilon,
    )


def _compare(tensors, ours, wanted):
    """Sorts the tensors into those of our shape, of another shape, and with another number of classes only."""
    sources, mismatched, reinitialised, classes = {}, [], [], None
    for name, theirs in wanted.items():
        if theirs not in tensors:
            continue
        shape = tuple(tensors[theirs].shape)
        turned = to_flax_layout(np.broadcast_to(np.float32(0), shape), ours[name]).shape
        if turned == ours[name]:
            sources[name] = theirs
        elif name.partition("/")[0] in HEADS and len(turned) == len(ours[name]) and turned[:-1] == ours[name][:-1]:
            reinitialised.append(name)
            classes = turned[-1], ours[name][-1]
        else:
            mismatched.append(Mismatch(name, theirs, ours[name], shape))
    return sources, tuple(mismatched), tuple(reinitialised), classes


def _biases(tensors, ours, wanted):
    """Finds biases before a batch norm, which ours do not have: torchvision's VGG with batch norm has them."""
    biases = {}
    for name in ours:
        conv = name.removesuffix("norm/mean") + "conv"
        if name.endswith("/norm/mean") and f"{conv}/kernel" in wanted and f"{conv}/bias" not in ours:
            bias = wanted[f"{conv}/kernel"].removesuffix("weight") + "bias"
            biases |= {name: bias} if bias in tensors else {}
    return biases


def to_flax_layout(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Transposes a PyTorch tensor to our order of axes.

    Args:
        x: a convolution's kernel (O, I, h, w), a dense layer's (O, I), or a tensor with our axes except for axes of
            length 1.
        shape: shape of our leaf: (h, w, I, O), (I, O), or another; a dense kernel for a convolution comes from a layer
            over all pixels of (c, h, w).

    Returns:
        A view, with that shape if x fits.

    Example:
        >>> to_flax_layout(np.zeros((5, 3, 2, 2)), (2, 2, 3, 5)).shape
        (2, 2, 3, 5)
        >>> to_flax_layout(np.zeros((7, 12)), (2, 2, 3, 7)).shape
        (2, 2, 3, 7)
    """
    if x.ndim == 2 and len(shape) == 4 and x.shape[1] == np.prod(shape[:3]):
        x = x.reshape(-1, shape[2], *shape[:2])
    if x.ndim == 4:
        return x.transpose(2, 3, 1, 0)
    if x.ndim == 2:
        return x.T
    return x.reshape(shape) if x.size == np.prod(shape) else x
