"""Learning classes, centres of objects and offsets to them: Panoptic-DeepLab (Cheng et al., 2020, arXiv:1911.10194)."""

from typing import Annotated

import jax.numpy as jnp

from segjax import losses
from segjax.checks import Key, UserError
from segjax.objectives import grouping, targets
from segjax.objectives.averaging import resize
from segjax.objectives.maps import Maps, to_output
from segjax.objectives.objective import Decoded, Objective, require_things
from segjax.spec import DatasetSpec, valid_pixels


def create(
    spec: DatasetSpec,
    *,
    cross_entropy: Annotated[float, Key("weight of the cross-entropy in the loss", "[0, inf)")] = 1.0,
    centre: Annotated[float, Key("weight of the squared error of the centre map", "[0, inf)")] = 200.0,
    offset: Annotated[float, Key("weight of the absolute error of the offsets, in pixels", "[0, inf)")] = 0.01,
    hardest: Annotated[
        float, Key("share of each image's pixels that count in the cross-entropy, those of the largest", "(0, 1]")
    ] = 0.2,
    sigma: Annotated[
        float | None,
        Key(
            "of a centre's Gaussian, in pixels; None: 8 in crops of 1025 rows, less in smaller ones, 4 at least",
            "(0, inf)",
        ),
    ] = None,
    small_area: Annotated[int, Key("objects of fewer pixels weigh more in the cross-entropy", "[0, inf)")] = 4096,
    small_weight: Annotated[float, Key("loss weight of the pixels of small objects", "[0, inf)")] = 3.0,
    max_objects: Annotated[int, Key("greatest number of objects in a training image", "[1, 65535]")] = 999,
    threshold: Annotated[float, Key("least value of a centre")] = 0.1,
    nms_kernel: Annotated[int, Key("rows and columns in which a centre is the largest value; odd", "[1, inf)")] = 7,
    top_k: Annotated[int, Key("greatest number of objects found in an image", "[1, 65535]")] = 200,
) -> Objective:
    """Makes the objective, whose loss is that of section 3.1.

        cross_entropy * softmax cross-entropy of the hardest pixels of each image
        + centre * squared error of the centre map
        + offset * (|dy error| + |dx error|) of the pixels of objects

    at the size of the label, each a sum over all images by one sum of weights. The weights 1, 200 and 0.01 are the
    paper's, as are `small_weight`, `threshold`, `nms_kernel` and `top_k`; `hardest`, `sigma` (8 in crops of 1025 rows
    and columns or more, in proportion in smaller ones, at least 4, a pixel of the network's maps) and `small_area` are
    those of deeplab2. The keyword arguments are keys of the section `objective`.

    Args:
        spec: the data set, as the task reads it.

    Returns:
        The objective.

    Raises:
        UserError: a data set without things, no loss, or an even window.
    """
    require_things(spec)
    if cross_entropy + centre == 0:
        raise UserError("objective.cross_entropy and objective.centre are both 0: give one of them a weight.")
    if nms_kernel % 2 == 0:
        raise UserError(f"objective.nms_kernel={nms_kernel} must be odd, to have a middle.")
    factors = {"cross_entropy": cross_entropy, "centre": centre, "offset": offset}

    def make_targets(label, instance):
        return targets.make(
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
        wanted = make_targets(batch["label"], batch["instance"])
        found = resize(maps(outputs), label.shape[1:])
        values = losses.cross_entropy(found.scalars["logits"], label) * wanted.semantic_weight
        hard = losses.hardest(values, valid, hardest)
        centre_error = jnp.square(found.scalars["centre"] - wanted.centre)
        offset_error = jnp.abs(found.vectors["offset"] - wanted.offset).sum(-1)
        terms = {
            "cross_entropy": losses.weighted_mean(values, hard, axis_name),
            "centre": losses.weighted_mean(centre_error, wanted.centre_weight, axis_name),
            "offset": losses.weighted_mean(offset_error, wanted.offset_weight, axis_name),
        }
        return sum(factors[name] * value for name, value in terms.items()), terms

    def maps(outputs, geometry=None):
        return Maps({"logits": outputs["logits"], "centre": outputs["centre"]}, {"offset": outputs["offset"]})

    def decode(maps, geometry):
        fitted = to_output(maps, geometry)
        shown = {"centre": fitted.scalars["centre"], "offset": fitted.vectors["offset"]}
        instance, confidence, _ = grouping.find_objects(
            **shown,
            inside=valid_pixels(geometry),
            threshold=threshold,
            nms_kernel=nms_kernel,
            top_k=top_k,
        )
        return Decoded(fitted.scalars["logits"], instance, confidence, shown=shown)

    return Objective(
        outputs=frozenset({"logits", "centre", "offset"}),
        loss=loss,
        maps=maps,
        decode=decode,
        needs_instances=True,
        max_objects=max_objects,
        targets=lambda label, instance: make_targets(label, instance)._asdict(),
    )
