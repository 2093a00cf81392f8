"""Parts of a run from a few settings, for tests."""

from segjax import checks, objectives, tasks


def make_task(spec, name="semantic", **settings):
    """A task with its usual objective; each setting goes where its key is."""
    own = {key: settings.pop(key) for key in list(settings) if key in checks.keys_of(tasks.TASKS[name])}
    spec = spec.in_mode(own.get("mode", "multiclass")) if name == "semantic" else spec
    objective = objectives.create("pixels" if name == "semantic" else "centres", spec, **settings)
    return tasks.create(name, spec, objective, **own)
