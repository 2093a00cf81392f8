import json
import logging
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segjax.checks import UserError
from segjax.cli import VERBS, main
from segjax.cli.config_flags import read_config_file
from segjax.data.sources import SOURCES
from segjax.train.workdir import read_config

ROOT = pathlib.Path(__file__).parent.parent
TINY = str(ROOT / "configs" / "tiny.py")
SMALL = [
    *("--config.source.count=8", "--config.data.crop=(16,16)", "--config.model.widths=(4,8)"),
    *("--config.run.total=3", "--config.loading.loader=threads", "--noconfig.log.tensorboard"),
    *("--config.optimizer.learning_rate", "0.002", "--config.preprocess.resize=0.5"),
]


@pytest.fixture
def segjax(capsys):
    """Runs a command: exit code, the object on the last line of stdout (and nothing else there), stderr."""

    def command(*argv):
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        if code and not out:
            return code, None, err
        (line,) = out.splitlines()
        return code, json.loads(line, parse_constant=pytest.fail), err

    return command


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--config", TINY, "--workdir", str(path), "--pictures=2", *SMALL]) == 0
    return path


def complaint(err):
    """The one paragraph that is on stderr."""
    assert err.startswith("segjax: ") and err.endswith("\n") and "Traceback" not in err
    assert "\n\n" not in err
    return err.removeprefix("segjax: ").strip()


def test_train_takes_overrides_of_every_kind(workdir):
    config, _ = read_config(str(workdir))
    assert config.data.crop == (16, 16) and config.model.widths == (4, 8)
    assert config.run.total == 3 and config.optimizer.learning_rate == 0.002
    assert config.log.tensorboard is False and config.preprocess.resize == 0.5
    assert {path.name for path in workdir.iterdir()} == {"checkpoints", "config.json", "metrics.jsonl", "report"}
    assert len(list((workdir / "report").glob("*.png"))) == 3


def test_train_again_and_evaluate_give_the_same_figures(workdir, segjax):
    code, trained, err = segjax("train", "--config", TINY, "--workdir", workdir, "--pictures=0", *SMALL)
    assert code == 0 and "resumed at step 3" in err and "Class " in err
    code, evaluated, err = segjax("evaluate", "--workdir", workdir)
    assert code == 0 and evaluated["split"] == "test" and evaluated["images"] == 8
    same = set(trained) - {"seconds"}
    assert {"mIoU", "pixel_accuracy", "mean_dice", "iou_per_class", "dice_per_class", "step"} <= same
    assert {key: evaluated[key] for key in same} == {key: trained[key] for key in same}
    rows = {words[0]: words[1:] for line in err.splitlines() if len(words := line.split()) == 5}
    assert rows["Class"] == ["IoU", "Dice", "Precision", "Recall"]
    for name, value in evaluated["iou_per_class"].items():
        assert rows[name][0] == f"{value:.4f}"


def test_evaluate_another_split_and_configuration(workdir, segjax):
    code, on_train, _ = segjax("evaluate", "--workdir", workdir, "--split=train")
    assert code == 0 and on_train["split"] == "train"
    _, whole, _ = segjax("evaluate", "--workdir", workdir)
    assert on_train["mIoU"] != whole["mIoU"]
    given = ["--config", TINY, *SMALL, "--config.source.count=4"]
    code, fewer, _ = segjax("evaluate", "--workdir", workdir, *given)
    assert code == 0 and fewer["images"] == 4
    code, _, err = segjax("evaluate", "--workdir", workdir, "--split=tset")
    assert code == 1 and "has the splits train, validation, test, not 'tset'" in complaint(err)


def test_keys_that_may_be_left_out_take_any_value(tmp_path, segjax):
    """A default or a file's value of None, a number or a tuple does not fix the type."""
    config = tmp_path / "c.py"
    config.write_text(
        "from segjax.config import default_config\n"
        "def get_config(resize='None'):\n"
        "    config = default_config('arrays')\n"
        "    config.preprocess.resize = eval(resize)\n"
        "    config.source.classes = ('a', 'b')\n"
        "    return config\n"
    )
    from absl import flags

    from segjax.cli import config_flags

    def parsed(argument, *argv):
        values = flags.FlagValues()
        config_flags.define_config(values)
        values(["x", *config_flags.load_config(values, [f"--config={config}:{argument}", *argv])])
        return values.config

    for argument in ("None", "0.5", "(32, 32)"):
        for text, value in [("None", None), ("0.25", 0.25), ("(64, 48)", (64, 48))]:
            assert parsed(argument, f"--config.preprocess.resize={text}").preprocess.resize == value
        assert parsed(argument).preprocess.resize == eval(argument)
    found = parsed("None", "--config.source.data=~/x/a.npz", "--config.source.classes=names.txt")
    assert found.source.data == "~/x/a.npz" and found.source.classes == "names.txt"
    found = parsed("None", "--config.source.classes=('x', 'y', 'z')", "--config.data.flip_horizontal=false")
    assert found.source.classes == ("x", "y", "z") and found.data.flip_horizontal is False
    assert parsed("None", "--config.data.scale=(1,2)").data.scale == (1, 2)


CONFIG = """
from segjax.config import default_config

def get_config(what="nothing"):
    config = default_config("shapes" if what != "source" else "shpes")
    if what == "key":
        config.data.corp = (1, 2)
    if what == "section":
        config.dta.crop = (1, 2)
    if what == "far":
        config.data.zzzz = 1
    if what == "type":
        config.data.crop = 3
    if what == "bug":
        1 / 0
    if what == "dict":
        return {}
    return config
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of configuration files with all sorts of faults."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("c.py").write_text(CONFIG)
    pathlib.Path("syntax.py").write_text("x = 1\ndef get_config(:\n")
    pathlib.Path("empty.py").write_text("")
    pathlib.Path("missing.py").write_text("import not_a_module\n")
    pathlib.Path("file").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    "config, message",
    [
        ("nowhere.py", "There is no configuration file 'nowhere.py'."),
        ("c.py:key", "c.py, line 7: there is no configuration key 'corp'. Did you mean 'crop'?"),
        ("c.py:section", "c.py, line 9: there is no configuration key 'dta'. Did you mean 'data'?"),
        ("c.py:far", "c.py, line 11: there is no configuration key 'zzzz'."),
        ("c.py:type", "c.py, line 13: crop = 3 must be of type tuple."),
        ("c.py:bug", "c.py, line 15: ZeroDivisionError: division by zero"),
        ("c.py:dict", "c.py: get_config() must return a config from segjax.default_config(), not {}."),
        (
            "c.py:source",
            f"source.name='shpes' is not one of {', '.join(SOURCES)}. Did you mean 'shapes'?",
        ),
        ("syntax.py", "syntax.py, line 2: SyntaxError: invalid syntax"),
        ("empty.py", "empty.py defines no get_config()."),
        ("missing.py", "missing.py, line 1: ModuleNotFoundError: No module named 'not_a_module'"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "inspect"])
def test_faults_of_a_configuration_file(here, segjax, verb, config, message):
    code, _, err = segjax(verb, "--config", config, *(["--workdir=w"] if verb == "train" else []))
    assert code == 1 and complaint(err) == message
    assert not (here / "w").exists()


def test_a_configuration_file_imports_its_neighbours(here):
    """Those of its own folder, whatever the working directory; a fault in one is told by its file and line."""
    path = list(sys.path)
    for folder in ("a", "b.c"):
        (here / folder / "datasets").mkdir(parents=True)
        (here / folder / "mine.py").write_text(
            "from segjax.config import default_config\n"
            "from .datasets import noise\n"
            "def get_config():\n"
            "    config = default_config(source='noise')\n"
            "    noise.apply(config)\n"
            "    return config\n"
        )
    (here / "a/datasets/noise.py").write_text("def apply(config):\n    config.source.classes = 3\n")
    (here / "b.c/datasets/noise.py").write_text("def apply(config):\n    config.source.clases = 4\n")
    (here / "a/derived.py").write_text("from . import mine\nget_config = mine.get_config\n")
    assert read_config_file("a/mine.py").source.classes == read_config_file("a/derived.py").source.classes == 3
    fault = re.escape(str(here / "b.c/datasets/noise.py")) + ", line 2: there is no configuration key 'clases'"
    with pytest.raises(UserError, match=fault):
        read_config_file(str(here / "b.c/mine.py"))
    (here / "b.c/datasets/noise.py").write_text("x = 1\ndef apply(config:\n    pass\n")
    with pytest.raises(UserError, match=r"b\.c/datasets/noise\.py, line 2: SyntaxError"):
        read_config_file("b.c/mine.py")
    (here / "b.c/datasets/noise.py").unlink()
    gone = r"^b\.c/mine\.py, line 2: ImportError: cannot import name 'noise' from '\.datasets'.* folder .*b\.c\.$"
    with pytest.raises(UserError, match=gone):
        read_config_file("b.c/mine.py")
    assert sys.path == path and not any("user_config" in name for name in sys.modules)


@pytest.mark.parametrize(
    "override, code, message",
    [
        ("data.corp=(32,32)", 1, "There is no configuration key data.corp. Did you mean data.crop?"),
        ("dta.crop=(32,32)", 1, "There is no configuration key config.dta. Did you mean config.data?"),
        ("data.crop.x=3", 1, "There is no configuration key data.crop.x: crop is the value (128, 128)."),
        ("model=unet", 1, "model is a section: change one of its keys, backbone, dropout, dtype,"),
        (
            "data.batch_size=0.5",
            2,
            "--config.data.batch_size=0.5: invalid literal for int() with base 10: '0.5'; it is 8 now",
        ),
        ("optimizer.learning_rate=high", 2, "could not convert string to float: 'high'; it is 0.001 now"),
        ("data.flip_vertical=maybe", 2, "Non-boolean argument to boolean flag"),
        ("data.crop=(3,,4)", 2, "Error while parsing string: (3,,4) as tuple"),
        ("seed", 2, "Missing value for flag --config.seed"),
        ("source.name=folder", 1, "There is no configuration key source.count."),
        ("model.name=unit", 1, "model.name='unit' is not one of unet"),
        ("data.crop=(999,999)", 1, "data.crop=(999, 999) is larger than the largest image"),
    ],
)
def test_faults_of_an_override(here, segjax, override, code, message):
    found, _, err = segjax("train", "--config=c.py", "--workdir=w", f"--config.{override}")
    assert found == code and message in complaint(err)
    assert not (here / "w" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "argv, message",
    [
        (
            ["tarin"],
            "There is no verb 'tarin'. Verbs: train, evaluate, predict, compile, benchmark, inspect, config, doctor.",
        ),
        (["train"], "segjax train needs --config and --workdir"),
        (["train", "--config=c.py"], "segjax train needs --workdir"),
        (["train", "--workdir=w"], "segjax train needs --config"),
        (["evaluate"], "segjax evaluate needs --workdir"),
        (["predict", "--workdir=w"], "segjax predict needs --input and --output"),
        (["inspect"], "segjax inspect needs --config"),
        (["train", "--config=c.py", "--workdri=w"], "Unknown command line flag 'workdri'. Did you mean: workdir"),
        (["train", "--config=c.py", "--workdir=w", "fast"], "fast: not understood; flags start with --."),
        (["train", "--config=c.py", "--workdir=w", "--pictures=few"], "--pictures=few: invalid literal"),
        (["inspect", "--config=c.py", "--limit=0"], "--limit=0: 0 is not a positive integer"),
        (["doctor", "--config=c.py"], "Unknown command line flag 'config'"),
    ],
)
def test_commands_that_cannot_be_understood(here, segjax, argv, message):
    code, _, err = segjax(*argv)
    assert code == 2 and complaint(err).startswith(message)


def test_faults_of_a_workdir(here, workdir, segjax, monkeypatch):
    code, _, err = segjax("train", "--config=c.py", "--workdir=file/run")
    assert code == 1 and complaint(err) == "The workdir file/run cannot be written: Not a directory."
    code, _, err = segjax("evaluate", "--workdir=nowhere")
    assert code == 1 and complaint(err).startswith("There is no run in nowhere")
    code, _, err = segjax("evaluate", "--workdir", workdir, "--config.seed=1")
    assert code == 1 and "--config FILE.py" in complaint(err)
    (here / "w").mkdir()
    (here / "w" / "config.json").write_bytes((workdir / "config.json").read_bytes())
    for argv in (["evaluate"], ["predict", "--input", ROOT / "configs", "--output=out"]):
        if argv[0] == "predict":
            Image.new("RGB", (8, 8)).save(here / "image.png")
            argv[2] = here / "image.png"
        code, _, err = segjax(*argv, "--workdir=w")
        assert code == 1 and "There is no checkpoint in w/checkpoints: train first" in complaint(err)
    changed = [word.replace("widths=(4,8)", "widths=(4,8,16)") for word in SMALL]
    code, _, err = segjax("train", "--config", TINY, "--workdir", workdir, *changed)
    assert code == 1 and "model.widths: [4, 8] -> [4, 8, 16]" in complaint(err)
    assert "--config.resume.allow_changed=True" in err


def test_verbose_shows_where_an_error_comes_from(here, segjax):
    code, _, err = segjax("train", "--config=c.py:bug", "--workdir=w", "--verbose")
    assert code == 1 and err.startswith("Traceback") and "ZeroDivisionError" in err
    assert err.endswith("segjax: c.py, line 15: ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(
    "error, code, text", [(OSError(28, "No space left"), 1, "No space"), (KeyboardInterrupt(), 130, "interrupted")]
)
def test_stops_from_without(here, segjax, monkeypatch, error, code, text):
    def stop(*_, **__):
        raise error

    monkeypatch.setattr("segjax.cli.train.train_and_evaluate", stop)
    found, _, err = segjax("train", "--config=c.py", "--workdir=w")
    assert found == code and text in complaint(err)


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_the_flags_of_the_verb_only(verb, capsys):
    assert main([verb, "--help"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) < 20 and max(map(len, lines)) <= 120
    assert lines[0] == f"segjax {verb}: {VERBS[verb].text}"
    assert lines[2].startswith(f"usage: segjax {verb}")
    listed = set(re.findall(r"^  --(\w+)", out, re.MULTILINE))
    assert {"verbose", *VERBS[verb].required} <= listed
    assert ("config" in listed) == (verb in ("train", "evaluate", "compile", "benchmark", "inspect", "config"))


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_verbs(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in VERBS)


def test_warnings_reach_stderr_once(segjax, capsys):
    for _ in range(2):
        main(["doctor"])
    capsys.readouterr()
    logging.getLogger("segjax").warning("Unreadable: %s", "a.png")
    assert capsys.readouterr().err == "Unreadable: a.png\n"


@pytest.fixture
def folder(tmp_path):
    """A folder data set with a fault of every kind, and its configuration."""
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(12):
        image = random.integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"[b] {i}.png")
        Image.fromarray((image[..., 0] > 128).astype(np.uint8)).save(tmp_path / "masks" / f"[b] {i}.png")
    (tmp_path / "c.py").write_text(
        "from segjax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config('folder')\n"
        f"    config.source.root, config.source.images, config.source.masks = {str(tmp_path)!r}, 'images', 'masks'\n"
        "    config.source.classes = ('no', 'yes')\n"
        "    config.source.fractions = {'train': (0.0, 2 / 3), 'test': (2 / 3, 1.0)}\n"
        "    config.data.crop, config.loading.loader = (16, 16), 'threads'\n"
        "    return config\n"
    )
    return tmp_path


def test_inspect_a_sound_set(folder, segjax):
    code, found, err = segjax(
        "inspect", "--config", folder / "c.py", "--output", folder / "new" / "out", "--pictures=3"
    )
    assert code == 0 and found["samples"] == 8 and found["sizes"] == {"20 x 30": 8}
    assert sum(found["pixels"]) == found["labelled"] == 8 * 600 and found["images"] == [8, 8]
    assert found["ids"] == {"0": found["pixels"][0], "1": found["pixels"][1]}
    assert found["unreadable"] == found["mismatched"] == found["invalid"] == {}
    weights = np.array(found["class_weights"]["inverse"])
    np.testing.assert_allclose((weights * found["pixels"]).sum() / 4800, 1, atol=1e-3)
    assert set(found["class_weights"]) == {"median_frequency", "inverse", "effective_number"}
    assert "no" in err and "sizes: 20 x 30 (8)" in err and "contact_sheet.png" in err
    with Image.open(folder / "new" / "out" / "contact_sheet.png") as sheet:
        assert sheet.width == 3 * 160 + 8 and sheet.height > 3 * 160
    code, found, _ = segjax(
        "inspect", "--config", folder / "c.py", "--output", folder / "o", "--limit=3", "--split=test"
    )
    assert code == 0 and found["samples"] == 3


def test_inspect_names_every_fault(folder, segjax):
    (folder / "images" / "[b] 1.png").write_bytes(b"torn")
    Image.new("L", (5, 4)).save(folder / "masks" / "[b] 2.png")
    Image.new("L", (30, 20), 7).save(folder / "masks" / "[b] 3.png")
    code, found, err = segjax("inspect", "--config", folder / "c.py", "--output", folder / "out")
    assert code == 1 and not found["ok"] and found["samples"] == 8 and found["ids"]["7"] == 600
    for kind, name in (("unreadable", "[b] 1"), ("mismatched", "[b] 2"), ("invalid", "[b] 3")):
        assert list(found[kind]) == [name]
        assert f"{kind}: {found[kind][name]}" in err
    assert "7 (600 pixels)" in err and "No contact sheet: " in err


def test_inspect_a_set_without_a_sound_sample(folder, segjax):
    for path in (folder / "masks").iterdir():
        Image.new("L", (30, 20), 9).save(path)
    code, found, err = segjax("inspect", "--config", folder / "c.py", "--output", folder / "out")
    assert code == 1 and len(found["invalid"]) == 8 and found["class_weights"] == {}
    assert "9 (600 pixels)" in err


def test_inspect_knows_masks_of_0_and_255(folder, segjax):
    for path in (folder / "masks").iterdir():
        with Image.open(path) as mask:
            grey = np.array(mask) * 255
        Image.fromarray(grey.astype(np.uint8)).save(path)
    code, found, err = segjax("inspect", "--config", folder / "c.py", "--output", folder / "out")
    assert code == 1 and set(found["ids"]) == {"0", "255"}
    assert "The masks hold only 0 and 255" in err and "source.ids" in err


@pytest.mark.slow
def test_training_names_an_unreadable_image_on_stderr(folder, segjax):
    for i in (1, 9):  # of training, and of the evaluation
        (folder / "images" / f"[b] {i}.png").write_bytes(b"torn")
    changes = ["--config.data.batch_size=4", "--config.eval.batch_size=4", "--config.model.widths=(4,8)"]
    changes += ["--config.run.total=3", "--config.loading.max_corrupt=0.3", "--config.log.tensorboard=False"]
    code, result, err = segjax("train", "--config", folder / "c.py", "--workdir", folder / "run", *changes)
    assert code == 0 and result["images"] == 3
    assert len(re.findall(r"Unreadable.*\[b\] 1\.png", err)) == len(re.findall(r"Unreadable.*\[b\] 9\.png", err)) == 1
    assert len(list((folder / "run" / "report").glob("*.png"))) == 4  # three and the legend


def test_doctor(segjax):
    code, found, err = segjax("doctor")
    assert code == 0 and {"python", "packages", "devices", "problems", "ok"} <= set(found)
    assert found["packages"]["jax"] in err


def test_as_a_module(tmp_path):
    command = [sys.executable, "-m", "segjax", "evaluate", "--workdir", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 1 and done.stdout == ""
    assert complaint(done.stderr).startswith(f"There is no run in {tmp_path}")
