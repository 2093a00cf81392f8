"""The architecture: imports go down only, and some names are called in one room only."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import types

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from segjax import losses, models
from segjax.config import check
from segjax.data import pipeline
from segjax.data.ids import make_spec
from segjax.data.loader import Loading
from segjax.data.sources.arrays import arrays
from segjax.models.__main__ import table
from segjax.spec import DatasetSpec, Preprocess, channel_names
from segjax.train import components, optimizer

PACKAGE = pathlib.Path(__file__).parent.parent / "segjax"

# Room -> level; a room imports rooms of lower levels, its own folder, and other rooms of level 1.
LEVELS = (
    {"checks", "spec"},
    {"data", "nn", "losses", "metrics", "augment", "parallel", "space", "rle", "chips", "hlo"},
    {"models", "objectives", "weights"},
    {"tasks"},
    {"train", "config"},
    {"infer"},
    {"report"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
TASKS_MAY = LEVELS[0] | {"objectives", "losses", "metrics", "nn", "space"}
CONFIG_USERS = {"train/loop.py", "train/config_json.py", "train/workdir.py"}  # within level 4


def files():
    return sorted(PACKAGE.rglob("*.py"))


def imported(tree):
    """Dotted names of the modules that a file imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_annotations_are_checked():
    """The import hook of conftest.py is at work: a wrong shape or type is refused."""
    with pytest.raises(jaxtyping.TypeCheckError):
        losses.split_ignore(jnp.zeros((2, 2), jnp.uint8), ignore="255")
    with pytest.raises(jaxtyping.TypeCheckError):
        losses.cross_entropy(jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2, 3), jnp.int32))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    tree = ast.parse(path.read_text())
    for name in imported(tree):
        parts = name.split(".")
        if parts[0] == "tensorflow":
            assert room == "data" and not any(name in imported_at_top(tree) for name in ("tensorflow",))
        if parts[0] == "segjax" and len(parts) > 1 and room not in ("__init__", "__main__"):
            assert parts[1] in LEVEL, f"{parts[1]} is not in the table of rooms"
            below = LEVEL[parts[1]] < LEVEL[room] or LEVEL[parts[1]] == LEVEL[room] in (0, 1)
            assert parts[1] == room or below or room == "config" or parts[1] == "config", f"{room} imports {parts[1]}"
            assert room != "tasks" or parts[1] == room or parts[1] in TASKS_MAY, f"{room} imports {parts[1]}"
            if parts[1] == "config" and LEVEL[room] <= 4:
                assert str(path.relative_to(PACKAGE)) in CONFIG_USERS, f"{path} reads the configuration"


def imported_at_top(tree):
    return {name.split(".")[0] for node in tree.body for name in imported(ast.Module([node], []))
            if isinstance(node, ast.Import | ast.ImportFrom)}  # fmt: skip


@pytest.mark.parametrize(
    "call, room",
    [("jax.pmap(", "train/compilation.py"), ("flags.DEFINE_", "cli/"), ("import orbax", "train/checkpoint.py")],
)
def test_called_in_one_room_only(call, room):
    users = [str(p.relative_to(PACKAGE)) for p in files() if call in p.read_text()]
    assert users and all(user.startswith(room) for user in users)


def test_everything_but_the_data_works_without_tensorflow():
    """Models, losses, metrics, steps and a whole run on threads import no TensorFlow."""
    code = """
        import sys, tempfile
        for name in ("tensorflow", "tensorflow_datasets", "array_record", "nilearn", "nibabel"):
            sys.modules[name] = None  # an import raises ImportError
        import functools
        from segjax import infer, report
        from segjax.config import base
        from segjax.train.loop import train_and_evaluate
        config = base(source="shapes")
        config.source.count, config.source.size, config.data.crop = 8, (16, 16), (16, 16)
        config.model.widths, config.run.total, config.loading.loader = (4, 8), 1, "threads"
        workdir = tempfile.mkdtemp()
        train_and_evaluate(config, workdir, report=functools.partial(report.write, workdir, pictures_of=1))
        infer.load(workdir)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


CONFIGS = sorted((PACKAGE.parent / "configs").glob("*.py"))


def load(path):
    module = types.ModuleType(path.stem)
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def test_configurations_load():
    """Every file of configs/ makes a configuration whose model, task and optimiser can be built."""
    for path in CONFIGS:
        module = load(path)
        config = module.get_config()
        names = config.source.get("classes") or 8
        names = [str(k) for k in range(names)] if isinstance(names, int) else names
        check(config)
        spec = DatasetSpec(tuple(names), things=(1,), image_channels=channel_names(len(config.preprocess.mean)))
        parts = components.build_components(config, spec)
        assert set(parts.task.objective.outputs) <= set(parts.model.outputs)
        optimizer.make(100, **config.optimizer)
        assert f"configs/{path.name}" in module.__doc__
        assert re.search(r"mIoU|Dice|AP|PQ|[Nn]ot yet measured", module.__doc__), f"{path.name} states no score"


@pytest.mark.parametrize(
    ("name", "train", "test", "objects"), [("nuclei_instance", 664, 65, 4152), ("pennfudan_instance", 120, 50, 116)]
)
def test_configurations_find_their_objects(name, train, test, objects, test_data, monkeypatch):
    """Those of instance maps read the real thing: every object of the test split."""
    monkeypatch.setenv("SEGJAX_DATA", test_data)
    config = load(PACKAGE.parent / "configs" / f"{name}.py").get_config()
    assert len(components.open_source(config, "train")) == train
    source = components.open_source(config, "test")
    assert len(source) == test and sum(int(source.read(i)["instance"].max()) for i in range(test)) == objects


@pytest.mark.parametrize("name, size", [("camvid_unet", (360, 480)), ("isbi_unet", (512, 512))])
def test_configurations_fit_their_data(name, size, test_data, monkeypatch):
    """The configurations of sets that cannot be shipped read the real thing."""
    monkeypatch.setenv("SEGJAX_DATA", test_data)
    config = load(PACKAGE.parent / "configs" / f"{name}.py").get_config()
    for split, count in {"camvid_unet": {"train": 367, "test": 233}, "isbi_unet": {"train": 24, "test": 6}}[
        name
    ].items():
        source = components.open_source(config, split)
        label = source.read(0)["label"]
        assert len(source) == count and label.shape == source.size(0) == size
        assert set(np.unique(label)) <= {*range(len(source.spec.classes)), 255} and (label != 255).mean() > 0.5


def test_readme_keeps_its_word():
    """Its pictures and files exist, its figures are filled in, and its code runs."""
    root = PACKAGE.parent
    text = (root / "README.md").read_text()
    for target in re.findall(r"\]\((?!http)([^)]*)\)", text):
        assert (root / target).exists(), target
    assert not re.search(r"[A-Z]+_(SCORE|TIME)", text)
    assert {path.stem for path in CONFIGS} - {"tiny"} <= set(re.findall(r"`(\w+)`", text))
    printed, wanted = (re.findall(r"^(\| `\w+` .* M \|) ([\d.]+) (\| \d+ \|)$", t, re.M) for t in (text, table()))
    assert len(printed) == len(wanted) > 9
    for (name, flops, stride), (other, counted, one) in zip(printed, wanted, strict=True):
        again = "print the table of models anew: python -m segjax.models"
        # XLA's count is not the same in all its versions.
        assert (name, stride) == (other, one) and abs(float(flops) / float(counted) - 1) < 0.01, again
    config, loop_code, loading, objects, scoring = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(objects, names := {})
    made = names["get_config"]()
    parts = components.build_components(made, make_spec(made.source.classes, things=made.source.things))
    assert "centre" in parts.model.outputs and parts.task.spec.things[0] == 11
    exec(scoring, names := {})
    assert names["ours"].shape == (64, 64) and not names["ours"].any()
    settings = re.search(r"models.create\((.*?)\)\n", loading, re.DOTALL)[1]
    # Other models go through the same loop.
    micro = '"deeplabv3plus", DatasetSpec(("background", "vessel")), backbone="resnet_micro", width=8, norm="group"'
    other_loop = re.sub(r'"unet", .*(?=\)\nvariables)', micro, loop_code)
    names = {}
    exec(config, names)
    source = arrays(
        "train",
        data={"train": {"image": np.zeros((2, 48, 64, 3), np.uint8), "label": np.zeros((2, 48, 64), np.uint8)}},
        classes=names["get_config"]().source.classes,
    )
    made = names["get_config"]()
    pipeline.train_batches(source, Preprocess(**made.preprocess), Loading(), **made.data)
    assert loop_code != other_loop
    for code in (loop_code, other_loop):
        names = {}
        exec(code, names)
        assert names["loss"] > 0 and any(jnp.any(g != 0) for g in jax.tree.leaves(names["grads"]))
    assert eval(f"models.create({settings})", {"models": models, "spec": DatasetSpec(("a", "b"))}).aux == "c3"


def test_rooms_need_no_import_of_their_own():
    code = "import segjax; segjax.models.create, segjax.losses.dice, segjax.metrics.confusion_matrix, segjax.train.loop"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("names", "sections"),
    [
        (("camvid_unet", "camvid_fcn", "camvid_deeplabv3plus"), "splits source preprocess data augment task eval ema"),
        (("cityscapes_deeplabv3plus", "cityscapes_lraspp"), "splits source preprocess"),
        (("pet_unet", "pet_deeplabv3plus"), "splits source data augment task"),
    ],
)
def test_what_is_compared_is_comparable(names, sections):
    """Configurations of one data set, whose docstrings compare them, have the same data, augmentation and loss."""
    first, *others = (load(PACKAGE.parent / "configs" / f"{name}.py").get_config().to_dict() for name in names)
    for other in others:
        for section in sections.split():
            assert first[section] == other[section], section


@pytest.mark.slow
def test_quickstart_reaches_its_score(tmp_path):
    """The README's first command as a user runs it, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", "segjax", "train", "--config", "configs/brain_unet.py", "--workdir", tmp_path]
    done = subprocess.run(
        command, cwd=PACKAGE.parent, env=environment, capture_output=True, text=True, timeout=900, check=True
    )
    dice = json.loads(done.stdout.splitlines()[-1])["dice_per_class"]
    assert (dice["grey_matter"] + dice["white_matter"]) / 2 > 0.9
    assert len(list((tmp_path / "report").glob("*.png"))) == 9
