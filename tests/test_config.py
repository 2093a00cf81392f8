import inspect
import json
import math
import pathlib
import shutil

import jax
import pytest
from absl import flags

from segjax import checks, models, objectives, tasks
from segjax import config as configuration
from segjax.checks import UserError
from segjax.cli import config_flags, main
from segjax.config import check, default_config, to_dict
from segjax.data import sources
from segjax.spec import DatasetSpec
from segjax.train import loop, workdir
from segjax.train.config_json import from_dict
from segjax.train.durations import durations
from segjax.train.loop import train_and_evaluate
from segjax.train.restore import evaluate_workdir, restore

pytestmark = pytest.mark.core

DATA = pathlib.Path(__file__).parent / "data"
FUNCTIONS = {
    **configuration.SECTIONS,
    **{f"{section}.{name}": each for section, table in configuration.CHOICES.items() for name, each in table.items()},
}
# Given by the caller and not by the configuration.
SUPPLIED = {"name", "channels", "reading", "config", "enabled", "parent", "axis_name", "spec", "objective", "frozen"}


@pytest.mark.parametrize("section", FUNCTIONS)
def test_every_setting_of_a_section_is_a_key_with_a_line_and_a_default_that_fits(section):
    function = FUNCTIONS[section]
    settings = checks.keys_of(function)
    assert all(setting.key.line for setting in settings.values())
    checks.check_section(section, function, {name: setting.default for name, setting in settings.items()})
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert name in settings or name in SUPPLIED, f"{section} takes {name}, which is no key"


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("model", models.MODELS)
def test_defaults_are_those_of_the_signatures(task, model):
    config = default_config(model=model, task=task)
    check(config)
    for section, function in configuration.section_functions(config).items():
        own = configuration.TASK_DEFAULTS[task].get(section, {})
        for name, setting in checks.keys_of(function).items():
            assert config[section][name] == own.get(name, setting.default)
    assert set(config.keys()) == {"seed", *configuration.SECTIONS, *configuration.CHOICES}


@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_best_checkpoint_is_chosen_by_a_figure_of_the_task(name):
    config = default_config(task=name)
    spec = DatasetSpec(("road", "car"), things=(1,))
    objective = objectives.create(spec=spec, **config.objective)
    task = tasks.create(spec=spec, objective=objective, **config.task)
    assert config.checkpoint.best in task.summary(task.new_metric())


def test_mistyped_keys_name_the_nearest():
    with pytest.raises(AttributeError, match="crop"):
        default_config().data.corp = (3, 3)
    with pytest.raises(UserError, match=r"source.name='foldr'.*'folder'"):
        default_config(source="foldr")
    with pytest.raises(UserError, match=r"objective.name='pixel'.*'pixels'"):
        default_config(objective="pixel")
    with pytest.raises(UserError, match=r"source.conut.*source.count"):
        sources.create("shapes", "train", conut=3)
    with pytest.raises(UserError, match=r"source.root must be set"):
        sources.create("folder", "train")


NONSENSE = {
    "source.count": [0, -3, 2.5],
    "source.size": [(0, 8), (8,), "large"],
    "model.widths": [(0, 8), (-8,), (8.5,), "wide"],
    "model.momentum": [-0.1, 1.5, math.nan],
    "model.dropout": [1.0, -0.5],
    "data.batch_size": [0, -8, 2.5],
    "data.crop": [(0, 8), (64,), (64, 64, 64), 64, (8.5, 8)],
    "data.scale": [(0.0, 1.0), (1.0,), (math.nan, 1.0), (1.0, math.inf)],
    "data.rotate": [math.nan, math.inf],
    "data.elastic": [-1.0, math.nan],
    "data.rare_class_fraction": [1.5, -0.1],
    "preprocess.resize": [0.0, -1.0, (8,), (8, 8, 8), math.nan, (0, 8)],
    "preprocess.std": [(0.0, 1.0, 1.0), (math.inf,) * 3],
    "loading.max_corrupt": [math.nan, -0.1, 2.0],
    "loading.workers": [-1],
    "augment.brightness": [math.nan, -0.5, 7.0],
    "optimizer.learning_rate": [-1e-3, math.inf, math.nan],
    "optimizer.b2": [1.5, 1.0, -0.1],
    "optimizer.weight_decay": [-1e-4, math.nan],
    "optimizer.clip": [-1.0],
    "optimizer.accumulate": [0, 1.5],
    "optimizer.eps": [-1e-8],
    "ema.decay": [3.0, 1.0, -0.5],
    "objective.label_smoothing": [1e30, -0.1, 1.0],
    "objective.dice_smooth": [-1.0],
    "objective.cross_entropy": [-1.0, math.nan],
    "run.total": [math.inf, 0, -5, math.nan],
    "run.warmup": [-1.0],
    "run.log_every": [0, 2.5],
    "eval.buckets": [0, -1],
    "eval.batch_size": [0],
    "parallel.space": [0],
    "parallel.devices": [-1],
    "parallel.transform": ["jti"],
    "seed": [-1, 1.5],
}


@pytest.mark.parametrize("key", NONSENSE)
def test_nonsense_is_refused_with_key_value_and_range_before_data_are_opened(key, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "open_source", lambda *_, **__: pytest.fail("the data were opened"))
    section, _, name = key.rpartition(".")
    for value in NONSENSE[key]:
        config = default_config()
        place = config[section] if section else config
        with place.ignore_type():
            place[name] = value
        with pytest.raises(UserError) as error:
            train_and_evaluate(config, str(tmp_path))
        setting = checks.keys_of(configuration.section_functions(config).get(section, configuration.TopLevel))[name]
        assert f"{key}={value!r}" in str(error.value)
        expected = [setting.key.range] if isinstance(setting.key.range, str) else setting.key.range
        assert all(each in str(error.value) for each in expected)


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
    with pytest.raises(UserError, match="less than one step"):
        durations(10, 2, total=0)


def test_configuration_survives_json():
    before = default_config(source="folder")
    before.source.ids = {"0": "membrane", "255": "interior"}
    before.source.classes = ("membrane", "interior")
    before.preprocess.resize = 0.5
    before.source.fractions = {"train": (0.0, 0.8)}
    after = from_dict(json.loads(json.dumps(to_dict(before))))
    assert to_dict(after) == to_dict(before)
    assert after.source.ids["255"] == "interior" and after.data.crop == (128, 128)
    with pytest.raises(UserError, match=r"model.wdths.*model.widths"):
        from_dict({**to_dict(before), "model": {"name": "unet", "wdths": 3}})


def test_config_prints_keys_values_ranges_and_lines(capsys):
    tiny = str(pathlib.Path(__file__).parent.parent / "configs" / "tiny.py")
    assert main(["config", f"--config={tiny}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    config = default_config()
    for section, function in configuration.section_functions(config).items():
        for name in checks.keys_of(function):
            assert f"{section}.{name}" in printed
    assert main(["config", f"--config={tiny}", "--config.optimizer.clip=0.5", "optimizer.clip"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    clip = checks.keys_of(configuration.SECTIONS["optimizer"])["clip"].key
    assert printed == f"key value range meaning optimizer.clip 0.5 {clip.range} {clip.line}"
    assert main(["config", f"--config={tiny}", "optimizer.clup"]) == 1
    assert "optimizer.clip" in capsys.readouterr().err


def older(name):
    return json.loads((DATA / name).read_text())


def test_keys_of_version_0_1_are_read():
    """What is learned was part of the task then, and the divisor of ids limited the objects of an image."""
    saved = older("panoptic_0_1.json")
    saved.pop("spec")
    config = from_dict(saved)
    assert config.objective.name == "centres" and config.objective.top_k == 20 and config.objective.centre == 200.0
    assert config.objective.max_objects == saved["task"]["divisor"] - 1
    assert to_dict(config.task) == {"name": "panoptic", "divisor": 1000, "stuff_area": 16}
    for key in ("sigma", "small_area", "small_weight", "nms_kernel", "threshold", "offset"):
        assert config.objective[key] == saved["task"][key]
    assert config.objective.ohem_fraction == saved["task"]["hardest"]


OLD_NAMES = [
    ("objective", "hardest", "ohem_fraction", 0.25),
    ("data", "rare", "rare_class_fraction", 0.5),
    ("data", "paste", "copy_paste_fraction", 0.5),
    ("model", "convention", "variant", "smp"),
    ("optimizer", "end", "end_factor", 0.125),
    ("source", "crowds", "allow_crowds", True),
    ("parallel", "mode", "transform", "pmap"),
]


def test_old_names_of_keys_are_read(tmp_path, caplog):
    """In a configuration file, on the command line and in a config.json, with a warning that names the new one."""
    lines = [f"    config.{section}.{old} = {value!r}" for section, old, _, value in OLD_NAMES]
    start = ["from segjax import default_config", "def get_config():",
             "    config = default_config('folder', 'deeplabv3plus')"]  # fmt: skip
    (tmp_path / "old.py").write_text("\n".join([*start, *lines, "    return config"]))
    (tmp_path / "new.py").write_text("\n".join([*start, "    return config"]))
    config = config_flags.read_config_file(str(tmp_path / "old.py"))
    values = flags.FlagValues()
    config_flags.define_config(values)
    given = [f"--config.{section}.{old}={value}" for section, old, _, value in OLD_NAMES]
    values(["x", *config_flags.load_config(values, [f"--config={tmp_path}/new.py", *given])])
    saved = to_dict(default_config("folder", "deeplabv3plus"))
    for section, old, new, value in OLD_NAMES:
        saved[section][old] = value
        del saved[section][new]
    for each in (config, values.config, from_dict(saved)):
        for section, old, new, value in OLD_NAMES:
            assert each[section][new] == each[section][old] == value and new in caplog.text
        assert each.task.mode == "multiclass"
    assert from_dict({**saved, "model": {"name": "unet", "fold": True}}).model.pair_columns


@pytest.mark.parametrize(
    ("key", "section"),
    [("task.class_weights", "objective"), ("task.dice", "objective"), ("source.window", "preprocess")],
)
def test_keys_that_moved_to_another_section_are_named(tmp_path, key, section):
    path = tmp_path / "old.py"
    text = "from segjax import default_config\ndef get_config():\n    config = default_config()\n"
    path.write_text(f"{text}    config.{key} = (1.0, 2.0)\n    return config")
    with pytest.raises(UserError, match=rf"old.py, line 4: .*{key.split('.')[1]}.* key of {section}\b"):
        config_flags.read_config_file(str(path))
    path.write_text(f"{text}    return config")
    with pytest.raises(UserError, match=rf"{key}.* key of {section}\b"):
        config_flags.load_config(flags.FlagValues(), [f"--config={path}", f"--config.{key}=1"])


def test_a_workdir_of_version_0_1_is_resumed_and_scored_as_then(tmp_path):
    """The checkpoint restores, its score is the one that was saved beside it, and the run goes on."""
    shutil.unpack_archive(DATA / "workdir_0_1.zip", tmp_path)
    saved = json.loads((tmp_path / "checkpoints" / "2" / "metrics" / "metrics").read_text())
    config, spec = workdir.read_config(str(tmp_path))
    config.parallel.devices = 1
    again = evaluate_workdir(str(tmp_path), config=config)
    assert again["step"] == 2 and math.isclose(again["mIoU"], saved["mIoU"], rel_tol=1e-6)
    assert restore(config, spec, str(tmp_path))[2] == 2
    config.run.total = 3.0
    assert train_and_evaluate(config, str(tmp_path))["step"] in (2, 3)
    assert workdir.compare(str(tmp_path), config, spec) == []


def test_the_state_of_an_older_panoptic_run_has_todays_shapes(tmp_path):
    """Its configuration builds a model and an optimiser whose state has the leaves that were saved."""
    saved = older("panoptic_0_1.json")
    shapes = json.loads((DATA / "panoptic_0_1_shapes.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config, spec = workdir.read_config(str(tmp_path))
    from segjax.train import components, optimizer, state

    parts = components.build_components(config, spec)
    tx, _ = optimizer.make_optimizer(1, **config.optimizer)
    abstract = state.abstract_state(parts.model, tx, (1, 64, 64, 3), True)
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    found = {jax.tree_util.keystr(path, simple=True, separator="."): list(leaf.shape) for path, leaf in leaves}
    assert found == shapes
