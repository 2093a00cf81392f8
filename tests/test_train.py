import json
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parts import make_task

from segjax import infer, models, parallel
from segjax.checks import UserError
from segjax.config import base
from segjax.data.loader import Loading
from segjax.data.pipeline import eval_batches
from segjax.data.sources.arrays import arrays
from segjax.objectives import Maps
from segjax.spec import DatasetSpec, Geometry, Preprocess
from segjax.train import compilation, optimizer, state, step, workdir
from segjax.train.evaluate import Evaluator
from segjax.train.loop import train_and_evaluate
from segjax.train.restore import evaluate_workdir, restore

RGB = Preprocess(mean=(127.5,) * 3, std=(64.0,) * 3)
ROOT = pathlib.Path(__file__).parent.parent


def data(mode="multiclass", count=8, size=(24, 32)):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (count, *size, 3), np.uint8)
    if mode == "multilabel":
        label = (image > 128).astype(np.uint8)
    else:
        label = image.argmax(-1).astype(np.uint8) if mode == "multiclass" else (image[..., 0] > 128).astype(np.uint8)
    # Truth is spread unevenly over the rows of the batch, so that a mean of means would show.
    for i in range(count):
        label[i, : 3 * i] = 255
    return image, label


def tiny(tmp_path, **changes):
    """A configuration on arrays in an .npz file."""
    image, label = data()
    np.savez(tmp_path / "a.npz", train_image=image, train_label=label, test_image=image[:5], test_label=label[:5])
    config = base(source="arrays")
    config.source.data, config.source.classes = str(tmp_path / "a.npz"), ("r", "g", "b")
    config.data.crop, config.data.batch_size, config.eval.batch_size = (16, 24), 4, 4
    config.model.widths = (4, 8)
    config.loading.loader = "threads"
    config.log.tensorboard = False
    config.run.total = 4
    config.update_from_flattened_dict(changes)
    return config


def run_steps(mode, devices, count, task_mode="multiclass", steps=3, **task_settings):
    """State after a few steps on one batch, and the scalars of the last."""
    names = ("a", "b") if task_mode == "binary" else ("a", "b", "c")
    spec = DatasetSpec(names, mode="multilabel" if task_mode == "multilabel" else "multiclass")
    task = make_task(spec, mode=task_mode, **task_settings)
    mesh = parallel.make_mesh(mode=mode, devices=devices)
    model = models.create("unet", task.spec, widths=(4, 8))
    tx, _ = optimizer.make(10, 0, name="sgd", learning_rate=0.1, weight_decay=1e-3, clip=1.0)
    image, label = data(task_mode)
    shape = (count, *image.shape[1:])
    # From seed 0 a ReLU's input lies so near zero that rounding decides on which side, and on a percent of gradients.
    now = state.init(model, tx, shape, True, 1, mesh)
    colours = {"brightness": 0.1, "noise": 0.1, "hue": 0.1}
    compiled = compilation.compile_train(
        lambda axis: step.make_train_step(model, task.objective, tx, RGB, colours, 0, 9, 0.9, axis),
        mesh,
        mode,
        donate=False,
    )
    index = np.arange(count, dtype=np.int32)
    batch = {"image": image[:count], "label": label[:count], "index": index, "position": index}
    for _ in range(steps):
        now, scalars = compiled(now, parallel.put_batch(mesh, batch, mode))
    return jax.device_get(now), jax.device_get(scalars)


@pytest.mark.parametrize(
    "task_mode, settings",
    [
        ("multiclass", {"dice": 1.0, "dice_over": "batch", "class_weights": (0.5, 1.0, 3.0)}),
        ("multiclass", {"dice": 1.0, "label_smoothing": 0.1}),
        ("binary", {"dice": 0.5, "class_weights": (1.0, 4.0), "hardest": 0.5}),
        ("multilabel", {"dice": 0.5, "dice_over": "batch"}),
    ],
)
def test_jit_pmap_and_one_device_agree(task_mode, settings):
    """Batch norm, loss divisors, Dice of the batch, gradients and averages are global in every mode."""
    one, four, mapped = (
        run_steps(mode, devices, 8, task_mode, **settings) for mode, devices in (("jit", 1), ("jit", 4), ("pmap", 4))
    )
    for other in (four, mapped):
        paths = jax.tree_util.tree_leaves_with_path(one)
        for (path, a), b in zip(paths, jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=jax.tree_util.keystr(path))
    assert one[0].batch_stats and one[0].ema["batch_stats"]
    first = run_steps("jit", 1, 8, task_mode, steps=1, **settings)
    assert one[1]["loss"] < first[1]["loss"]


def test_auxiliary_logits_add_their_share():
    spec = DatasetSpec(("a", "b", "c"))
    main, aux = (jax.random.normal(jax.random.key(i), (2, size, size, 3)) for i, size in ((0, 8), (1, 4)))
    label = np.random.default_rng(0).integers(0, 3, (2, 16, 16)).astype(np.uint8)
    label[:, :5] = 255
    label = jnp.asarray(label)
    loss = make_task(spec, aux=0.3, dice=0.5).objective.loss
    total, terms = loss({"logits": main, "aux": aux}, {"label": label})
    alone, beside = (loss({"logits": logits}, {"label": label})[0] for logits in (main, aux))
    np.testing.assert_allclose(total, alone + 0.3 * beside, rtol=1e-6)
    np.testing.assert_allclose(terms["aux"], beside, rtol=1e-6)


def test_the_hardest_pixels_of_each_image_count():
    """By a sort in numpy: of weighted losses the largest, divided by the sum of their weights."""
    random = np.random.default_rng(0)
    logits, label = random.normal(size=(3, 8, 9, 3)), random.integers(0, 3, (3, 8, 9))
    label[:, :2] = 255
    class_weights = np.array([0.5, 1.0, 3.0])
    task = make_task(DatasetSpec(("a", "b", "c")), hardest=0.3, class_weights=(0.5, 1.0, 3.0))
    batch = {"label": jnp.asarray(label, jnp.uint8)}
    loss, _ = task.objective.loss({"logits": jnp.asarray(logits, jnp.float32)}, batch)
    total = weights = 0.0
    for i in range(3):
        valid = label[i] != 255
        scores, truth = logits[i][valid], label[i][valid]
        values = np.log(np.exp(scores).sum(-1)) - scores[np.arange(len(truth)), truth]
        chosen = np.argsort(-values * class_weights[truth])[: int(np.ceil(0.3 * len(truth)))]
        total += (values * class_weights[truth])[chosen].sum()
        weights += class_weights[truth][chosen].sum()
    assert loss == pytest.approx(total / weights, rel=1e-5)
    with pytest.raises(UserError, match=r"objective.hardest=0.0 .*\(0, 1\]"):
        make_task(DatasetSpec(("a", "b")), hardest=0.0)


def test_moving_average_follows_its_formula():
    states = [run_steps("jit", 1, 4, steps=n)[0] for n in (1, 2, 3)]
    for t in (1, 2):
        keep = min(0.9, (1 + t) / (10 + t))
        expected = jax.tree.map(lambda e, p, k=keep: k * e + (1 - k) * p, states[t - 1].ema["params"], states[t].params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), states[t].ema["params"], expected)


def test_compiled_step_moves_no_activations():
    """The collectives of the jit step are all-reduces of gradients and statistics: nothing is gathered."""
    task = make_task(DatasetSpec(("a", "b", "c")), dice=1.0)
    mesh = parallel.make_mesh()
    model = models.create("unet", task.spec, widths=(4, 8))
    tx, _ = optimizer.make(10, 0)
    now = state.abstract(model, tx, (8, 24, 32, 3), False)
    compiled = compilation.compile_train(
        lambda axis: step.make_train_step(model, task.objective, tx, RGB, {"noise": 0.1}, 0, 9, 0.0, axis),
        mesh,
        "jit",
        donate=False,
    )
    shapes = {"image": ((8, 24, 32, 3), jnp.uint8), "label": ((8, 24, 32), jnp.uint8)}
    shapes |= {"index": ((8,), jnp.int32), "position": ((8,), jnp.int32)}
    text = compiled.lower(now, {k: jax.ShapeDtypeStruct(*v) for k, v in shapes.items()}).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text


def truth_and_prediction(workdir, source):
    predict = infer.load(workdir)
    for i in range(len(source)):
        sample = source.read(i)
        yield sample["label"], predict(sample["image"])["label"]


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("task_mode", ["multiclass", "binary", "multilabel"])
def test_score_equals_a_count_in_numpy(tmp_path, mode, task_mode):
    """Odd sizes, ragged last batch, four devices: the same IoU as counting the predictions one by one."""
    image, label = data(task_mode, count=5, size=(27, 37))
    names = ("a", "b") if task_mode == "binary" else ("a", "b", "c")
    np.savez(tmp_path / "a.npz", train_image=image, train_label=label, test_image=image, test_label=label)
    config = tiny(tmp_path)
    config.source.data, config.source.classes = str(tmp_path / "a.npz"), names
    np.savez(tmp_path / "a.npz", train_image=image, train_label=label, test_image=image, test_label=label)
    config.parallel.mode, config.task.mode = mode, task_mode
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


RESUME = """
    import sys
    import jax
    from segjax import config as c
    from segjax.train.loop import train_and_evaluate
    config = c.base(source="arrays")
    config.source.data, config.source.classes = sys.argv[1], ("r", "g", "b")
    config.data.crop, config.data.batch_size, config.eval.batch_size = (16, 24), 4, 4
    config.data.scale, config.data.rotate, config.augment.noise = (0.7, 1.5), 20.0, 0.1
    config.model.widths, config.model.dropout, config.ema.decay = (4, 8), 0.2, 0.99
    config.loading.loader, config.log.tensorboard = "threads", False
    config.optimizer.accumulate = 2
    config.parallel.mode = sys.argv[3]
    config.run.total, config.run.checkpoint_every, config.checkpoint.evaluate = 20, 10, "last"
    if len(sys.argv) > 4:  # stopped from without after ten steps
        from segjax.data.pipeline import Batches
        batches = Batches.batches
        Batches.batches = lambda self, start, stop: batches(self, start, min(stop, 10))
    train_and_evaluate(config, sys.argv[2])
"""


def script(code, *args, devices=4):
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
    }
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def read_state(folder, at):
    config, spec = workdir.read_config(str(folder))
    config.checkpoint.evaluate = "last"
    _, now, step_read = restore(config, spec, str(folder))
    assert step_read == at
    return jax.device_get(now)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_resuming_in_a_new_process_is_bit_exact(tmp_path, mode):
    """20 steps = 10 steps, a new process, 10 steps: every leaf of the state is equal, bit for bit."""
    tiny(tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    straight = script(RESUME, tmp_path / "a.npz", whole, mode)
    finish(script(RESUME, tmp_path / "a.npz", parts, mode, "stop"))
    assert [int(p.name) for p in (parts / "checkpoints").iterdir()] == [10]
    out = finish(script(RESUME, tmp_path / "a.npz", parts, mode))
    assert "resumed at step 10" in out
    finish(straight)
    a, b = read_state(whole, 20), read_state(parts, 20)
    assert jax.tree.structure(a) == jax.tree.structure(b) and len(jax.tree.leaves(a)) > 50
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


HOSTS = """
    import json, sys
    import jax
    jax.distributed.initialize("127.0.0.1:" + sys.argv[2], 2, int(sys.argv[3]))
    from segjax import config as c
    from segjax.train.loop import train_and_evaluate
    config = c.base(source="arrays")
    config.source.data, config.source.classes = sys.argv[1], ("r", "g", "b")
    config.data.crop, config.data.batch_size, config.eval.batch_size = (16, 24), 4, 4
    config.model.widths, config.run.total = (4, 8), 4
    config.loading.loader, config.log.tensorboard = "threads", False
    config.parallel.mode = sys.argv[5]
    summary = train_and_evaluate(config, sys.argv[4])
    if jax.process_index() == 0:
        print("SUMMARY " + json.dumps(summary))
"""


def test_two_processes_train_and_score_as_one(tmp_path, mode="pmap"):
    """Under jit: test_hosts.py."""
    import socket

    config = tiny(tmp_path)
    config.parallel.mode = mode
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pair = [script(HOSTS, tmp_path / "a.npz", port, i, tmp_path / "two", mode, devices=2) for i in (0, 1)]
    outs = [finish(p) for p in pair]
    two = json.loads(next(line for line in outs[0].splitlines() if line.startswith("SUMMARY"))[8:])
    one = train_and_evaluate(config, str(tmp_path / "one"))
    assert two["pixels"] == one["pixels"] and two["images"] == one["images"] == 5
    # The same checkpoint scored by one process: the same counts.
    again = evaluate_workdir(str(tmp_path / "two"))
    assert again["iou_per_class"] == two["iou_per_class"] and again["pixel_accuracy"] == two["pixel_accuracy"]
    a, b = read_state(tmp_path / "one", 4), read_state(tmp_path / "two", 4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4), a.params, b.params)


def test_evaluation_of_known_predictions():
    """A model that answers with its input: the score is what was put in, whatever the padding."""
    random = np.random.default_rng(0)
    labels = [random.integers(0, 3, size).astype(np.uint8) for size in [(7, 9), (5, 11), (8, 8)]]
    images = [np.repeat(label[..., None] * 100, 3, axis=-1) for label in labels]
    labels[0][:3] = 255
    wrong = labels[1].copy()
    wrong[labels[1] == 2] = 1
    labels[1] = wrong
    source = arrays("test", data={"test": {"image": images, "label": labels}}, classes=("a", "b", "c"))
    mesh = parallel.make_mesh()
    task = make_task(source.spec)

    def answer(variables, batch):
        value = batch["image"][..., :1].astype(jnp.float32) / 100
        logits = -jnp.abs(value - jnp.arange(3, dtype=jnp.float32).reshape(1, 1, 1, 3))
        sizes, content = batch["label"].shape[1:3], batch["content"]
        geometry = Geometry(content[:, :2], content[:, 2:], sizes, sizes, False)
        return task.measure(Maps({"logits": logits}), batch, geometry)

    compiled = compilation.compile_eval(lambda axis: answer, mesh, "jit")
    batches = eval_batches(source, RGB, Loading("threads"), batch_size=4)
    summary = Evaluator(compiled, task, batches, mesh, "jit")({})
    matrix = np.zeros((3, 3), int)
    for image, label in zip(images, labels, strict=True):
        for t, p in zip(label.ravel(), (image[..., 0] // 100).ravel(), strict=True):
            if t != 255:
                matrix[t, p] += 1
    expected = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    np.testing.assert_allclose(list(summary["iou_per_class"].values()), expected)
    assert summary["pixels"] == matrix.sum()


def test_refuses_the_workdir_of_another_model(tmp_path):
    config = tiny(tmp_path)
    train_and_evaluate(config, str(tmp_path / "run"))
    saved = (tmp_path / "run" / "config.json").read_bytes()
    config.model.widths = (8, 16)
    with pytest.raises(UserError, match=r"another model: model.widths: \[4, 8\] -> \[8, 16\]"):
        train_and_evaluate(config, str(tmp_path / "run"))
    config.resume.allow_changed = True
    with pytest.raises(UserError, match=r"Checkpoint 4 .* does not fit"):
        train_and_evaluate(config, str(tmp_path / "run"))
    config.model.widths = (4, 8)
    config.optimizer.name = "sgd"
    with pytest.raises(UserError, match=r"Checkpoint 4 .* does not fit .*opt_state"):
        train_and_evaluate(config, str(tmp_path / "run"))
    # What was refused has left the run as it was.
    assert (tmp_path / "run" / "config.json").read_bytes() == saved
    assert evaluate_workdir(str(tmp_path / "run"))["step"] == 4
    config.optimizer.name, config.model.dropout = "adamw", 0.5
    config.run.total = 6
    assert train_and_evaluate(config, str(tmp_path / "run"))["mIoU"] is not None
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["dropout"] == 0.5


def test_a_finished_run_returns_its_figures(tmp_path):
    config = tiny(tmp_path)
    first = train_and_evaluate(config, str(tmp_path / "run"))
    again = train_and_evaluate(config, str(tmp_path / "run"))
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}


def test_faults_are_named_before_the_first_step(tmp_path):
    cases = {
        r"data.batch_size=6 cannot be divided over 4 devices: use 4 or 8": {"data.batch_size": 6},
        r"eval.batch_size=2 cannot be divided over 4 devices: use 4": {"eval.batch_size": 2},
        r"data.crop=\(64, 64\) is larger": {"data.crop": (64, 64)},
        r"task.mode='multilabel' does not fit": {"task.mode": "multilabel"},
        r"needs exactly two classes": {"task.mode": "binary"},
        r"class_weights has 2 values for 3 classes": {"objective.class_weights": (1.0, 2.0)},
        r"parallel.devices=9, but there are 4": {"parallel.devices": 9},
        r"parallel.mode='pjit'": {"parallel.mode": "pjit"},
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


def test_evaluation_under_another_preprocessing_is_refused(tmp_path):
    config = tiny(tmp_path)
    train_and_evaluate(config, str(tmp_path / "run"))
    config.eval.batch_size = 8
    assert evaluate_workdir(str(tmp_path / "run"), config=config)["images"] == 5
    config.preprocess.mean = (1.0, 2.0, 3.0)
    with pytest.raises(UserError, match=r"another model: preprocess.mean"):
        evaluate_workdir(str(tmp_path / "run"), config=config)


def test_faults_of_the_workdir(tmp_path):
    with pytest.raises(UserError, match="There is no run in"):
        evaluate_workdir(str(tmp_path))
    config = tiny(tmp_path)
    workdir.prepare(str(tmp_path / "run"))
    workdir.record(str(tmp_path / "run"), config, DatasetSpec(("r", "g", "b")))
    with pytest.raises(UserError, match=r"no checkpoint in .*run"):
        evaluate_workdir(str(tmp_path / "run"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        train_and_evaluate(config, str(tmp_path / "file" / "run"))
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        evaluate_workdir(str(tmp_path / "run"))


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
    opened = {split: arrays(split, data=held, classes=("r", "g", "b")) for split in held}
    config.source.data = None
    given = train_and_evaluate(config, str(tmp_path / "given"), sources=opened)
    assert evaluate_workdir(str(tmp_path / "given"), sources=opened)["mIoU"] == given["mIoU"]
    config.source.data = str(tmp_path / "a.npz")
    assert train_and_evaluate(config, str(tmp_path / "file"))["mIoU"] == given["mIoU"]
    with pytest.raises(UserError, match="split='test'"):
        train_and_evaluate(config, str(tmp_path / "half"), sources={"train": opened["train"]})


def test_a_run_cut_short_after_its_last_evaluation_is_scored(tmp_path):
    config = tiny(tmp_path)
    config.run.checkpoint_every, config.run.total, config.run.eval_every = 2, 6, 6
    from segjax.data.pipeline import Batches

    batches = Batches.batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "batches", lambda self, start, stop: batches(self, start, min(stop, 4)))
        train_and_evaluate(config, str(tmp_path / "run"))
    config.run.total = 4
    summary = train_and_evaluate(config, str(tmp_path / "run"))
    assert summary["step"] == 4 and summary["pixels"] > 0


def test_original_unet_trains_with_context_and_tiles_seamlessly(tmp_path):
    """Valid padding: context comes from the image, and tiles give exactly what the whole image gives."""
    config = tiny(tmp_path, **{"model.padding": "valid", "model.norm": "none"})
    config.preprocess.context, config.preprocess.outside = 8, "mirror"
    train_and_evaluate(config, str(tmp_path / "run"))
    predict = infer.load(str(tmp_path / "run"))
    image = data()[0][0]
    whole = predict(image)
    assert whole["probability"].shape == (24, 32, 3)
    tiled = infer.load(str(tmp_path / "run"), tile=10)(image)
    np.testing.assert_allclose(tiled["probability"], whole["probability"], atol=1e-5)
    np.testing.assert_array_equal(tiled["label"], whole["label"])
    config = tiny(tmp_path)
    train_and_evaluate(config, str(tmp_path / "same"))
    with pytest.raises(UserError, match=r"Tiles need .*context"):
        infer.load(str(tmp_path / "same"), tile=10)
