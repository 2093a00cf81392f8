"""The interface of an objective: the loss of a network, and how its outputs are decoded."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from segjax.checks import UserError
from segjax.spec import DatasetSpec


@dataclasses.dataclass(frozen=True)
class LossOfMeans:
    """A loss that is a sum of parts, each a weighted mean, whose gradients can be accumulated over batches.

    Called like any `Objective.loss`, it returns the scalar and its terms.

    Attributes:
        parts: names of the parts.
        compute: like `Objective.loss`, with a third result {part: (share of the scalar, divisor)}. The shares sum to
            the scalar. The divisor is the global sum of weights of the part, without a gradient.
        whole_batch: the setting that makes the loss one of sums over the whole batch, which micro-batches lack; "" if
            there is none.
    """

    parts: tuple[str, ...]
    compute: Callable[..., tuple[Any, dict[str, Any], dict[str, tuple[Any, Any]]]]
    whole_batch: str = ""

    def __call__(self, *args, **kwargs) -> tuple[Any, dict[str, Any]]:
        """Computes the scalar and its terms, as an `Objective.loss`."""
        loss, terms, _ = self.compute(*args, **kwargs)
        return loss, terms


class Objective(NamedTuple):
    """The loss and decoding of a network, as a tuple of pure functions.

    outputs: names of the outputs that a model must have.
    loss: (outputs, batch, key, progress, axis_name) -> (scalar, {name: scalar}). `key` holds a random key per sample,
        [b]; `progress` is the fraction of the run that is done, 0 to 1. With an axis name, the scalars are shares
        that sum over devices to the value for the global batch. Gradients of a `LossOfMeans` can be accumulated.
    maps: (outputs, geometry) -> Maps, which predictions are decoded from; they may be averaged over flips, scales,
        windows and networks.
    decode: (maps, geometry) -> Decoded, at `geometry.output_size`.
    needs_instances: whether batches must hold instance maps, which an objective that finds objects needs.
    max_objects: maximum number of objects in a training image.
    targets: (label, instance) -> named target maps; None if the label is the only target.
    """

    outputs: frozenset[str]
    loss: Callable[..., tuple[Any, dict[str, Any]]]
    maps: Callable[..., Any]
    decode: Callable[..., "Decoded"]
    needs_instances: bool = False
    max_objects: int = 2**16 - 1
    targets: Callable[..., Any] | None = None

    @property
    def num_parts(self) -> int:
        """Number of parts of the loss that gradient accumulation keeps apart."""
        return len(getattr(self.loss, "parts", ())) or 1


class Decoded(NamedTuple):
    """Decoded maps, before a task makes its decision; float32 and int32 at the output size.

    logits: class logits [b, y, x, k]; a single channel in binary mode.
    instance: object number of each pixel, 1 .. n, or 0 for none [b, y, x]; None if there are no objects.
    confidence: confidence of objects 1 .. n, without the probability of their class [b, n].
    masks: pixels of each object, bool [b, n, y, x], in place of `instance` if objects may overlap.
    classes: class of each mask [b, n]; -1 for an empty slot.
    score: confidence of each mask [b, n].
    shown: other maps to draw in reports, by name [b, y, x, ...].
    """

    logits: Any
    instance: Any = None
    confidence: Any = None
    masks: Any = None
    classes: Any = None
    score: Any = None
    shown: Any = None


def require_things(spec: DatasetSpec) -> None:
    """Raises a UserError if objects cannot be learned: no class is a thing, or the mode is not multi-class."""
    if spec.mode == "multilabel":
        raise UserError("Objects need masks with one class per pixel: remove {class} from source.masks.")
    if spec.mode == "binary":
        raise UserError("Objects need one logit per class, unlike task.mode='binary': set task.mode='multiclass'.")
    if not spec.things:
        raise UserError(
            f"Objects need classes that are things, but none of {', '.join(spec.classes)} is one. Set source.things, "
            "or use task.name='semantic'."
        )
