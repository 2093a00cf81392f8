"""Tasks: predictions and metrics of semantic, panoptic and instance segmentation."""

from segjax import checks
from segjax.checks import choose
from segjax.objectives import Objective
from segjax.spec import DatasetSpec
from segjax.tasks import instance, panoptic, semantic
from segjax.tasks.task import Task

__all__ = ["TASKS", "Task", "create"]

TASKS = {"semantic": semantic.create, "panoptic": panoptic.create, "instance": instance.create}


def create(name: str, spec: DatasetSpec, objective: Objective, **settings) -> Task:
    """Makes a task for a data set.

    Args:
        name: kind of segmentation, a key of `TASKS`.
        spec: the data set in the task's mode, see `DatasetSpec.in_mode`.
        objective: the objective that decodes the network's outputs.
        **settings: keys of that task.

    Returns:
        The task.

    Raises:
        UserError: the task or a key is unknown, or does not fit the data set.

    Example:
        >>> from segjax import objectives
        >>> spec = DatasetSpec(("road", "car"), things=(1,))
        >>> create("panoptic", spec, objectives.create("centres", spec)).divisor
        1000
    """
    make = choose("task.name", name, TASKS)
    checks.check_section("task", make, settings)
    return make(spec, objective, **settings)
