"""A step is saved before it is scored; the best one is chosen by the scores kept with the checkpoints."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import segjax
from segjax.checks import UserError
from segjax.data.sources.arrays import arrays
from segjax.train.checkpoint import Checkpoints
from segjax.train.state import TrainState

STATE = TrainState(jnp.int32(0), {"x": jnp.arange(3.0)}, {}, {}, {})


def steps(workdir):
    return sorted(int(path.name) for path in pathlib.Path(workdir, "checkpoints").iterdir() if path.name.isdigit())


def test_the_last_and_the_best_are_kept(tmp_path):
    with Checkpoints(str(tmp_path)) as checkpoints:
        for step, score in ((10, 0.2), (20, 0.6), (30, 0.6), (40, None), (50, 0.1), (60, None)):
            checkpoints.save(step, STATE)
            if score is not None:
                checkpoints.record(step, {"mIoU": score})
        assert checkpoints.chosen() == 30 and checkpoints.latest() == 60
    assert steps(tmp_path) == [30, 60]
    with Checkpoints(str(tmp_path)) as again:
        assert again.chosen() == 30 and again.summary(30) == {"mIoU": 0.6} and again.summary(60) is None
    with Checkpoints(str(tmp_path), evaluate="last") as last:
        assert last.chosen() == 60


def test_a_score_that_is_undefined_is_never_the_best(tmp_path):
    with Checkpoints(str(tmp_path)) as checkpoints:
        for step, score in ((1, 0.0), (2, None)):
            checkpoints.save(step, STATE)
            checkpoints.record(step, {"mIoU": score})
        assert checkpoints.chosen() == 1


def test_scores_of_version_0_1_lie_inside_the_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    handlers = {"state": ocp.StandardCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(best_fn=lambda summary: summary["mIoU"])
    with ocp.CheckpointManager(folder, item_handlers=handlers, options=options) as old:
        for step, score in ((1, 0.9), (2, 0.3)):
            args = ocp.args.Composite(state=ocp.args.StandardSave(STATE))
            old.save(step, args=args, metrics={"mIoU": score}, force=True)
    with Checkpoints(str(tmp_path)) as checkpoints:
        assert checkpoints.chosen() == 1 and checkpoints.summary(2) == {"mIoU": 0.3}
        checkpoints.save(3, STATE)
        checkpoints.record(3, {"mIoU": 0.5})
    assert steps(tmp_path) == [1, 3]


def test_broken_scores_are_named(tmp_path):
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(1, STATE)
        checkpoints.record(1, {"mIoU": 0.5})
    (tmp_path / "checkpoints/1/scores.json").write_text("{")
    with pytest.raises(UserError, match=r"checkpoints/1/scores\.json cannot be read"):
        Checkpoints(str(tmp_path))


@pytest.mark.slow
def test_an_evaluation_that_fails_costs_no_step(tmp_path):
    """The state is there when the score is not; the next start scores it first, as if nothing had happened."""
    random = np.random.default_rng(0)
    label = random.integers(0, 2, (4, 16, 16), np.uint8)
    data = {"image": random.integers(0, 256, (4, 16, 16, 3), np.uint8), "label": label}
    train = arrays("train", data={"train": data}, classes=("a", "b"))

    class Test:
        spec, reads = train.spec, 10**9  # that succeed

        def __len__(self):
            return 4

        def name(self, i):
            return f"odd {i}"

        def size(self, i):
            return 16, 16

        def read(self, i):
            self.reads -= 1
            if self.reads < 0:
                raise UserError("the disk of the test images is gone")
            return train.read(i)

    def run(workdir, total, test):
        config = segjax.default_config(source="shapes")
        config.run.total, config.run.eval_every, config.data.crop = total, 2.0, (16, 16)
        config.data.batch_size, config.eval.batch_size, config.model.widths = 4, 4, (4, 8)
        config.log.tensorboard, config.loading.loader = False, "threads"
        return segjax.train_and_evaluate(config, str(workdir), sources={"train": train, "test": test})

    def log(workdir):
        lines = map(json.loads, pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]

    test = Test()
    run(tmp_path / "a", 4, test)
    test.reads = 4  # those before the first step
    with pytest.raises(UserError, match="is gone"):
        run(tmp_path / "b", 4, test)
    assert steps(tmp_path / "b") == [2] and len(log(tmp_path / "b")) == 1
    test.reads = 10**9
    run(tmp_path / "b", 4, test)
    assert log(tmp_path / "a") == log(tmp_path / "b")
