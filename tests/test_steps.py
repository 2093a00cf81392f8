"""Steps: the same in every mode and on any number of devices, and what they add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parts import make_task
from tiny_runs import data

from segjax import models, parallel
from segjax.checks import UserError
from segjax.data.loader import Loading
from segjax.data.pipeline import eval_batches
from segjax.data.sources.arrays import arrays
from segjax.objectives import Maps
from segjax.spec import DatasetSpec, Geometry, Preprocess
from segjax.train import compilation, optimizer, state, step
from segjax.train.evaluate import Evaluator

pytestmark = pytest.mark.core

RGB = Preprocess(mean=(127.5,) * 3, std=(64.0,) * 3)


def run_steps(mode, devices, count, task_mode="multiclass", steps=3, **task_settings):
    """State after a few steps on one batch, and the scalars of the last."""
    names = ("a", "b") if task_mode == "binary" else ("a", "b", "c")
    spec = DatasetSpec(names, mode="multilabel" if task_mode == "multilabel" else "multiclass")
    task = make_task(spec, mode=task_mode, **task_settings)
    mesh = parallel.make_mesh(transform=mode, devices=devices)
    model = models.create("unet", task.spec, widths=(4, 8))
    tx, _ = optimizer.make_optimizer(10, 0, name="sgd", learning_rate=0.1, weight_decay=1e-3, clip=1.0)
    image, label = data(task_mode)
    shape = (count, *image.shape[1:])
    # From seed 0 a ReLU's input lies so near zero that rounding decides on which side, and on a percent of gradients.
    train_state = state.init_state(model, tx, shape, True, 1, mesh)
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
        train_state, scalars = compiled(train_state, parallel.put_batch(mesh, batch, mode))
    return jax.device_get(train_state), jax.device_get(scalars)


@pytest.mark.parametrize(
    "task_mode, settings",
    [
        ("multiclass", {"dice": 1.0, "dice_over": "batch", "class_weights": (0.5, 1.0, 3.0)}),
        pytest.param("multiclass", {"dice": 1.0, "label_smoothing": 0.1}, marks=pytest.mark.slow),
        pytest.param(
            "binary", {"dice": 0.5, "class_weights": (1.0, 4.0), "ohem_fraction": 0.5}, marks=pytest.mark.slow
        ),
        pytest.param("multilabel", {"dice": 0.5, "dice_over": "batch"}, marks=pytest.mark.slow),
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
    task = make_task(DatasetSpec(("a", "b", "c")), ohem_fraction=0.3, class_weights=(0.5, 1.0, 3.0))
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
    with pytest.raises(UserError, match=r"objective.ohem_fraction=0.0 .*\(0, 1\]"):
        make_task(DatasetSpec(("a", "b")), ohem_fraction=0.0)


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
    tx, _ = optimizer.make_optimizer(10, 0)
    train_state = state.abstract_state(model, tx, (8, 24, 32, 3), False)
    compiled = compilation.compile_train(
        lambda axis: step.make_train_step(model, task.objective, tx, RGB, {"noise": 0.1}, 0, 9, 0.0, axis),
        mesh,
        "jit",
        donate=False,
    )
    shapes = {"image": ((8, 24, 32, 3), jnp.uint8), "label": ((8, 24, 32), jnp.uint8)}
    shapes |= {"index": ((8,), jnp.int32), "position": ((8,), jnp.int32)}
    text = compiled.lower(train_state, {k: jax.ShapeDtypeStruct(*v) for k, v in shapes.items()}).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text


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
        size = batch["label"].shape[1:3]
        geometry = Geometry(batch["valid_size"], batch["native_size"], size, size, False)
        return task.measure(Maps({"logits": logits}), batch, geometry)

    compiled = compilation.compile_eval(lambda axis: answer, mesh, "jit")
    batches = eval_batches(source, RGB, Loading("threads"), divisor=4, batch_size=4)
    summary = Evaluator(compiled, task, batches, mesh, "jit")({})
    matrix = np.zeros((3, 3), int)
    for image, label in zip(images, labels, strict=True):
        for t, p in zip(label.ravel(), (image[..., 0] // 100).ravel(), strict=True):
            if t != 255:
                matrix[t, p] += 1
    expected = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    np.testing.assert_allclose(list(summary["iou_per_class"].values()), expected)
    assert summary["pixels"] == matrix.sum()


IGNORED = {
    "multiclass": ({}, ("logits", "aux")),
    "weights": ({"class_weights": (0.0, 1.0, 3.0), "label_smoothing": 0.1, "dice": 1.0}, ("logits", "aux")),
    "ohem": ({"ohem_fraction": 0.3, "dice": 1.0, "dice_over": "batch"}, ("logits",)),
    "binary": ({"mode": "binary", "class_weights": (1.0, 4.0), "label_smoothing": 0.1, "dice": 1.0}, ("logits",)),
    "multilabel": ({"mode": "multilabel", "ohem_fraction": 0.5, "dice": 1.0}, ("logits",)),
    "centres": ({}, ("logits", "centre", "offset")),
}


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("case", IGNORED)
def test_ignored_pixels_have_no_gradient_whatever_the_outputs(case, poison):
    settings, names = IGNORED[case]
    mode, things = settings.get("mode", "multiclass"), (1, 2) if "centre" in names else ()
    kind = "multilabel" if mode == "multilabel" else "multiclass"
    spec = DatasetSpec(("a", "b", "c")[: 2 if mode == "binary" else 3], mode=kind, things=things)
    task = make_task(spec, "panoptic" if things else "semantic", **settings)
    random = np.random.default_rng(0)
    label = random.integers(0, len(spec.classes), (2, 6, 8)).astype(np.uint8)
    label[:, 1:4, 2:6] = 255
    label[0, 3] = 255
    ignored = label == 255
    batch = {"label": label, "instance": np.where(ignored, 0, label).astype(np.uint16)}
    if mode == "multilabel":
        batch["label"] = np.where(ignored[..., None], 255, label[..., None] == np.arange(3)).astype(np.uint8)
    batch = {key: jnp.asarray(x) for key, x in batch.items()}
    shapes = {key: (2, 6, 8, task.spec.num_logits if key in ("logits", "aux") else 2) for key in names} | (
        {"centre": (2, 6, 8)} if things else {}
    )
    clean = {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    broken = {
        key: np.where(ignored.reshape(2, 6, 8, *[1] * (x.ndim - 3)), np.float32(poison), x) for key, x in clean.items()
    }
    slopes = jax.jit(jax.value_and_grad(lambda outputs: task.objective.loss(outputs, batch)[0]))
    (value, found), (expected, right) = slopes(broken), slopes(clean)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for key in names:
        assert not np.asarray(found[key])[ignored].any() and np.asarray(right[key]).any()
        np.testing.assert_allclose(found[key], right[key], rtol=1e-5, atol=1e-8)
