import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax import checks
from segjax.checks import UserError
from segjax.config import default_config
from segjax.train import optimizer

pytestmark = pytest.mark.core

SCHEDULES = ("constant", "step", "exponential", "polynomial", "cosine", "one_cycle")
OPTIMIZERS = ("sgd", "adam", "adamw", "lion", "lamb")
STEPS, WARMUP, PEAK = 100, 20, 0.5
FLAT = {"schedule": "constant", "learning_rate": 0.1}


def tree(kernel, bias):
    layer = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    return {"conv": layer, "norm": {"scale": layer["bias"], "bias": layer["bias"]}}


def run(tx, params, gradients):
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("end_factor", [0.0, 0.2])
@pytest.mark.parametrize(
    ("name", "middle", "last"),
    [
        ("constant", lambda e: 1.0, lambda e: 1.0),
        ("step", lambda e: 0.1, lambda e: 0.01),  # step 60 is the first milestone
        ("exponential", lambda e: max(0.1**0.5, e), lambda e: max(0.1, e)),
        ("polynomial", lambda e: e + (1 - e) * 0.5**0.9, lambda e: e),
        ("cosine", lambda e: e + (1 - e) * 0.5, lambda e: e),
        ("one_cycle", lambda e: e + (1 - e) * 0.5, lambda e: e),
    ],
)
def test_schedule_values(name, middle, last, end_factor):
    rate = optimizer.make_schedule(STEPS, WARMUP, name=name, learning_rate=PEAK, end_factor=end_factor)
    first = PEAK / 25 if name == "one_cycle" else 0.0
    expected = {
        0: first,
        WARMUP // 2: (first + PEAK) / 2,
        WARMUP: PEAK,
        (STEPS + WARMUP) // 2: PEAK * middle(end_factor),
        STEPS: PEAK * last(end_factor),
        2 * STEPS: PEAK * last(end_factor),
    }
    if name == "exponential":
        del expected[2 * STEPS]
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-5, atol=1e-7, err_msg=f"step {step}")
        np.testing.assert_array_equal(jax.jit(rate)(jnp.int32(step)), np.float32(rate(step)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_has_no_jump_at_the_end_of_the_warmup(name):
    rate = optimizer.make_schedule(10_000, 5_000, name=name, learning_rate=PEAK)
    around = [float(rate(step)) for step in range(4_990, 5_011)]
    assert np.abs(np.diff(around)).max() < PEAK * 1e-3
    assert max(around) == pytest.approx(PEAK, rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 0), (3, 3), (7, 2)])
def test_schedule_of_a_tiny_run_is_finite_and_bounded(name, steps, warmup):
    milestones = (max(0.6, warmup / steps), 1.0)
    rate = optimizer.make_schedule(steps, warmup, name=name, learning_rate=PEAK, milestones=milestones)
    values = np.array([rate(step) for step in range(steps + 3)])
    assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= PEAK * (1 + 1e-6)


def test_step_schedule_multiplies_at_each_milestone():
    rate = optimizer.make_schedule(10, 2, name="step", learning_rate=1.0, decay_rate=0.5, milestones=(0.4, 0.4, 0.8))
    np.testing.assert_allclose([rate(s) for s in range(2, 10)], [1, 1, 0.25, 0.25, 0.25, 0.25, 0.125, 0.125])


def test_one_cycle_without_warmup_rises_for_30_percent():
    rate = optimizer.make_schedule(STEPS, name="one_cycle", learning_rate=PEAK)
    assert int(np.argmax([rate(step) for step in range(STEPS)])) == 30
    parity = optax.cosine_onecycle_schedule(STEPS, PEAK, 0.3, 25.0, 1e9)
    with jax.numpy_dtype_promotion("standard"):
        expected = [parity(step) for step in range(STEPS)]
    np.testing.assert_allclose([rate(step) for step in range(STEPS)], expected, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_reduce_a_quadratic(name, accumulate):
    target = tree([[1.0, -2.0]], [0.5])

    def loss(params):
        return sum(jnp.sum((p - t) ** 2) for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True))

    tx, _ = optimizer.make_optimizer(
        100, 5, name=name, learning_rate=0.05, clip=1.0, accumulate=accumulate, weight_decay=0.0
    )
    params = jax.tree.map(lambda t: t + 1.0, target)
    state, before = tx.init(params), loss(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(100):
        params, state = step(params, state)
    assert loss(params) < 0.1 * before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_arrays_and_follows_from_shapes(name):
    tx, _ = optimizer.make_optimizer(10, name=name, clip=1.0, accumulate=2)
    params = tree(np.ones((2, 3)), np.ones(3))
    state, shapes = tx.init(params), jax.eval_shape(tx.init, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, shapes)
    _, after = jax.eval_shape(tx.update, params, state, params)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)


def numpy_steps(name, w, gradients, decay, rate=0.1, momentum=0.9, b1=0.8, b2=0.99, eps=1e-3):
    """The published update rules (sgd and adam as in torch.optim, which adds the decay to the gradient)."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        if name in ("sgd", "adam"):
            g = g + decay * w
        if name == "sgd":
            m = momentum * m + g
            w = w - rate * m
        elif name == "lion":
            w = w - rate * (np.sign(b1 * m + (1 - b1) * g) + decay * w)
            m = b2 * m + (1 - b2) * g
        else:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            update = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
            if name in ("adamw", "lamb"):
                update = update + decay * w
            if name == "lamb":
                update = update * np.linalg.norm(w) / np.linalg.norm(update)
            w = w - rate * update
    return w


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_follow_their_formulas(name):
    rng = np.random.default_rng(0)
    kernel, gradients = rng.normal(size=(3, 2)), rng.normal(size=(4, 3, 2))
    bias, bias_gradients = rng.normal(size=2), rng.normal(size=(4, 2))
    tx, _ = optimizer.make_optimizer(10, name=name, b1=0.8, b2=0.99, eps=1e-3, weight_decay=0.3, **FLAT)
    found = run(tx, tree(kernel, bias), [tree(g, b) for g, b in zip(gradients, bias_gradients, strict=True)])
    np.testing.assert_allclose(found["conv"]["kernel"], numpy_steps(name, kernel, gradients, 0.3), rtol=1e-4, atol=1e-5)
    for leaf in (found["conv"]["bias"], found["norm"]["scale"]):
        np.testing.assert_allclose(leaf, numpy_steps(name, bias, bias_gradients, 0.0), rtol=1e-4, atol=1e-5)


def test_adam_is_not_adamw():
    kernel, gradients = np.full((1, 2), 3.0), [np.array([[1.0, -1.0]])] * 2
    found = [numpy_steps(name, kernel, gradients, 0.3) for name in ("adam", "adamw")]
    assert np.abs(found[0] - found[1]).max() > 1e-2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_spares_norms_and_biases(name):
    params = tree([[2.0, -3.0]], [4.0, 5.0])
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx, _ = optimizer.make_optimizer(10, name=name, weight_decay=0.1, **FLAT)
    found = run(tx, params, [zeros] * 3)
    assert (jnp.abs(found["conv"]["kernel"]) < jnp.abs(params["conv"]["kernel"])).all()
    np.testing.assert_array_equal(found["conv"]["bias"], params["conv"]["bias"])
    np.testing.assert_array_equal(found["norm"]["scale"], params["norm"]["scale"])


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulation_equals_one_step_on_the_mean_gradient(name):
    rng = np.random.default_rng(1)
    params = tree(rng.normal(size=(3, 2)), rng.normal(size=2))
    gradients = [tree(rng.normal(size=(3, 2)), rng.normal(size=2)) for _ in range(6)]
    means = [jax.tree.map(lambda *g: sum(g) / 3, *gradients[i : i + 3]) for i in (0, 3)]
    options = {"name": name, "learning_rate": 0.1, "schedule": "polynomial", "power": 1.0, "clip": 0.5}
    accumulated, rate = optimizer.make_optimizer(6, accumulate=3, **options)
    plain, plain_rate = optimizer.make_optimizer(2, **options)
    assert [float(rate(i)) for i in range(6)] == [float(plain_rate(i // 3)) for i in range(6)]
    found, expected = run(accumulated, params, gradients), run(plain, params, means)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    unchanged = run(accumulated, params, gradients[:2])
    jax.tree.map(np.testing.assert_array_equal, unchanged, params)


@pytest.mark.parametrize(("norm", "expected"), [(10.0, 1.0), (0.5, 0.5)])
def test_clipping_bounds_the_global_norm(norm, expected):
    gradient = tree([[3.0, 4.0]], [0.0])
    gradient = jax.tree.map(lambda g: g * (norm / 5), gradient)
    tx, _ = optimizer.make_optimizer(10, name="sgd", momentum=0.0, weight_decay=0.0, clip=1.0, **FLAT)
    update, _ = tx.update(gradient, tx.init(gradient), gradient)
    np.testing.assert_allclose(np.linalg.norm(update["conv"]["kernel"]), 0.1 * expected, rtol=1e-6)


def test_schedule_reaches_the_optimizer():
    one = {"kernel": jnp.ones(())}
    tx, rate = optimizer.make_optimizer(8, 2, name="sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.5)
    state = tx.init(one)
    for step in range(8):
        update, state = tx.update(one, state, one)
        np.testing.assert_allclose(-update["kernel"], rate(step), rtol=1e-6, atol=1e-8)


def test_strict_promotion_is_restored():
    tx, rate = optimizer.make_optimizer(8)
    one = {"kernel": jnp.ones(())}
    tx.update(one, tx.init(one), one)
    rate(jnp.int32(3))
    with pytest.raises(Exception, match="promotion"):
        jnp.int32(1) + jnp.float32(1)


def test_signature_equals_the_configuration():
    defaults = {
        k: p.default
        for k, p in inspect.signature(optimizer.make_optimizer).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }
    assert defaults == default_config().optimizer.to_dict()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "adamv"}, ["optimizer.name", "adamv", "sgd, adam", "Did you mean"]),
        ({"schedule": "cosin"}, ["optimizer.schedule", "Did you mean 'cosine'"]),
        ({"warmup": 11}, ["run.warmup=11", "10"]),
        ({"steps": 0}, ["run of 0"]),
        ({"warmup": -1}, ["run.warmup=-1"]),
        ({"schedule": "step", "warmup": 7}, ["optimizer.milestones", "0.7"]),
    ],
)
def test_errors_name_the_key_and_the_fix(options, words):
    options = {"steps": 10} | options
    with pytest.raises(UserError) as error:
        optimizer.make_optimizer(**options)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("key", "bad", "good"),
    [
        ("learning_rate", -1e-3, 0.0),
        ("end_factor", -0.1, 2.0),
        ("power", 0.0, 0.9),
        ("decay_rate", 0.0, 0.1),
        ("milestones", (0.5, 60.0), (0.0, 1.0)),
        ("momentum", 1.0, 0.0),
        ("b1", 1.0, 0.0),
        ("b2", 1.0, 0.0),
        ("eps", -1e-8, 0.0),
        ("weight_decay", -1.0, 0.0),
        ("clip", -1.0, 0.0),
        ("accumulate", 0, 1),
        ("backbone_factor", -0.1, 0.0),
        ("layer_decay", 0.0, 1.0),
        ("frozen", (1,), ("backbone",)),
        ("name", "adamv", "lamb"),
        ("schedule", "cosin", "one_cycle"),
    ],
)
def test_each_key_has_its_range(key, bad, good):
    checks.check_section("optimizer", optimizer.make_optimizer, {key: good})
    with pytest.raises(UserError, match=f"optimizer.{key}="):
        checks.check_section("optimizer", optimizer.make_optimizer, {key: bad})


@pytest.mark.parametrize(("key", "built"), [("name", OPTIMIZERS), ("schedule", SCHEDULES)])
def test_choices_are_those_that_can_be_built(key, built):
    assert checks.keys_of(optimizer.make_optimizer)[key].key.range == built
    for choice in built:
        optimizer.make_optimizer(10, **{key: choice})


# Groups: parameters of two layers, apart and stacked as nn.scan stacks them, before a head.
ORDER = ("backbone/stem", "backbone/block_0", "backbone/block_1")
GROUPS = {"backbone_factor": 0.5, "layer_decay": 0.2}
FACTORS = {"stem": 0.5 * 0.04, "block_0": 0.5 * 0.2, "block_1": 0.5}


def grouped(seed):
    rng = np.random.default_rng(seed)
    layers = {name: tree(rng.normal(size=(3, 2)), rng.normal(size=2)) for name in FACTORS}
    return {"backbone": layers, "head": tree(rng.normal(size=(3, 2)), rng.normal(size=2))}


def stacked(params):
    layers = params["backbone"]
    blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), layers["block_0"], layers["block_1"])
    return params | {"backbone": {"stem": layers["stem"], "blocks": blocks}}


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_factor_is_the_optimizer_with_another_learning_rate(name, accumulate):
    options = {"name": name, "weight_decay": 0.3, "schedule": "cosine", "accumulate": accumulate}
    tx, _ = optimizer.make_optimizer(8, 2, ORDER, learning_rate=0.1, **GROUPS, **options)
    rates = {layer: 0.1 * factor for layer, factor in FACTORS.items()} | {"head": 0.1}
    params, gradients = grouped(0), [grouped(i) for i in range(1, 7)]
    labels = {
        "backbone": {layer: jax.tree.map(lambda _, layer=layer: layer, params["head"]) for layer in FACTORS},
        "head": jax.tree.map(lambda _: "head", params["head"]),
    }
    each = {layer: optimizer.make_optimizer(8, 2, learning_rate=rate, **options)[0] for layer, rate in rates.items()}
    found, expected = (run(t, params, gradients) for t in (tx, optax.multi_transform(each, labels)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    assert not np.array_equal(found["backbone"]["stem"]["conv"]["bias"], params["backbone"]["stem"]["conv"]["bias"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lion"])  # lamb's ratio is of a whole array
def test_layers_that_are_stacked_learn_as_those_that_are_not(name):
    options = {"name": name, "weight_decay": 0.3, **GROUPS, **FLAT}
    params, gradients = grouped(0), [grouped(i) for i in range(1, 4)]
    apart, _ = optimizer.make_optimizer(4, 0, ORDER, **options)
    together, _ = optimizer.make_optimizer(4, 0, ("backbone/stem", "backbone/blocks", "backbone/blocks"), **options)
    expected = stacked(run(apart, params, gradients))
    found = run(together, stacked(params), [stacked(gradient) for gradient in gradients])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize("groups", [{}, GROUPS])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_leave_the_state_as_optax_makes_it(name, groups):
    """Checkpoints from before there were groups restore, and groups may change between two starts of a run."""

    def rate(count):
        return count * 0.1

    def mask(params):
        return jax.tree.map(lambda _: True, params)

    reference = {
        "sgd": lambda: optax.chain(optax.add_decayed_weights(0.0, mask), optax.sgd(rate, 0.9)),
        "adam": lambda: optax.chain(optax.add_decayed_weights(0.0, mask), optax.adam(rate)),
        "adamw": lambda: optax.adamw(rate, mask=mask),
        "lion": lambda: optax.lion(rate, mask=mask),
        "lamb": lambda: optax.lamb(rate, mask=mask),
    }[name]()
    params = grouped(0)
    tx, _ = optimizer.make_optimizer(8, 2, ORDER, name=name, **groups)
    found, expected = tx.init(params), reference.init(params)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)
    assert jax.tree.structure(tx.update(params, found, params)[1]) == jax.tree.structure(found)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone_factor": 0.5}, ["optimizer.backbone_factor=0.5", "backbone"]),
        ({"layer_decay": 0.5}, ["optimizer.layer_decay=0.5", "layer"]),
    ],
)
def test_a_factor_without_effect_is_a_fault(options, words):
    params = {"head": grouped(0)["head"]}
    tx, _ = optimizer.make_optimizer(8, 0, ORDER, **options)
    with pytest.raises(UserError) as error:
        tx.init(params)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("frozen", "words"),
    [
        (("backbone/block_2",), ["optimizer.frozen", "'backbone/block_2'", "'backbone/block_0'", "'backbone/block_1'"]),
        (("block_0",), ["'block_0'", "backbone/block_0"]),
        (("backbone", "back"), ["optimizer.frozen", "'back'"]),
        (("backbone", "head"), ["optimizer.frozen", "('backbone', 'head')"]),
    ],
)
def test_a_frozen_part_that_is_not_there_is_a_fault(frozen, words):
    tx, _ = optimizer.make_optimizer(8, frozen=frozen)
    with pytest.raises(UserError) as error:
        tx.init(grouped(0))
    assert all(word in str(error.value) for word in words)
