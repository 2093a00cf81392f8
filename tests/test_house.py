"""The architecture: imports go down only, and some names are called in one room only."""

import ast
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import jaxtyping
import pytest

from segjax import losses

PACKAGE = pathlib.Path(__file__).parent.parent / "segjax"

# Room -> rooms it may import, beside its own folder.
BASE = {"spec", "config"}
TOOLS = {"data", "nn", "losses", "metrics", "augment", "parallel", "pictures"}
ROOMS = {
    "spec": set(),
    "config": {"spec"},
    **dict.fromkeys(TOOLS, BASE),
    "models": BASE | {"nn"},
    "tasks": BASE | {"losses", "metrics", "nn"},
    "train": BASE | TOOLS | {"models", "tasks"},
    **dict.fromkeys(("cli", "infer", "report"), BASE | TOOLS | {"models", "tasks", "train", "infer", "report", "cli"}),
}


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
            assert parts[1] in ROOMS, f"{parts[1]} is not in the table of rooms"
            assert parts[1] == room or parts[1] in ROOMS[room], f"{room} imports {parts[1]}"


def imported_at_top(tree):
    return {name.split(".")[0] for node in tree.body for name in imported(ast.Module([node], []))
            if isinstance(node, ast.Import | ast.ImportFrom)}  # fmt: skip


@pytest.mark.parametrize(
    "call, room",
    [("jax.pmap(", "train/step.py"), ("flags.DEFINE_", "cli/"), ("import orbax", "train/checkpoint.py")],
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
        from segjax import infer, report
        from segjax.config import base
        from segjax.train.loop import train_and_evaluate
        config = base(source="shapes")
        config.source.count, config.source.size, config.data.crop = 8, (16, 16), (16, 16)
        config.model.widths, config.run.total, config.loading.loader = (4, 8), 1, "threads"
        workdir = tempfile.mkdtemp()
        report.write(workdir, train_and_evaluate(config, workdir), 1)
    """
    import textwrap

    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_configurations_load():
    """Every file of configs/ makes a configuration whose model, task and optimiser can be built."""
    import importlib.util

    from segjax import models, tasks
    from segjax.config import call
    from segjax.spec import DatasetSpec
    from segjax.train import optimizer

    for path in sorted((PACKAGE.parent / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
        names = config.source.get("classes") or [str(k) for k in range(8)]
        task = call(tasks.create, "task", config.task, DatasetSpec(tuple(names)))
        call(models.create, "model", config.model, spec=task.spec)
        call(optimizer.make, "optimizer", config.optimizer, 100)
        assert f"configs/{path.name}" in module.__doc__
