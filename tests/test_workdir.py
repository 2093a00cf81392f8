"""What a workdir with a run accepts, and what it refuses."""

import json
import shutil

import pytest
from tiny_runs import tiny

from segjax import infer
from segjax.checks import UserError
from segjax.spec import DatasetSpec
from segjax.train import workdir
from segjax.train.loop import train_and_evaluate
from segjax.train.restore import evaluate_workdir

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps, and its scores; tests change copies of it."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, train_and_evaluate(tiny(folder), str(folder / "run"))


@pytest.fixture
def config(trained, tmp_path):
    """The configuration of a copy of the run, at `tmp_path / "run"`."""
    shutil.copytree(trained[0] / "run", tmp_path / "run")
    return tiny(tmp_path)


def test_refuses_the_workdir_of_another_model(config, tmp_path):
    saved = (tmp_path / "run" / "config.json").read_bytes()
    config.model.widths = (8, 16)
    with pytest.raises(UserError, match=r"another model: model.widths: \[4, 8\] -> \[8, 16\]"):
        train_and_evaluate(config, str(tmp_path / "run"))
    config.resume.allow_changed = True
    with pytest.raises(UserError, match=r"Checkpoint 4 .*saved \(4,\), configured \(8,\)"):
        train_and_evaluate(config, str(tmp_path / "run"))
    config.model.widths = (4, 8)
    config.optimizer.name = "sgd"
    with pytest.raises(UserError, match=r"Checkpoint 4 .*opt_state"):
        train_and_evaluate(config, str(tmp_path / "run"))
    # What was refused has left the run as it was.
    assert (tmp_path / "run" / "config.json").read_bytes() == saved
    assert evaluate_workdir(str(tmp_path / "run"))["step"] == 4
    config.optimizer.name, config.model.dropout = "adamw", 0.5
    config.run.total = 6
    assert train_and_evaluate(config, str(tmp_path / "run"))["mIoU"] is not None
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["dropout"] == 0.5


def test_a_finished_run_returns_its_scores(config, trained, tmp_path):
    again = train_and_evaluate(config, str(tmp_path / "run"))
    assert again | {"seconds": 0} == trained[1] | {"seconds": 0}


def test_evaluation_under_another_preprocessing_is_refused(config, tmp_path):
    config.eval.batch_size = 8
    assert evaluate_workdir(str(tmp_path / "run"), config=config)["images"] == 5
    config.preprocess.mean = (1.0, 2.0, 3.0)
    with pytest.raises(UserError, match=r"another model: preprocess.mean"):
        evaluate_workdir(str(tmp_path / "run"), config=config)


def test_tiles_need_a_context(config, tmp_path):
    with pytest.raises(UserError, match=r"Tiles need .*context"):
        infer.load(str(tmp_path / "run"), tile=10)


def test_faults_of_the_workdir(tmp_path):
    with pytest.raises(UserError, match="There is no run in"):
        evaluate_workdir(str(tmp_path))
    config = tiny(tmp_path)
    workdir.make_workdir(str(tmp_path / "run"))
    workdir.write_config(str(tmp_path / "run"), config, DatasetSpec(("r", "g", "b")))
    with pytest.raises(UserError, match=r"no checkpoint in .*run"):
        evaluate_workdir(str(tmp_path / "run"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        train_and_evaluate(config, str(tmp_path / "file" / "run"))
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        evaluate_workdir(str(tmp_path / "run"))
