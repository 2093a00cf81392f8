"""Parts of a run from a few settings, for tests."""

import pytest

from segjax import checks, objectives, tasks
from segjax.spec import DatasetSpec


def make_task(spec, name="semantic", **settings):
    """A task with its usual objective; each setting goes where its key is."""
    own = {key: settings.pop(key) for key in list(settings) if key in checks.keys_of(tasks.TASKS[name])}
    spec = spec.in_mode(own.get("mode", "multiclass")) if name == "semantic" else spec
    objective = objectives.create("pixels" if name == "semantic" else "centres", spec, **settings)
    return tasks.create(name, spec, objective, **own)


def spec_of(classes):
    """So many classes, of which only the number matters."""
    return DatasetSpec(tuple(map(str, range(classes))))


def quick(*kept, of):
    """Cases of which only some are in the quick set."""
    return [case if case in kept else pytest.param(case, marks=pytest.mark.slow) for case in of]
