"""What differs between kinds of segmentation: the trainer knows nothing else of them."""

import functools
import inspect

from segjax.checks import check_keys, choose
from segjax.spec import DatasetSpec
from segjax.tasks import objects, semantic
from segjax.tasks.task import Task

TASKS = {
    "semantic": semantic.create,
    "panoptic": functools.partial(objects.create, scores=objects.PANOPTIC),
    "instance": functools.partial(objects.create, scores=objects.INSTANCE, stuff_area=0, top_k=100),
}


def create(spec: DatasetSpec, *, name: str = "semantic", **kwargs) -> Task:
    """Makes a task for a data set.

    Args:
        spec: the data set, as its source describes it.
        name: kind of segmentation, a key of `TASKS`.
        **kwargs: arguments of that task's `create`.

    Returns:
        The task.

    Raises:
        UserError: no such task or argument, or one that does not fit the data set.

    Example:
        >>> create(DatasetSpec(("background", "vessel")), mode="binary").spec.channels
        1
    """
    make = choose("task.name", name, TASKS)
    check_keys(kwargs, inspect.signature(make).parameters, "task")
    return make(spec, **kwargs)
