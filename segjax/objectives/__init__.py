"""Objectives: the loss of a network, and how its outputs are decoded."""

from segjax import checks
from segjax.checks import choose
from segjax.objectives import centres, pixels
from segjax.objectives.maps import Maps
from segjax.objectives.objective import Decoded, LossOfMeans, Objective
from segjax.spec import DatasetSpec

__all__ = ["OBJECTIVES", "Decoded", "LossOfMeans", "Maps", "Objective", "create"]

OBJECTIVES = {"pixels": pixels.create, "centres": centres.create}


def create(name: str, spec: DatasetSpec, **settings) -> Objective:
    """Makes an objective for a data set.

    Args:
        name: a key of `OBJECTIVES`.
        spec: the data set, as the task reads it.
        **settings: keys of that objective.

    Returns:
        The objective.

    Raises:
        UserError: the objective or a key is unknown, or does not fit the data set.

    Example:
        >>> sorted(create("pixels", DatasetSpec(("background", "vessel"))).outputs)
        ['logits']
    """
    make = choose("objective.name", name, OBJECTIVES)
    checks.check_section("objective", make, settings)
    return make(spec, **settings)
