"""Pretrained weights: loads state dicts of torchvision, timm and segmentation_models.pytorch into our networks."""

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
from segjax.weights.match import Match, Mismatch, match_tensors, to_flax_layout

__all__ = ["Mismatch", "Report", "load"]

# Preprocessing of torchvision's weights and smp's ResNets; timm's differs, and is stated in its config.json.
IMAGENET = Preprocess((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# Preprocessing, from Caffe, of torchvision's VGG16_Weights.IMAGENET1K_FEATURES, whose dense layers are all NaN.
CAFFE = Preprocess((122.99925, 116.9991, 103.9992), (1.0, 1.0, 1.0))
# torchvision's presets for segmentation networks, and for classifiers, whose short sides are 230 to 256.
RESIZES = {
    ("torchvision", True): "the short side to 520, bilinear, half-pixel, antialiased",
    ("torchvision", False): "the short side to 230 to 256, bilinear, half-pixel, antialiased, and a centre crop of 224",
}
DENSE = [f"classifier.{i}.{leaf}" for i in (0, 3, 6) for leaf in ("weight", "bias")]  # of VGG
SHOWN = 3  # names in a message


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of loading; `str()` is a summary.

    Attributes:
        layout: naming scheme of the source.
        loaded: our leaves that got values of the source.
        missing: our leaves without a tensor in the source; they keep their values.
        unused: tensors of the source that no leaf uses.
        mismatched: our leaves that keep their values because their tensor has another shape.
        reinitialised: leaves of heads that keep their values because the number of classes differs.
        classes: number of classes of their heads and of ours, if it differs.
        preprocess: preprocessing of the source; None if unknown.
        stated: whether a config.json next to the weights states it; otherwise it is that of the package's own weights.
        resize: how their images were resized, in words; "" if unknown.
        settings: attributes that make our model their network, if it is more than a backbone.
        shifted: difference of the epsilons, added to their batch variances: evaluation matches theirs exactly, further
            training uses our epsilon.
        align_corners: how their logits are upsampled: True for aligned centres of corner pixels, False for
            half-pixel centres, which tasks use.
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
        """Formats the summary: one line per finding, names grouped by their first parts."""
        count = sum(map(len, (self.loaded, self.missing, self.mismatched, self.reinitialised)))
        lines = [f"loaded {len(self.loaded)} of {count} tensors, layout {self.layout}"]
        if self.reinitialised:
            old, new = self.classes
            lines.append(f"reinitialised for {new} classes instead of {old}: {', '.join(self.reinitialised)}")
        if self.missing:
            lines.append(f"kept, since they are not among the weights: {_groups(self.missing, '/')}")
        if self.mismatched:
            lines.append(f"kept, since the shapes differ: {_listed([*map(_describe, self.mismatched)])}")
        if self.unused:
            lines.append(f"unused weights: {_groups(self.unused, '.')}")
        if self.settings:
            lines.append(f"the same function only with {_settings(self.settings)}")
        if self.shifted:
            lines.append(f"batch variances shifted by {self.shifted:g}, the difference of the epsilons")
        if self.align_corners:
            lines.append("their logits are upsampled with align_corners, ours with half-pixel centres")
        if self.preprocess:
            where = "their config.json states" if self.stated else f"not stated; {self.layout}'s own weights have"
            lines.append(f"{where} preprocess.mean={self.preprocess.mean}, preprocess.std={self.preprocess.std}")
        else:
            lines.append("their preprocessing is not stated")
        if self.resize:
            lines.append(f"their images were resized: {self.resize}")
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
    r"""Loads published weights into the variables of a network.

    Kernels are transposed. If the epsilons of batch norms differ, the variances are shifted so that `var + epsilon` is
    theirs. A bias before a batch norm, which ours do not have, is subtracted from the norm's mean. A classifier's
    weights fill only the backbone, and with VGG also `fc6` and `fc7` of the paper's FCN. Heads for another number of
    classes keep their values.

    Args:
        source: a state dict of NumPy or PyTorch tensors, a path to a .safetensors, .pth, .pt or .bin file, or
            "hf://organisation/name", with "@revision" for a particular one.
        variables: "params" and "batch_stats" of a network of `segjax.models` or of one of its backbones.
        layout: naming scheme of the tensors: "torchvision", "timm" or "smp".
        model: the network, which knows the family of its backbone.
        family: that family, if the variables are those of a backbone alone: see `segjax.nn.backbones.BACKBONES`.
        check_settings: compare the network's settings with theirs: some, such as dilations, change its outputs but no
            tensor's shape.
        strict: raise if a tensor is missing, unused or has another shape; otherwise load what fits.

    Returns:
        The variables with the weights in place (same structure, dtypes and devices; the argument is not changed), and a
        report.

    Raises:
        UserError: the source cannot be read, does not fit, is another network's or has values that are not finite; or
            variables without values, given as shapes, are not in the source.

    Example:
        >>> from segjax.nn import backbones, layers
        >>> net = backbones.create("resnet_micro")
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
        raise UserError("Give model=, the network, or family=, the family of the backbone that has these variables.")
    family = family or getattr(model, "family", "")
    if "params" not in variables:
        raise UserError("variables must be what a model's init returns: {'params': ..., 'batch_stats': ...}.")
    theirs = read.read_state_dict(source)
    _check_inputs(theirs)
    paths, structure = jax.tree_util.tree_flatten_with_path(variables)
    ours = {"/".join(key.key for key in path[1:]): leaf for path, leaf in paths}
    shapes = {name: tuple(leaf.shape) for name, leaf in ours.items()}
    # Dense layers of NaN, see CAFFE, count as absent.
    blank = [name for name in DENSE if name in theirs.tensors and np.isnan(read.to_array(theirs.tensors[name])).all()]
    theirs = theirs._replace(tensors={name: x for name, x in theirs.tensors.items() if name not in blank})
    fit = match_tensors(theirs.tensors, shapes, variables["params"], layout, family)
    if not fit.sources or (strict and not fit.sound):
        fits = {
            each: match_tensors(theirs.tensors, shapes, variables["params"], each, family) for each in names.LAYOUTS
        }
        raise UserError(_refusal(theirs, layout, fits))
    leaves = [_value(theirs, fit, name, leaf) if name in fit.sources else leaf for name, leaf in ours.items()]
    unfilled = [name for name, leaf in zip(ours, leaves, strict=True) if isinstance(leaf, jax.ShapeDtypeStruct)]
    if unfilled:
        raise UserError(f"{theirs.name} does not have values for {_listed(unfilled)}: initialise the network first.")
    network, stated = not fit.backbone_only, read.preprocess(theirs.settings)
    settings = dict(fit.decoder.settings) if network else {}
    compared = settings if check_settings else {}
    other = {key: value for key, value in compared.items() if getattr(model, key, value) != value}
    if other:
        raise UserError(
            f"{theirs.name} has the weights of another network: set {_settings(other)}, or turn off the comparison "
            "(init.check_settings=False in a run, check_settings=False here)."
        )
    is_network = network or any(name.startswith("backbone.") for name in theirs.tensors)
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
        resize=read.resize(theirs.settings) or RESIZES.get((layout, is_network), ""),
        settings=settings,
        shifted=fit.epsilon,
        align_corners=fit.decoder.align_corners and network,
    )
    return jax.tree.unflatten(structure, leaves), report


def _check_inputs(theirs: read.Source) -> None:
    """Rejects networks with other image channels or padding, although their tensors would fit."""
    if read.bgr(theirs.settings):
        raise UserError(f"{theirs.name} expects images in BGR: reverse axis 1 of its first kernel, and save it again.")
    if str(theirs.settings.get("architecture", "")).startswith("tf_"):
        raise UserError(
            f"{theirs.name}: timm's tf_ networks have TensorFlow's padding, only at the bottom and right: the names "
            "match, but the outputs would not. Use the weights of the network without tf_."
        )


def _value(theirs: read.Source, fit: Match, name: str, leaf: Any) -> Any:
    """Returns the new value of one of our leaves, on the leaf's devices."""

    def values(tensor):
        x = read.to_array(theirs.tensors[tensor])
        if not np.isfinite(x).all():
            raise UserError(f"{theirs.name}: {tensor} holds values that are not finite; the file is damaged.")
        return x

    x = values(fit.sources[name])
    if name in fit.biases:
        x = x - values(fit.biases[name])
    if name.endswith("/var"):
        x = x + np.float32(fit.epsilon)
    x = np.array(to_flax_layout(x, leaf.shape), leaf.dtype)  # a copy: the result shares no memory with the source
    return jax.device_put(x, leaf.sharding) if isinstance(leaf, jax.Array) else x


def _refusal(theirs: read.Source, layout: str, fits: Mapping[str, Match]) -> str:
    """Explains why a source is not loaded, and what to do."""
    fit = fits[layout]
    count = sum(map(len, (fit.missing, fit.sources, fit.mismatched, fit.reinitialised)))
    best = max(fits, key=lambda each: (fits[each].sound, len(fits[each].sources)))
    why = []
    if not fit.kind:
        why.append("the network has no backbone with published weights, set model.backbone")
    elif not fit.known:
        why.append(f"it has no {fit.kind} networks")
    elif not fit.sources:
        looked = next(iter(fit.wanted.values()), "another network")
        why.append(f"none of its {len(theirs.tensors)} tensors matches, {looked} is expected")
    else:
        lacking = [f"{name} <- {fit.wanted.get(name, 'nothing')}" for name in fit.missing_required]
        for faults, what in (
            (lacking, "of our tensors are missing"),
            ([*map(_describe, fit.mismatched)], "have another shape"),
            (fit.unexpected, "of its tensors have no place here, as those of a deeper network or of other norms"),
        ):
            why += [f"{len(faults)} {what} ({_listed(faults)})"] if faults else []
    text = f"{theirs.name} does not fit with layout={layout!r}: {'; '.join(why)}."
    if best != layout and len(fits[best].sources) > len(fit.sources):
        return f"{text} layout={best!r} would match {len(fits[best].sources)} of {count}."
    if fit.sources:
        like = f" ({_settings(fit.decoder.settings)})" if fit.decoder.settings else ""
        text += f" Make the network equal theirs{like}, or load what fits with strict=False."
    return text


def _describe(found: Mismatch) -> str:
    return f"{found.name} {found.ours} <- {found.source} {found.theirs}"


def _settings(settings: Mapping[str, Any]) -> str:
    """Attributes of a model as configuration keys."""
    return ", ".join(f"model.{key}={value!r}" for key, value in settings.items())


def _listed(items: Sequence[str]) -> str:
    """Joins the first few items."""
    return ", ".join(items[:SHOWN]) + (", ..." if len(items) > SHOWN else "")


def _groups(items: Iterable[str], separator: str) -> str:
    """Counts names by their first part."""
    counts = collections.Counter(item.partition(separator)[0] for item in items)
    return ", ".join(f"{name} ({count})" for name, count in counts.items())
