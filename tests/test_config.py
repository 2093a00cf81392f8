import inspect
import json

import pytest

from segjax import augment, config, models, parallel, tasks
from segjax.checks import UserError
from segjax.config import base, call, durations, from_dict, to_dict
from segjax.data import loader, pipeline, sources
from segjax.spec import DatasetSpec, Preprocess
from segjax.train import checkpoint, log, optimizer, state

FUNCTIONS = {
    "preprocess": Preprocess,
    "data": pipeline.train_batches,
    "loading": loader.Loading,
    "augment": augment.colour,
    "optimizer": optimizer.make,
    "run": durations,
    "eval": pipeline.eval_batches,
    "parallel": parallel.make_mesh,
    "init": state.start_from,
    "resume": checkpoint.compare,
    "checkpoint": checkpoint.Checkpoints,
    "log": log.Log,
}


def assert_mirrors(section, function, extra=()):
    """Every key is an argument with the same default, and every optional keyword argument is a key."""
    arguments = inspect.signature(function).parameters
    for key in set(section) - set(extra):
        default = arguments[key].default
        expected = section[key]
        if default is inspect.Parameter.empty:
            assert expected is None, key  # required: None in the configuration means not set yet
        else:
            assert expected == default and type(expected) is type(default), key
    # The caller supplies these, not the user.
    supplied = {"channels", "config", "enabled", "scores"}
    for key, argument in arguments.items():
        if argument.kind is argument.KEYWORD_ONLY and key not in supplied:
            assert key in section, f"{function} takes {key}, which config.py does not list"


@pytest.mark.parametrize("section", FUNCTIONS)
def test_sections_are_the_arguments_of_their_function(section):
    assert_mirrors(base()[section], FUNCTIONS[section])


@pytest.mark.parametrize("name", config.TASKS)
def test_tasks_are_the_arguments_of_their_function(name):
    assert config.TASKS.keys() == tasks.TASKS.keys() == config.BEST.keys()
    assert_mirrors(base(task=name).task, tasks.TASKS[name], extra=["name"])
    spec = DatasetSpec(("road", "car"), things=(1,))
    task = tasks.TASKS[name](spec)
    assert config.BEST[name] in task.summary(task.new_metric())


@pytest.mark.parametrize("name", config.SOURCES)
def test_sources_are_the_arguments_of_their_function(name):
    assert config.SOURCES.keys() == sources.SOURCES.keys()
    assert_mirrors(base(source=name).source, sources.SOURCES[name], extra=["name"])


@pytest.mark.parametrize("name", config.MODELS)
def test_models_are_the_attributes_of_their_module(name):
    assert config.MODELS.keys() == models.MODELS.keys()
    fields = models.MODELS[name].__dataclass_fields__
    section = dict(base(model=name).model)
    assert section.pop("name") == name
    assert section == {k: fields[k].default for k in section}
    left = {"channels", "axis_name", "parent", "name"}
    # What has one value only is no choice.
    left |= {"convention"} if len(models.MODELS[name].conventions) == 1 else set()
    assert set(fields) - set(section) == left


def test_mistyped_keys_name_the_nearest():
    with pytest.raises(AttributeError, match="crop"):
        base().data.corp = (3, 3)
    with pytest.raises(UserError, match=r"data.batchsize.*data.batch_size"):
        call(pipeline.train_batches, "data", {"batchsize": 3})
    with pytest.raises(UserError, match=r"task.dise.*task.dice"):
        tasks.create(DatasetSpec(("a", "b")), dise=1.0)
    with pytest.raises(UserError, match=r"source.name='foldr'.*'folder'"):
        base(source="foldr")
    with pytest.raises(UserError, match=r"source.conut.*source.count"):
        sources.create("train", name="shapes", conut=3)
    with pytest.raises(UserError, match=r"needs source.root"):
        sources.create("train", name="folder")


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"unit": "epochs", "total": 3, "warmup": 0.5, "eval_every": 1}, (38, 7, 13, 13)),
        ({"unit": "examples", "total": 100, "checkpoint_every": 9}, (25, 0, 0, 3)),
        ({"total": 25}, (25, 0, 0, 3)),
        ({"total": 7, "eval_every": 2, "checkpoint_every": 3}, (7, 0, 2, 3)),
    ],
)
def test_durations(settings, expected):
    assert durations(12.5, 4, **settings)[:4] == expected


def test_everything_is_due_at_the_end():
    run = durations(10, 2, total=25, eval_every=10)
    assert [i for i in range(1, 26) if run.due("eval", i)] == [10, 20, 25]
    assert [i for i in range(1, 26) if run.due("checkpoint", i)] == [10, 20, 25]
    with pytest.raises(UserError, match="must not be negative"):
        durations(10, 2, eval_every=-1)
    with pytest.raises(UserError, match="less than one step"):
        durations(10, 2, total=0)
    with pytest.raises(UserError, match=r"run.unit='epoch'.*'epochs'"):
        durations(10, 2, unit="epoch")


def test_configuration_survives_json():
    before = base(source="folder")
    before.source.ids = {"0": "membrane", "255": "interior"}
    before.source.classes = ("membrane", "interior")
    before.preprocess.resize = 0.5
    before.source.fractions = {"train": (0.0, 0.8)}
    after = from_dict(json.loads(json.dumps(to_dict(before))))
    assert to_dict(after) == to_dict(before)
    assert after.source.ids["255"] == "interior" and after.data.crop == (128, 128)
    with pytest.raises(UserError, match=r"model.wdths.*model.widths"):
        from_dict({**to_dict(before), "model": {"name": "unet", "wdths": 3}})
