"""Parts that do not learn, however a step is compiled."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from parts import make_task

from segjax import models, parallel
from segjax.checks import UserError
from segjax.config import default_config
from segjax.models.network import Network
from segjax.nn.layers import Conv, ConvNorm, LayerConfig
from segjax.spec import DatasetSpec, Preprocess
from segjax.train import compilation, optimizer, state, step
from segjax.train.components import build_components
from segjax.train.loop import train_and_evaluate
from segjax.train.restore import restore
from segjax.train.workdir import read_config

pytestmark = pytest.mark.core

SPEC = DatasetSpec(("a", "b", "c"))


class Body(nn.Module):
    layer_config: LayerConfig

    @nn.compact
    def __call__(self, x, train):
        for name in ("conv1", "conv2"):
            x = self.layer_config.block(ConvNorm)(8, self.layer_config, name=name)(x, train)
        return x


class Tiny(Network):
    @property
    def layer_order(self):
        return ("backbone/conv1", "backbone/conv2")

    @nn.compact
    def __call__(self, images, train):
        x = Body(self.layer_config, name="backbone")(images, train)
        x = ConvNorm(8, self.layer_config, name="neck")(x, train)
        return {"logits": Conv(self.num_logits, 1, use_bias=True, name="head")(x)}


TINY = Tiny(3)


def trained(frozen, net=TINY, fsdp=False, devices=1, mode="jit", accumulate=1, factor=1.0, clip=0.1, steps=4):
    """The states before and after the steps on the host, the last scalars, and the FLOPs of a compiled step."""
    objective = make_task(SPEC).objective
    mesh = parallel.make_mesh(transform=mode, devices=devices, fsdp=fsdp)
    tx, _ = optimizer.make_optimizer(
        4, 0, net.layer_order, name="sgd", learning_rate=1.0, clip=clip, accumulate=accumulate, frozen=frozen,
        backbone_factor=factor, weight_decay=0.0,
    )  # fmt: skip
    first = state.init_state(net, tx, (4, 32, 32, 3), True, 0, mesh, fsdp)
    random = np.random.default_rng(0)
    index = np.arange(4, dtype=np.int32)
    batch = {"image": random.integers(0, 256, (4, 32, 32, 3), np.uint8), "index": index, "position": index}
    batch["label"] = random.integers(0, 3, (4, 32, 32)).astype(np.uint8)
    shardings = parallel.state_shardings(mesh, first, fsdp) if mode == "jit" else None
    compiled = compilation.compile_train(
        lambda axis: step.make_train_step(net, objective, tx, Preprocess(), {}, 0, 4, 0.9, axis, frozen),
        mesh, mode, shardings, donate=False,
    )  # fmt: skip
    batch, last = parallel.put_batch(mesh, batch, mode), first
    flops = compiled.lower(first, batch).compile().cost_analysis()["flops"] if devices == 1 else None
    for _ in range(steps):
        last, scalars = compiled(last, batch)
    return *jax.device_get((first, last, scalars)), flops


def near(a, b, rtol=1e-3, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def moved(a, b):
    """Whether some number of each array moved by much more than `near` lets pass."""
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max() > 1e-3, a, b)))


@pytest.fixture(scope="module")
def plain():
    return trained(("backbone",), accumulate=2)


def test_all_that_is_frozen_stays(plain):
    first, last, _, _ = plain
    for before, after in ((first.params, last.params), (first.batch_stats, last.batch_stats)):
        same(before["backbone"], after["backbone"])
        assert moved(before["neck"], after["neck"])
    for kind in ("params", "batch_stats"):  # the average of equal numbers is rounded
        near(first.ema[kind]["backbone"], last.ema[kind]["backbone"], rtol=1e-6, atol=0)
        assert moved(first.ema[kind]["neck"], last.ema[kind]["neck"])
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(last.opt_state)]
    assert any("neck" in name for name in names) and not any("backbone" in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [{"fsdp": True, "devices": 4}, {"mode": "pmap", "devices": 4}, {"net": Tiny(3, remat=True)}],
    ids=["fsdp", "pmap", "remat"],
)
def test_a_frozen_part_is_frozen_however_the_step_is_compiled(plain, how):
    first, last, scalars, _ = trained(("backbone",), accumulate=2, **how)
    same(first.params["backbone"], last.params["backbone"])
    same(first.batch_stats["backbone"], last.batch_stats["backbone"])
    near(last, plain[1])
    near(scalars, plain[2])


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_the_gradient_of_what_is_frozen_is_not_computed(remat):
    frozen, free = (trained(part, Tiny(3, remat=remat))[3] for part in (("backbone",), ()))
    assert frozen < 0.75 * free


def test_the_gradient_norm_is_that_of_what_learns():
    """One step of rate 1 goes as far as the gradient is long."""
    first, last, scalars, _ = trained(("neck",), clip=0.0, steps=1)
    changes = jax.tree.leaves(jax.tree.map(lambda a, b: a - b, first.params, last.params))
    np.testing.assert_allclose(
        np.sqrt(sum(np.sum(change**2) for change in changes)), scalars["gradient_norm"], rtol=1e-4
    )


def test_what_lies_before_a_frozen_part_learns():
    first, last, _, _ = trained(("neck",))
    same(first.params["neck"], last.params["neck"])
    same(first.batch_stats["neck"], last.batch_stats["neck"])
    assert moved(first.params["backbone"], last.params["backbone"])
    assert moved(first.batch_stats["backbone"], last.batch_stats["backbone"])


@pytest.mark.parametrize("part", ["backbone/conv1", "backbone/conv1/norm"])
def test_a_norm_is_frozen_by_its_own_path_too(part):
    states = trained((part,))[:2]
    stats, params = ([getattr(each, kind)["backbone"] for each in states] for kind in ("batch_stats", "params"))
    same(*(each["conv1"] for each in stats))
    same(*(each["conv1"]["norm"] for each in params))
    assert moved(*(each["conv2"] for each in stats))
    assert moved(*(each["conv1"]["conv"] for each in params)) == (part != "backbone/conv1")


@pytest.mark.slow
def test_folded_maps_are_frozen_too():
    folded, unfolded = (
        trained(("down_0",), models.create("unet", SPEC, widths=(4, 8), pair_columns=f)) for f in (True, False)
    )
    for kind in ("params", "batch_stats"):
        first, last = (getattr(each, kind) for each in folded[:2])
        same(first["down_0"], last["down_0"])
        near(last, getattr(unfolded[1], kind))
        assert moved(first["up_0"], last["up_0"])


def test_groups_and_frozen_parts_go_together():
    """With a factor of 0 the rest of the backbone stays too, but its statistics move."""
    first, last, _, _ = trained(("backbone/conv1",), factor=0.0)
    same(first.params["backbone"], last.params["backbone"])
    assert moved(first.params["neck"], last.params["neck"])
    same(first.batch_stats["backbone"]["conv1"], last.batch_stats["backbone"]["conv1"])
    assert moved(first.batch_stats["backbone"]["conv2"], last.batch_stats["backbone"]["conv2"])


@pytest.mark.slow
def test_groups_and_frozen_parts_are_keys_of_a_configuration(tmp_path):
    """A run of one step: what is frozen stays, and what learns moves by its factor."""

    def moved(**settings):
        config = default_config(source="shapes")
        config.source.count, config.source.size, config.data.crop = 8, (16, 16), (16, 16)
        config.data.batch_size = config.eval.batch_size = 4
        config.run.total, config.loading.loader, config.log.tensorboard = 1, "threads", False
        config.optimizer.name, config.optimizer.momentum, config.optimizer.weight_decay = "sgd", 0.0, 0.0
        with config.optimizer.unlocked():
            config.optimizer.update(settings)
        path = str(tmp_path / str(len(list(tmp_path.iterdir()))))
        train_and_evaluate(config, path, model=Tiny(8))
        saved, spec = read_config(path)
        _, after, _ = restore(saved, spec, path, Tiny(8))
        parts = build_components(saved, spec, None, Tiny(8))
        tx, _ = optimizer.make_optimizer(1, 0, parts.model.layer_order, **saved.optimizer)
        before = state.init_state(parts.model, tx, (1, 16, 16, 3), False, 0, parts.mesh)
        return jax.tree.map(lambda a, b: np.asarray(a - b), after.params, before.params)

    free, slow = moved(), moved(backbone_factor=0.1, layer_decay=0.5)
    factors = {"backbone": {"conv1": 0.05, "conv2": 0.1}, "neck": 1.0, "head": 1.0}
    wanted = jax.tree.map(lambda factor, part: jax.tree.map(lambda x: factor * x, part), factors, free)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-6), slow, wanted)
    held = moved(frozen=("backbone/conv1",))
    assert not any(x.any() for x in jax.tree.leaves(held["backbone"]["conv1"]))
    assert all(x.any() for x in jax.tree.leaves(held["head"]))
    with pytest.raises(UserError, match=r"optimizer.frozen.*'nothing'.*backbone"):
        moved(frozen=("nothing",))
