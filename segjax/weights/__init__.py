"""Weights that exist already: state dicts of torchvision, timm and segmentation_models.pytorch in our networks."""

import collections
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from segjax.checks import UserError, check_choice
from segjax.spec import Preprocess
from segjax.weights import names, read
from segjax.weights.match import Match, Mismatch, match, turn

__all__ = ["Mismatch", "Report", "load"]

# What torchvision's weights and smp's ResNets were trained with; timm's differ, and say so in their config.json.
IMAGENET = Preprocess((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# And torchvision's VGG16_Weights.IMAGENET1K_FEATURES, whose dense layers are filled with nan: from Caffe.
CAFFE = Preprocess((122.99925, 116.9991, 103.9992), (1.0, 1.0, 1.0))
# torchvision's presets: of all segmentation networks, and of classifiers, whose short sides are 230 to 256.
RESIZES = {
    ("torchvision", True): "the short side to 520, bilinear, half-pixel, antialiased",
    ("torchvision", False): "the short side to 230 to 256, bilinear, half-pixel, antialiased, and a centre crop of 224",
}
DENSE = [f"classifier.{i}.{leaf}" for i in (0, 3, 6) for leaf in ("weight", "bias")]  # of VGG
SHOWN = 3  # names in a message


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of loading; `str()` is a summary.

    Attributes:
        layout: whose names were looked for.
        loaded: our leaves that have their values.
        missing: our leaves that the source has no tensor for; they keep their values.
        unused: their tensors that no leaf of ours asked for.
        mismatched: our leaves that keep their values because their tensor has another shape.
        reinitialised: leaves of heads that keep their values because the number of classes differs.
        classes: number of classes of their heads and of ours, where it differs.
        preprocess: how their images became inputs; None where it is unknown.
        stated: whether a config.json beside the weights says so; otherwise it is that of the package's own weights.
        resize: how their images were brought to size, in words; "" where it is unknown.
        settings: attributes of the model that make it their network, where it is more than a backbone.
        shifted: what was added to their batch variances, as their epsilon is not ours: evaluation is theirs exactly,
            further training has our epsilon.
        align_corners: what rule enlarges their logits: True for the centres of the corner pixels upon each other,
            False for half pixels, the one that tasks use.
    """

    layout: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    reinitialised: tuple[str, ...]
    classes: tuple[int, int] | None
    preprocess: Preprocess | None
    stated: bool
    resize: str
    settings: Mapping[str, Any]
    shifted: float
    align_corners: bool

    def __str__(self):
        """The summary: a line a finding, names grouped by their first parts."""
        count = sum(map(len, (self.loaded, self.missing, self.mismatched, self.reinitialised)))
        lines = [f"loaded {len(self.loaded)} of {count} tensors, layout {self.layout}"]
        if self.reinitialised:
            old, new = self.classes
            lines.append(f"made anew for {new} classes instead of {old}: {', '.join(self.reinitialised)}")
        if self.missing:
            lines.append(f"kept as they were, for they are not among the weights: {_groups(self.missing, '/')}")
        if self.mismatched:
            lines.append(f"kept as they were, for the shapes differ: {_listed([*map(_describe, self.mismatched)])}")
        if self.unused:
            lines.append(f"of the weights not used: {_groups(self.unused, '.')}")
        if self.settings:
            lines.append(f"the same function only with {_settings(self.settings)}")
        if self.shifted:
            lines.append(f"batch variances shifted by {self.shifted:g}, the difference of the epsilons")
        if self.align_corners:
            lines.append("their logits are enlarged with align_corners, ours with half pixels")
        if self.preprocess:
            where = "their config.json says" if self.stated else f"not stated; {self.layout}'s own weights have"
            lines.append(f"{where} preprocess.mean={self.preprocess.mean}, preprocess.std={self.preprocess.std}")
        else:
            lines.append("their preprocessing is not stated")
        if self.resize:
            lines.append(f"their images were brought to size with {self.resize}")
        return "\n".join(lines)


def load(
    source: Mapping[str, Any] | str | os.PathLike,
    variables: Mapping[str, Any],
    layout: str = "torchvision",
    *,
    model: Any = None,
    family: str | None = None,
    check_settings: bool = True,
    strict: bool = True,
) -> tuple[Any, Report]:
    r"""Puts published weights into the variables of a network.

    Kernels are transposed; batch statistics that were taken with another epsilon are shifted by the difference, so
    that `var + epsilon` is theirs; a bias before a batch norm that has none here is taken off the norm's mean. A
    classifier's weights fill the backbone alone, and VGG's also `fc6` and `fc7` of the paper's FCN. Heads for another
    number of classes keep the values they have.

    Args:
        source: a state dict of NumPy or PyTorch tensors, a path to a .safetensors, .pth, .pt or .bin file, or
            "hf://organisation/name", with "@revision" where a particular one is meant.
        variables: "params" and "batch_stats" of a network of `segjax.models` or of one of its backbones.
        layout: whose names the tensors have: "torchvision", "timm" or "smp".
        model: the network, which knows the family of its backbone.
        family: that family, where the variables are a backbone's alone: see `segjax.nn.backbones.BACKBONES`.
        check_settings: compare the network's settings with theirs: some, such as dilations, change what it computes and
            no tensor's shape.
        strict: raise where a tensor is missing or left over, or has another shape; otherwise load what fits.

    Returns:
        The variables with the weights in place (same structure, dtypes and devices; the argument is not changed), and
        what was done.

    Raises:
        UserError: a source that cannot be read, does not fit, is another network's, or has values that are not finite;
            shapes for variables that the weights leave unfilled.

    Example:
        >>> from segjax.nn import backbones, layers
        >>> net = backbones.create("resnet_micro", layers.Style())
        >>> images = jax.numpy.zeros((1, 32, 32, 3))
        >>> shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
        >>> variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        >>> weights = {"conv1.weight": np.ones((8, 3, 7, 7), np.float16)}
        >>> variables, report = load(weights, variables, family="resnet", strict=False)
        >>> len(report.loaded), float(variables["params"]["conv1"]["conv"]["kernel"].mean())
        (1, 1.0)
    """
    check_choice("layout", layout, names.LAYOUTS)
    if model is None and family is None:
        raise UserError("Give model=, the network, or family=, that of the backbone whose variables these are.")
    family = family or getattr(model, "family", "")
    if "params" not in variables:
        raise UserError("variables must be what a model's init returns: {'params': ..., 'batch_stats': ...}.")
    found = read.read(source)
    _check_inputs(found)
    paths, structure = jax.tree_util.tree_flatten_with_path(variables)
    ours = {"/".join(key.key for key in path[1:]): leaf for path, leaf in paths}
    shapes = {name: tuple(leaf.shape) for name, leaf in ours.items()}
    # Dense layers of nan, see CAFFE, count as absent.
    blank = [name for name in DENSE if name in found.tensors and np.isnan(read.array(found.tensors[name])).all()]
    found = found._replace(tensors={name: x for name, x in found.tensors.items() if name not in blank})
    fit = match(found.tensors, shapes, variables["params"], layout, family)
    if not fit.sources or (strict and not fit.sound):
        fits = {each: match(found.tensors, shapes, variables["params"], each, family) for each in names.LAYOUTS}
        raise UserError(_refusal(found, layout, fits))
    leaves = [_value(found, fit, name, leaf) if name in fit.sources else leaf for name, leaf in ours.items()]
    unfilled = [name for name, leaf in zip(ours, leaves, strict=True) if isinstance(leaf, jax.ShapeDtypeStruct)]
    if unfilled:
        raise UserError(
            f"{found.name} leaves shapes without values ({_listed(unfilled)}): initialise the network first."
        )
    network, stated = not fit.alone, read.preprocess(found.settings)
    settings = dict(fit.decoder.settings) if network else {}
    compared = settings if check_settings else {}
    other = {key: value for key, value in compared.items() if getattr(model, key, value) != value}
    if other:
        raise UserError(
            f"{found.name} has the weights of another network: set {_settings(other)}, or have settings not compared "
            "(init.check_settings=False in a run, check_settings=False here)."
        )
    whole = network or any(name.startswith("backbone.") for name in found.tensors)
    own = {"torchvision": CAFFE if blank else IMAGENET, "smp": IMAGENET}.get(layout)
    report = Report(
        layout=layout,
        loaded=tuple(fit.sources),
        missing=fit.missing,
        unused=fit.unused,
        mismatched=fit.mismatched,
        reinitialised=fit.reinitialised,
        classes=fit.classes,
        preprocess=stated or own,
        stated=stated is not None,
        resize=read.resize(found.settings) or RESIZES.get((layout, whole), ""),
        settings=settings,
        shifted=fit.epsilon,
        align_corners=fit.decoder.align_corners and network,
    )
    return jax.tree.unflatten(structure, leaves), report


def _check_inputs(found: read.Source) -> None:
    """Refuses networks whose images or padding are not ours, although their tensors would fit."""
    if read.bgr(found.settings):
        raise UserError(f"{found.name} expects images in BGR: reverse axis 1 of its first kernel, and save it anew.")
    if str(found.settings.get("architecture", "")).startswith("tf_"):
        raise UserError(
            f"{found.name}: timm's tf_ networks have TensorFlow's padding, at the bottom and right only: the names "
            "fit, the outputs would not. Take the weights of the network without tf_."
        )


def _value(found: read.Source, fit: Match, name: str, leaf: Any) -> Any:
    """The value of one of our leaves, placed as the leaf is."""

    def values(tensor):
        x = read.array(found.tensors[tensor])
        if not np.isfinite(x).all():
            raise UserError(f"{found.name}: {tensor} holds values that are not finite, the file is damaged.")
        return x

    x = values(fit.sources[name])
    if name in fit.biases:
        x = x - values(fit.biases[name])
    if name.endswith("/var"):
        x = x + np.float32(fit.epsilon)
    x = np.array(turn(x, leaf.shape), leaf.dtype)  # a copy: neither the source nor JAX may change the other's
    return jax.device_put(x, leaf.sharding) if isinstance(leaf, jax.Array) else x


def _refusal(found: read.Source, layout: str, fits: Mapping[str, Match]) -> str:
    """Why a source is not loaded, and what to do."""
    fit = fits[layout]
    count = sum(map(len, (fit.missing, fit.sources, fit.mismatched, fit.reinitialised)))
    best = max(fits, key=lambda each: (fits[each].sound, len(fits[each].sources)))
    why = []
    if not fit.kind:
        why.append("the network stands on no backbone that has published weights, set model.backbone")
    elif not fit.known:
        why.append(f"it has no {fit.kind} networks")
    elif not fit.sources:
        looked = next(iter(fit.wanted.values()), "another network")
        why.append(f"none of its {len(found.tensors)} tensors fits, {looked} is looked for")
    else:
        lacking = [f"{name} <- {fit.wanted.get(name, 'nothing')}" for name in fit.lacking]
        for faults, what in (
            (lacking, "of our tensors are missing"),
            ([*map(_describe, fit.mismatched)], "have another shape"),
            (fit.left_over, "of its tensors have no place here, as those of a deeper network or of other norms"),
        ):
            why += [f"{len(faults)} {what} ({_listed(faults)})"] if faults else []
    text = f"{found.name} does not fit with layout={layout!r}: {'; '.join(why)}."
    if best != layout and len(fits[best].sources) > len(fit.sources):
        return f"{text} layout={best!r} would fit {len(fits[best].sources)} of {count}."
    if fit.sources:
        like = f" ({_settings(fit.decoder.settings)})" if fit.decoder.settings else ""
        text += f" Make the network like theirs{like}, or load what fits with strict=False."
    return text


def _describe(found: Mismatch) -> str:
    return f"{found.name} {found.ours} <- {found.source} {found.theirs}"


def _settings(settings: Mapping[str, Any]) -> str:
    """Attributes of a model as configuration keys."""
    return ", ".join(f"model.{key}={value!r}" for key, value in settings.items())


def _listed(items: Sequence[str]) -> str:
    """The first few of some items."""
    return ", ".join(items[:SHOWN]) + (", ..." if len(items) > SHOWN else "")


def _groups(items: Iterable[str], separator: str) -> str:
    """Counts of names by their first part."""
    counts = collections.Counter(item.partition(separator)[0] for item in items)
    return ", ".join(f"{name} ({count})" for name, count in counts.items())
