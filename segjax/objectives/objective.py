"""The contract of an objective: what a network learns, and how its outputs are decoded."""

from collections.abc import Callable
from typing import Any, NamedTuple

from segjax.checks import UserError
from segjax.spec import DatasetSpec


class Objective(NamedTuple):
    """What a network learns, as a tuple of pure functions.

    outputs: names of the outputs that a model must give.
    loss: (outputs, batch, key, progress, axis_name) -> (scalar, {name: scalar}). `key` holds a random key a sample,
        [b]; `progress` is the share of the run that is done, 0 to 1. With an axis name, shares that sum over the
        devices to the value for the global batch.
    maps: (outputs, geometry) -> Maps, what predictions are made of; these may be averaged over flips, scales, windows
        and networks.
    decode: (maps, geometry) -> Decoded, at `geometry.output_size`.
    needs_instances: whether batches hold instance maps; those of an objective that finds objects do.
    max_objects: greatest number of objects in a training image.
    targets: (label, instance) -> named maps that the network learns; None where it learns the label alone.
    """

    outputs: frozenset[str]
    loss: Callable[..., tuple[Any, dict[str, Any]]]
    maps: Callable[..., Any]
    decode: Callable[..., "Decoded"]
    needs_instances: bool = False
    max_objects: int = 2**16 - 1
    targets: Callable[..., Any] | None = None


class Decoded(NamedTuple):
    """What maps say before a task decides, float32 and int32 at the size of the result.

    logits: scores of the classes [b, y, x, k]; a single channel in binary mode.
    instance: number of the object of each pixel, 1 .. n, 0 for none [b, y, x]; None where no objects are told apart.
    confidence: of objects 1 .. n, before the probability of their class [b, n].
    masks: pixels of each object, bool [b, n, y, x], in place of `instance` where objects may overlap.
    classes: class of each mask [b, n]; -1 where a place is not taken.
    score: confidence of each mask [b, n].
    shown: other maps that are worth a picture, by name [b, y, x, ...].
    """

    logits: Any
    instance: Any = None
    confidence: Any = None
    masks: Any = None
    classes: Any = None
    score: Any = None
    shown: Any = None


def require_things(spec: DatasetSpec) -> None:
    """Raises a UserError where objects cannot be learned: where no class is a thing, or pixels have many classes."""
    if spec.mode == "multilabel":
        raise UserError("Objects need masks of one class a pixel: leave {class} out of source.masks.")
    if spec.mode == "binary":
        raise UserError("Objects need a logit a class, and task.mode='binary' has one: set task.mode='multiclass'.")
    if not spec.things:
        raise UserError(
            f"Objects need classes that are things, and of {', '.join(spec.classes)} none is one. Set source.things, "
            "or use task.name='semantic'."
        )
