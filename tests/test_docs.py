"""Links and tables of the documentation are right, and its code runs."""

import pathlib
import re

import jax
import jax.numpy as jnp
import keys_page
import numpy as np
import pytest
from peers.models import table

import segjax
from segjax import weights
from segjax.data.ids import make_spec
from segjax.data.sources import create
from segjax.train import components

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(name):
    """Blocks of Python of a page, with the line that each begins on."""
    text = (ROOT / name).read_text()
    return [
        (text[: found.start()].count("\n") + 1, found[1]) for found in re.finditer(r"```python\n(.*?)```", text, re.S)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http|#)([^)#]*)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_readme_is_a_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_keys_page_is_current():
    again = "python tests/keys_page.py > docs/keys.md"
    assert (ROOT / "docs" / "keys.md").read_text() == keys_page.page(), again


@pytest.mark.slow
def test_table_of_models_is_current():
    text = (ROOT / "docs" / "recipes_and_models.md").read_text()
    printed, wanted = (re.findall(r"^(\| `\w+` .* M \|) ([\d.]+) (\| \d+ \|)$", t, re.M) for t in (text, table()))
    assert len(printed) == len(wanted) > 9
    for (name, flops, stride), (other, counted, one) in zip(printed, wanted, strict=True):
        # XLA's count is not the same in all its versions.
        assert (name, stride) == (other, one) and abs(float(flops) / float(counted) - 1) < 0.01


def test_every_recipe_is_listed():
    text = (ROOT / "docs" / "recipes_and_models.md").read_text()
    names = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"tiny"}
    assert names <= set(re.findall(r"`(\w+)`", text))


@pytest.mark.parametrize(
    "page, line", [(page.name, line) for page in PAGES[:1] for line, _ in blocks(page.name)]
    + [(f"docs/{page.name}", line) for page in PAGES[3:] for line, _ in blocks(f"docs/{page.name}")],
)  # fmt: skip
def test_code_runs(page, line):
    code = dict(blocks(page))[line]
    names = run(code, f"{page}:{line}")
    if "grads" in names:
        assert names["loss"] > 0 and any(jnp.any(g != 0) for g in jax.tree.leaves(names["grads"]))
    if "get_config" in names:
        config = names["get_config"]()
        segjax.config.check(config)
        classes, things = config.source.get("classes") or ("one",), config.source.get("things") or ()
        if config.source.name in ("coco_instances", "labelme", "yolo"):  # all their classes are things
            classes, things = ("background", *classes), classes
        spec = make_spec(classes, things=things)
        parts = components.build_components(config, spec)
        assert set(parts.task.objective.outputs) <= set(parts.model.outputs)
        if not spec.things:
            data = {"image": np.zeros((2, 48, 64, 3), np.uint8), "label": np.zeros((2, 48, 64), np.uint8)}
            source = create("arrays", "train", data={"train": data}, classes=config.source.classes)
            next(components.train_batches(config, parts, source).batches(0, 1))
    if "ours" in names:
        assert names["ours"].shape == (64, 64) and not names["ours"].any()


def run(code, name="docs"):
    exec(compile(code, name, "exec"), names := {})
    return names


@pytest.mark.slow
def test_the_readmes_loop_takes_any_model():
    ((_, code),) = ((line, code) for line, code in blocks("README.md") if "value_and_grad" in code)
    other = code.replace('"unet", classes=2, widths=(16, 32, 64)',
                         '"deeplabv3plus", classes=2, backbone="resnet_micro", width=8, norm="group"')  # fmt: skip
    assert other != code
    names = run(other)
    assert names["loss"] > 0 and any(jnp.any(g != 0) for g in jax.tree.leaves(names["grads"]))


@pytest.mark.slow
def test_the_example_of_weights_names_a_model(monkeypatch):
    """Up to the file, which must be downloaded."""
    text = (ROOT / "docs" / "recipes_and_models.md").read_text()
    (code,) = re.findall(r"```py\n(.*?)```", text, re.S)
    monkeypatch.setattr(weights, "load", lambda path, variables, layout, model: (variables, f"{path} {model.aux}"))
    small = code.replace("(1, 512, 512, 3)", "(1, 64, 64, 3)")
    assert run(small)["report"] == "deeplabv3_mobilenet_v3_large.pth c3" and small != code


def test_what_is_added_trains_and_is_scored(tmp_path):
    """The model, the source, the objective and the metric of CONTRIBUTING.md, in one run."""
    own, names = {}, {}
    for _, code in blocks("CONTRIBUTING.md"):
        names = run(code)
        own |= names.get("own", {})
    assert set(own) == {"model", "sources", "objective"}
    config = segjax.default_config(source="noise")
    config.data.batch_size = config.eval.batch_size = 4
    config.data.crop, config.run.total, config.log.tensorboard = (32, 32), 3, False
    summary = segjax.train_and_evaluate(config, str(tmp_path), **own)
    assert list(summary["iou_per_class"]) == ["dark", "bright"]
    predictor = segjax.Predictor.from_workdir(str(tmp_path), model=own["model"], objective=own["objective"])
    assert names["score"](own["sources"]["test"], predictor)["accuracy"] == summary["pixel_accuracy"]
