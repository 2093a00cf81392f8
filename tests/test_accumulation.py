"""Accumulated gradients are those of one large batch, however unevenly labelled pixels are spread over the batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from parts import make_task
from tiny_runs import tiny

from segjax import losses, objectives, parallel
from segjax.checks import UserError
from segjax.models.network import Network
from segjax.nn.layers import Conv
from segjax.spec import DatasetSpec, Preprocess
from segjax.train import accumulation, compilation, components, loop, optimizer, state, step

pytestmark = pytest.mark.core

NAMES, COUNT, BATCHES = ("a", "b", "c"), 12, 3
OUTPUTS = {"logits": 3, "aux": 3, "centre": 0, "offset": 2}


class TwoLayers(Network):
    """A network without norm that has any outputs."""

    norm: str = "none"
    wanted: tuple[str, ...] = ("logits",)

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(Conv(4, 3, 2, use_bias=True, name="conv")(images))
        heads = {key: Conv(self.num_logits if key in ("logits", "aux") else OUTPUTS[key] or 1, 1, name=key)(x)
                 for key in self.wanted}  # fmt: skip
        return {key: x if OUTPUTS[key] else x[..., 0] for key, x in heads.items()}


def uneven(objective, mode):
    """A batch whose first third has few labelled pixels, the second none, the last all; classes are uneven too."""
    random = np.random.default_rng(0)
    label = random.choice(3, (COUNT, 12, 16), p=(0.7, 0.2, 0.1)).astype(np.uint8)
    label[:4] = np.where(random.random((4, 12, 16)) < 0.95, 255, 2)
    label[4:8] = 255
    index = np.arange(COUNT, dtype=np.int32)
    batch = {"image": random.integers(0, 256, (COUNT, 12, 16, 3), np.uint8), "label": label, "index": index}
    if mode == "multilabel":
        batch["label"] = np.where(label[..., None] == 255, 255, label[..., None] == np.arange(3)).astype(np.uint8)
    if objective.needs_instances:
        batch["instance"] = np.where((label == 1) | (label == 2), 1 + np.arange(16) // 8, 0).astype(np.uint16)
    return batch | {"position": index}


def updated(task, net, how, batches, updates=2, fsdp=False, mode="jit"):
    """Parameters after a few updates on one large batch, or on its parts."""
    mesh = parallel.make_mesh(transform=mode, fsdp=fsdp)
    tx, _ = optimizer.make_optimizer(
        updates * batches, 0, (), task.objective.num_parts, accumulate=batches, learning_rate=0.1, **how
    )
    train_state = state.init_state(net, tx, (COUNT, 12, 16, 3), False, 0, mesh, fsdp)
    shardings = parallel.state_shardings(mesh, train_state, fsdp) if mode == "jit" else None
    compiled = compilation.compile_train(
        lambda axis: step.make_train_step(net, task.objective, tx, Preprocess(), {}, 0, 9, 0.0, axis),
        mesh, mode, shardings, donate=False,
    )  # fmt: skip
    batch, size = uneven(task.objective, task.spec.mode), COUNT // batches
    for i in range(updates * batches):
        start = i % batches * size
        part = {key: value[start : start + size] for key, value in batch.items()}
        train_state, _ = compiled(train_state, parallel.put_batch(mesh, part, mode))
    return jax.device_get(train_state.params)


SGD = {"name": "sgd", "weight_decay": 1e-3}
ADAMW = {"name": "adamw", "clip": 0.05, "eps": 1e-4, "schedule": "constant"}
CASES = {  # objective's settings, outputs of the network, optimiser, parts
    "cross_entropy": ({}, ("logits",), SGD, 1),
    "class_weights": ({"class_weights": (0.1, 1.0, 5.0)}, ("logits", "aux"), ADAMW, 1),
    "dice": ({"dice": 1.0, "label_smoothing": 0.1, "aux": 0.4}, ("logits", "aux"), ADAMW, 2),
    "ohem": ({"ohem_fraction": 0.3}, ("logits",), SGD, 1),
    "binary": ({"mode": "binary", "class_weights": (1.0, 4.0)}, ("logits",), SGD, 1),
    "multilabel": ({"mode": "multilabel", "dice": 0.5}, ("logits",), SGD, 2),
    "centres": ({"small_weight": 2.0}, ("logits", "centre", "offset"), ADAMW, 3),
    "no_offsets": ({"offset": 0.0}, ("logits", "centre", "offset"), SGD, 2),
}


def problem(case):
    settings, outputs, how, parts = CASES[case]
    names = NAMES[:2] if settings.get("mode") == "binary" else NAMES
    mode = "multilabel" if settings.get("mode") == "multilabel" else "multiclass"
    spec = DatasetSpec(names, mode=mode, things=(1, 2) if "centre" in outputs else ())
    task = make_task(spec, "panoptic" if "centre" in outputs else "semantic", **settings)
    assert task.objective.num_parts == parts
    return task, TwoLayers(task.spec.num_logits, wanted=outputs), how


def near(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), found, expected)


QUICK = ("cross_entropy", "class_weights")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_parts_of_a_batch_make_the_update_of_the_whole(case):
    near(updated(*problem(case), BATCHES), updated(*problem(case), 1))


@pytest.mark.parametrize("how", [{"mode": "pmap"}, pytest.param({"fsdp": True}, marks=pytest.mark.slow)], ids=str)
def test_devices_share_the_sums(how):
    near(updated(*problem("dice"), BATCHES, **how), updated(*problem("dice"), 1))


def test_the_last_batch_divides_by_all_weights():
    """By hand: v / w of two batches is neither the mean of their means nor, without any weight, a NaN."""
    tx = accumulation.accumulate(optax.sgd(1.0), 2, parts=2)
    params = {"kernel": jnp.zeros(())}
    opt_state = tx.init(params)
    for gradients, divisors, expected in (((6.0, 1.0), (1.0, 0.0), 0.0), ((2.0, 5.0), (3.0, 0.0), -3.0)) * 2:
        trees = tuple({"kernel": jnp.float32(g)} for g in gradients)
        update, opt_state = tx.update(trees, opt_state, params, divisors=jnp.array(divisors))
        assert update["kernel"] == expected
    with pytest.raises(UserError, match=r"1 parts.*accumulated for 2.*num_parts"):
        tx.update(trees[:1], opt_state, params, divisors=jnp.ones(1))


@pytest.mark.parametrize("case", ["dice", "no_offsets"])
def test_parts_of_a_loss_sum_to_it(case):
    task, net, _ = problem(case)
    batch = {key: jnp.asarray(x) for key, x in uneven(task.objective, task.spec.mode).items()}
    images = batch["image"].astype(jnp.float32) / 255
    outputs, _ = jax.jit(net.init_with_output, static_argnums=2)(jax.random.key(0), images, True)
    loss, _, parts = jax.jit(task.objective.loss.compute)(outputs, batch)
    assert set(parts) == set(task.objective.loss.parts)
    np.testing.assert_allclose(sum(share for share, _ in parts.values()), loss, rtol=1e-6)


def test_sums_of_the_whole_batch_are_refused(tmp_path):
    config = tiny(tmp_path)
    config.optimizer.accumulate = 2
    config.objective.dice, config.objective.dice_over = 1.0, "batch"
    with pytest.raises(UserError, match=r"(?s)objective.dice_over='batch'.*optimizer.accumulate"):
        loop.train_and_evaluate(config, str(tmp_path / "run"))


def test_a_loss_without_divisors_is_refused(tmp_path):
    """Also where it replaces the loss of an objective that has them."""
    config = tiny(tmp_path)
    config.optimizer.accumulate = 2
    source = components.open_source(config, "train")
    pixels = objectives.create("pixels", source.spec)

    def focal(outputs, batch, key=None, progress=None, axis_name=None):
        label, valid = losses.split_ignore(batch["label"], 255)
        nats = losses.cross_entropy(outputs["logits"], label)
        mean, divisor = losses.mean_and_divisor(nats * (1 - jnp.exp(-nats)) ** 2, valid, axis_name)
        return mean, {"focal": mean}, {"focal": (mean, divisor)}

    def training(loss):
        parts = components.build_components(config, source.spec, objective=pixels._replace(loss=loss))
        return components.make_training(config, parts, components.train_batches(config, parts, source))

    with pytest.raises(UserError, match=r"optimizer.accumulate.*LossOfMeans"):
        training(lambda *args: focal(*args)[:2])
    assert training(objectives.LossOfMeans(("focal",), focal)).shapes.opt_state.divisors.shape == (1,)
