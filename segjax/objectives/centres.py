"""The objective of Panoptic-DeepLab: classes, centre heatmap and offsets (Cheng et al., 2020, arXiv:1911.10194)."""

from typing import Annotated

import jax.numpy as jnp

from segjax import losses
from segjax.checks import Key, UserError
from segjax.objectives import centre_grouping, centre_targets
from segjax.objectives.averaging import resize
from segjax.objectives.maps import Maps, to_output
from segjax.objectives.objective import Decoded, LossOfMeans, Objective, require_things
from segjax.spec import DatasetSpec, valid_pixels


def create(
    spec: DatasetSpec,
    *,
    cross_entropy: Annotated[float, Key("loss weight of the cross-entropy", "[0, inf)")] = 1.0,
    centre: Annotated[float, Key("loss weight of the centre heatmap's squared error", "[0, inf)")] = 200.0,
    offset: Annotated[float, Key("loss weight of the offsets' absolute error in pixels", "[0, inf)")] = 0.01,
    ohem_fraction: Annotated[
        float, Key("OHEM: fraction of each image's pixels in the cross-entropy, those with the largest", "(0, 1]")
    ] = 0.2,
    sigma: Annotated[
        float | None,
        Key(
            "of a centre's Gaussian, in pixels; None: 8 for crops of 1025 rows, less for smaller ones, at least 4",
            "(0, inf)",
        ),
    ] = None,
    small_area: Annotated[int, Key("objects with fewer pixels get loss weight small_weight", "[0, inf)")] = 4096,
    small_weight: Annotated[float, Key("cross-entropy weight of small objects' pixels", "[0, inf)")] = 3.0,
    max_objects: Annotated[int, Key("maximum number of objects in a training image", "[1, 65535]")] = 999,
    threshold: Annotated[float, Key("centres have a heatmap value above this")] = 0.1,
    nms_kernel: Annotated[int, Key("window in which a centre must be the maximum; odd", "[1, inf)")] = 7,
    top_k: Annotated[int, Key("maximum number of objects predicted in an image", "[1, 65535]")] = 200,
) -> Objective:
    """Makes the objective, with the loss of section 3.1.

        cross_entropy * softmax cross-entropy of the hardest pixels of each image (OHEM)
        + centre * squared error of the centre heatmap
        + offset * (|dy error| + |dx error|) of the pixels of objects

    at the size of the label. Each term is a sum over all images divided by one sum of weights. The weights 1, 200 and
    0.01 are the paper's, as are `small_weight`, `threshold`, `nms_kernel` and `top_k`. From deeplab2 are
    `ohem_fraction`, `small_area` and `sigma`: 8 for crops of 1025 rows and columns or more, proportionally less for
    smaller ones, at least 4, one pixel of the network's maps. The keyword arguments are keys of `objective`.

    Args:
        spec: the data set, as the task reads it.

    Returns:
        The objective.

    Raises:
        UserError: the data set has no things, all loss weights are 0, or the window is even.
    """
    require_things(spec)
    if cross_entropy + centre == 0:
        raise UserError("objective.cross_entropy and objective.centre are both 0: set one of them above 0.")
    if nms_kernel % 2 == 0:
        raise UserError(f"objective.nms_kernel={nms_kernel} must be odd.")
    factors = {"cross_entropy": cross_entropy, "centre": centre, "offset": offset}

    def make_targets(label, instance):
        return centre_targets.make_targets(
            label,
            instance,
            things=spec.things,
            ignore=spec.ignore,
            count=max_objects + 1,
            sigma=max(4.0, 8.0 * min(1.0, min(label.shape[1:]) / 1025)) if sigma is None else sigma,
            small_area=small_area,
            small_weight=small_weight,
        )

    def loss(outputs, batch, key=None, progress=None, axis_name=None):
        label, valid = losses.split_ignore(batch["label"], spec.ignore)
        target = make_targets(batch["label"], batch["instance"])
        predicted = resize(maps(outputs), label.shape[1:])
        values = losses.cross_entropy(predicted.scalars["logits"], label) * target.semantic_weight
        hard = losses.ohem_mask(values, valid, ohem_fraction)
        # Errors that do not count are 0 before their slope is taken, which is NaN where the maps are.
        centre_error = jnp.where(target.centre_weight > 0, predicted.scalars["centre"] - target.centre, 0.0)
        offset_error = predicted.vectors["offset"] - target.offset
        offset_error = jnp.where(target.offset_weight[..., None] > 0, offset_error, 0.0)
        means = {
            "cross_entropy": losses.mean_and_divisor(values, hard, axis_name),
            "centre": losses.mean_and_divisor(jnp.square(centre_error), target.centre_weight, axis_name),
            "offset": losses.mean_and_divisor(jnp.abs(offset_error).sum(-1), target.offset_weight, axis_name),
        }
        total = sum(factors[name] * mean for name, (mean, _) in means.items())
        parts = {name: (factors[name] * mean, divisor) for name, (mean, divisor) in means.items() if factors[name]}
        return total, {name: mean for name, (mean, _) in means.items()}, parts

    def maps(outputs, geometry=None):
        return Maps({"logits": outputs["logits"], "centre": outputs["centre"]}, {"offset": outputs["offset"]})

    def decode(maps, geometry):
        fitted = to_output(maps, geometry)
        shown = {"centre": fitted.scalars["centre"], "offset": fitted.vectors["offset"]}
        instance, confidence, _ = centre_grouping.find_objects(
            **shown,
            inside=valid_pixels(geometry),
            threshold=threshold,
            nms_kernel=nms_kernel,
            top_k=top_k,
        )
        return Decoded(fitted.scalars["logits"], instance, confidence, shown=shown)

    return Objective(
        outputs=frozenset({"logits", "centre", "offset"}),
        loss=LossOfMeans(tuple(name for name, factor in factors.items() if factor), loss),
        maps=maps,
        decode=decode,
        needs_instances=True,
        max_objects=max_objects,
        targets=lambda label, instance: make_targets(label, instance)._asdict(),
    )
