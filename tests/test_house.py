"""The architecture: imports go down only, and some names are called in one room only."""

import ast
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import segjax
from segjax import losses
from segjax.cli.config_flags import read_config_file
from segjax.config import check
from segjax.spec import DatasetSpec, channel_names
from segjax.train import components, optimizer

PACKAGE = pathlib.Path(__file__).parent.parent / "segjax"

# Room -> level; a room imports rooms of lower levels, its own folder, and other rooms of level 1.
LEVELS = (
    {"checks", "spec"},
    {"data", "nn", "losses", "metrics", "augment", "parallel", "spatial", "rle"},
    {"models", "objectives", "weights"},
    {"tasks"},
    {"train", "config"},
    {"infer"},
    {"profile", "report"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
TASKS_MAY = LEVELS[0] | {"objectives", "losses", "metrics", "nn", "spatial"}
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
            assert room == "data" and "tensorflow" not in imported_at_top(tree)
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


@pytest.mark.slow
def test_everything_but_the_data_works_without_tensorflow():
    """Models, losses, metrics, steps and a whole run on threads import no TensorFlow."""
    code = """
        import sys, tempfile
        for name in ("tensorflow", "tensorflow_datasets", "array_record", "nilearn", "nibabel"):
            sys.modules[name] = None  # an import raises ImportError
        import functools
        from segjax import infer, report
        from segjax.config import default_config
        from segjax.train.loop import train_and_evaluate
        config = default_config(source="shapes")
        config.source.count, config.source.size, config.data.crop = 8, (16, 16), (16, 16)
        config.model.widths, config.run.total, config.loading.loader = (4, 8), 1, "threads"
        workdir = tempfile.mkdtemp()
        train_and_evaluate(config, workdir, report=functools.partial(report.write, workdir, pictures_of=1))
        infer.load(workdir)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


CONFIGS = sorted((PACKAGE.parent / "configs").glob("*.py"))


def load(name):
    return read_config_file(str(PACKAGE.parent / "configs" / f"{name}.py"))


def test_configurations_load():
    """Every file of configs/ makes a configuration whose model, task and optimiser can be built."""
    for path in CONFIGS:
        config, text = load(path.stem), ast.get_docstring(ast.parse(path.read_text()))
        names = config.source.get("classes") or 8
        names = [str(k) for k in range(names)] if isinstance(names, int) else names
        check(config)
        spec = DatasetSpec(tuple(names), things=(1,), image_channels=channel_names(len(config.preprocess.mean)))
        parts = components.build_components(config, spec)
        assert set(parts.task.objective.outputs) <= set(parts.model.outputs)
        optimizer.make_optimizer(100, **config.optimizer)
        assert f"configs/{path.name}" in text
        assert re.search(r"mIoU|Dice|AP|PQ|[Nn]ot yet measured", text), f"{path.name} states no score"


@pytest.mark.parametrize(
    ("name", "train", "test", "objects"), [("nuclei_instance", 664, 65, 4152), ("pennfudan_instance", 120, 50, 116)]
)
def test_configurations_find_their_objects(name, train, test, objects, test_data, monkeypatch):
    """Those of instance maps read the real thing: every object of the test split."""
    monkeypatch.setenv("SEGJAX_DATA", test_data)
    config = load(name)
    assert len(components.open_source(config, "train")) == train
    source = components.open_source(config, "test")
    assert len(source) == test and sum(int(source.read(i)["instance"].max()) for i in range(test)) == objects


@pytest.mark.parametrize("name, size", [("camvid_unet", (360, 480)), ("isbi_unet", (512, 512))])
def test_configurations_fit_their_data(name, size, test_data, monkeypatch):
    """The configurations of sets that cannot be shipped read the real thing."""
    monkeypatch.setenv("SEGJAX_DATA", test_data)
    config = load(name)
    for split, count in {"camvid_unet": {"train": 367, "test": 233}, "isbi_unet": {"train": 24, "test": 6}}[
        name
    ].items():
        source = components.open_source(config, split)
        label = source.read(0)["label"]
        assert len(source) == count and label.shape == source.size(0) == size
        assert set(np.unique(label)) <= {*range(len(source.spec.classes)), 255} and (label != 255).mean() > 0.5


def test_the_public_face():
    """What a user finds by <TAB>, with one import and nothing else imported before."""
    code = """
        import segjax
        assert set(segjax.__all__) <= set(dir(segjax)) and {"models", "losses", "Predictor"} < set(segjax.__all__)
        segjax.models.create, segjax.losses.dice, segjax.metrics.mean_iou, segjax.data.sources.create
        segjax.nn.backbones.create, segjax.profile.aot.STEPS, segjax.train_and_evaluate, segjax.default_config
        for name in segjax.__all__:
            getattr(segjax, name)
        assert segjax.infer.load == segjax.Predictor.from_workdir and segjax.config.base is segjax.default_config
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)
    assert segjax.__version__ == importlib.metadata.version("segjax")


@pytest.mark.parametrize(
    "room", sorted(path.parent.relative_to(PACKAGE) for path in PACKAGE.glob("*/**/*.pyi")), ids=str
)
def test_a_room_that_imports_on_demand_lists_all_of_it(room):
    modules = {path.stem for path in (PACKAGE / room).glob("[!_]*.py")}
    modules |= {path.parent.name for path in (PACKAGE / room).glob("*/__init__.py")}
    stub = ast.parse((PACKAGE / room / "__init__.pyi").read_text())
    assert {alias.name for node in stub.body for alias in node.names} == modules


def test_what_is_imported_is_declared():
    declared = {
        re.match(r"[\w-]+", line)[0].replace("_", "-").lower() for line in importlib.metadata.requires("segjax")
    }
    packages = importlib.metadata.packages_distributions()
    for path in files():
        for name in {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}:
            # Whoever has .pth files has PyTorch; segjax needs it for nothing else.
            if name in sys.stdlib_module_names or name in ("segjax", "torch"):
                continue
            distributions = {each.replace("_", "-").lower() for each in packages.get(name, [name])}
            assert distributions & declared, f"{path} imports {name}"


def test_a_wheel_has_what_is_not_python(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=PACKAGE.parent, check=True, timeout=120, capture_output=True)
    for pattern in ("py.typed", "**/*.pyi", "**/*.html"):
        wanted = {path.relative_to(PACKAGE) for path in PACKAGE.glob(pattern)}
        assert wanted and wanted == {
            path.relative_to(tmp_path / "segjax") for path in (tmp_path / "segjax").glob(pattern)
        }


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
    first, *others = (load(name).to_dict() for name in names)
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
