"""Runs from end to end."""

import json

import numpy as np
import pytest
from parts import quick
from tiny_runs import data, tiny

from segjax import infer
from segjax.checks import UserError
from segjax.data.pipeline import Batches
from segjax.data.sources.arrays import arrays
from segjax.train.loop import train_and_evaluate
from segjax.train.restore import evaluate_workdir

pytestmark = pytest.mark.core


def truth_and_prediction(workdir, source):
    predict = infer.load(workdir)
    for i in range(len(source)):
        sample = source.read(i)
        yield sample["label"], predict(sample["image"]).label


@pytest.mark.parametrize("mode", quick("jit", of=["jit", "pmap"]))
@pytest.mark.parametrize("task_mode", quick("multiclass", "multilabel", of=["multiclass", "binary", "multilabel"]))
def test_score_equals_a_count_in_numpy(tmp_path, mode, task_mode):
    """Odd sizes, ragged last batch, four devices: the same IoU as counting the predictions one by one."""
    image, label = data(task_mode, count=5, size=(27, 37))
    names = ("a", "b") if task_mode == "binary" else ("a", "b", "c")
    np.savez(tmp_path / "a.npz", train_image=image, train_label=label, test_image=image, test_label=label)
    config = tiny(tmp_path)
    config.source.data, config.source.classes = str(tmp_path / "a.npz"), names
    np.savez(tmp_path / "a.npz", train_image=image, train_label=label, test_image=image, test_label=label)
    config.parallel.transform, config.task.mode = mode, task_mode
    summary = train_and_evaluate(config, str(tmp_path / "run"))

    source = arrays("test", data=config.source.data, classes=names)
    pairs = list(truth_and_prediction(str(tmp_path / "run"), source))
    for k, name in enumerate(names):
        inter = union = 0
        for truth, found in pairs:
            if task_mode == "multilabel":
                t, p, valid = truth[..., k] == 1, found[..., k], truth[..., k] != 255
            else:
                t, p, valid = truth == k, found == k, truth != 255
            inter += (t & p & valid).sum()
            union += ((t | p) & valid).sum()
        assert summary["iou_per_class"][name] == pytest.approx(inter / union, abs=1e-12)
    assert summary["pixels"] == sum((truth != 255).sum() for truth, _ in pairs)
    assert summary["images"] == 5
    again = evaluate_workdir(str(tmp_path / "run"))
    assert {k: again[k] for k in ("mIoU", "iou_per_class", "pixels")} == {
        k: summary[k] for k in ("mIoU", "iou_per_class", "pixels")
    }


@pytest.mark.parametrize("loader", ["threads", "tf.data"])
def test_run_leaves_what_others_rely_on(tmp_path, loader):
    if loader == "tf.data":
        pytest.importorskip("tensorflow")
    config = tiny(tmp_path)
    config.run.eval_every, config.run.log_every, config.loading.loader = 2, 1, loader
    summary = train_and_evaluate(config, str(tmp_path / "run"))
    json.dumps(summary)
    for key in ("mIoU", "pixel_accuracy", "mean_dice", "iou_per_class", "dice_per_class", "seconds", "step"):
        assert key in summary
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(x["step"], x["split"]) for x in lines] == [
        (1, "train"), (2, "train"), (2, "test"), (3, "train"), (4, "train"), (4, "test"),
    ]  # fmt: skip
    assert all(np.isfinite(x["loss"]) and x["learning_rate"] >= 0 for x in lines if x["split"] == "train")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["model"]["widths"] == [4, 8] and saved["spec"]["classes"] == ["r", "g", "b"]
    kept = {int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()}
    best = max((x for x in lines if x["split"] == "test"), key=lambda x: x["mIoU"])["step"]
    assert kept == {best, 4} and summary["step"] == best


def test_faults_are_named_before_the_first_step(tmp_path):
    cases = {
        r"data.batch_size=6 .* 4 devices: use 4 or 8": {"data.batch_size": 6},
        r"eval.batch_size=2 .* 4 devices: use 4": {"eval.batch_size": 2},
        r"data.crop=\(64, 64\) is larger": {"data.crop": (64, 64)},
        r"task.mode='multilabel' does not fit": {"task.mode": "multilabel"},
        r"needs exactly two classes": {"task.mode": "binary"},
        r"class_weights has 2 values for 3 classes": {"objective.class_weights": (1.0, 2.0)},
        r"parallel.devices=9.* 4": {"parallel.devices": 9},
        r"parallel.transform='pjit'": {"parallel.transform": "pjit"},
        r"checkpoint.best='mIuO' is not one of .*mIoU": {"checkpoint.best": "mIuO"},
        r"checkpoint.evaluate='first'": {"checkpoint.evaluate": "first"},
        r"model.padding='valdi' .*'valid'": {"model.padding": "valdi"},
        r"model.norm='layer'": {"model.norm": "layer"},
        r"model.upsampling='bilinear'": {"model.upsampling": "bilinear"},
        r"model.dtype='float16'": {"model.dtype": "float16"},
        r"task.mode='multi'": {"task.mode": "multi"},
        r"objective.dice_over='pixel'": {"objective.dice_over": "pixel"},
        r"preprocess.outside='mirrored'": {"preprocess.outside": "mirrored"},
        r"the image must be uint8 \[y, x, 1\], with as many channels as preprocess.mean": {"preprocess.mean": (1.0,)},
        r"preprocess.mean=.* and preprocess.std=\(1.0,\)": {"preprocess.std": (1.0,)},
        r"preprocess.context must be 0, not 8": {"preprocess.context": 8},
        r"preprocess.context must be 8, not 0": {"model.padding": "valid"},
        r"optimizer.name='adma' .*'adam'": {"optimizer.name": "adma"},
        r"optimizer.schedule='cosin' .*'cosine'": {"optimizer.schedule": "cosin"},
        r"seed=-1": {"seed": -1},
    }
    for message, changes in cases.items():
        with pytest.raises(UserError, match=message):
            train_and_evaluate(tiny(tmp_path, **changes), str(tmp_path / "run"))
        assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = tiny(tmp_path)
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 1e30
    # The state is looked at before it is saved, whether or not the log is due.
    config.run.total, config.run.log_every, config.run.checkpoint_every = 6, 100, 2
    with pytest.raises(UserError, match=r"The loss is (nan|inf) at step 2.*learning_rate"):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_sources_may_be_given(tmp_path):
    """Arrays in memory, or any object with a source's methods, train and score like a configured source."""
    config = tiny(tmp_path)
    image, label = data()
    held = {"train": {"image": image, "label": label}, "test": {"image": image[:5], "label": label[:5]}}
    sources = {split: arrays(split, data=held, classes=("r", "g", "b")) for split in held}
    config.source.data = None
    given = train_and_evaluate(config, str(tmp_path / "given"), sources=sources)
    assert evaluate_workdir(str(tmp_path / "given"), sources=sources)["mIoU"] == given["mIoU"]
    config.source.data = str(tmp_path / "a.npz")
    assert train_and_evaluate(config, str(tmp_path / "file"))["mIoU"] == given["mIoU"]
    with pytest.raises(UserError, match="split='test'"):
        train_and_evaluate(config, str(tmp_path / "half"), sources={"train": sources["train"]})


@pytest.mark.slow
def test_a_run_cut_short_after_its_last_evaluation_is_scored(tmp_path):
    config = tiny(tmp_path)
    config.run.checkpoint_every, config.run.total, config.run.eval_every = 2, 6, 6
    batches = Batches.batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "batches", lambda self, start, stop: batches(self, start, min(stop, 4)))
        train_and_evaluate(config, str(tmp_path / "run"))
    config.run.total = 4
    summary = train_and_evaluate(config, str(tmp_path / "run"))
    assert summary["step"] == 4 and summary["pixels"] > 0


@pytest.mark.slow
def test_original_unet_trains_with_context_and_tiles_seamlessly(tmp_path):
    """Valid padding: context comes from the image, and tiles give exactly what the whole image gives."""
    config = tiny(tmp_path, **{"model.padding": "valid", "model.norm": "none"})
    config.preprocess.context, config.preprocess.outside = 8, "mirror"
    train_and_evaluate(config, str(tmp_path / "run"))
    predict = infer.load(str(tmp_path / "run"))
    image = data()[0][0]
    whole = predict(image)
    assert whole.probability.shape == (24, 32, 3)
    tiled = infer.load(str(tmp_path / "run"), tile=10)(image)
    np.testing.assert_allclose(tiled.probability, whole.probability, atol=1e-5)
    np.testing.assert_array_equal(tiled.label, whole.label)
