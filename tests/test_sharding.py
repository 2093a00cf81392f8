"""Rows of images and parameters divided over devices: the same numbers, and no map gathered on the way."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from parts import make_task

from segjax import infer, models, parallel, spatial
from segjax.checks import UserError
from segjax.config import default_config
from segjax.data.sources.arrays import arrays
from segjax.nn import resize
from segjax.nn.kernels import convolution, max_pool
from segjax.nn.layers import ConvNorm, UpConv2x2
from segjax.objectives import centre_grouping
from segjax.spec import DatasetSpec, Geometry, Preprocess
from segjax.tasks.objects import vote
from segjax.train import checkpoint, compilation, optimizer, state, step
from segjax.train.loop import train_and_evaluate
from segjax.train.restore import evaluate_workdir

RGB = Preprocess(mean=(127.5,) * 3, std=(64.0,) * 3)
SPEC = DatasetSpec(("a", "b", "c"), things=(1, 2))
TOP_K = 8
TASKS = {
    "unet": {"dice": 0.5, "ohem_fraction": 0.5},
    "deeplabv3plus": {},
    "panoptic_deeplab": {"name": "panoptic", "divisor": 20, "centre": 1.0, "top_k": TOP_K, "stuff_area": 4},
}
MODELS = {
    "unet": {"widths": (4, 8, 8)},
    "deeplabv3plus": {"backbone": "resnet_micro", "width": 8, "low_width": 8, "dropout": 0.0},
    "panoptic_deeplab": {"backbone": "resnet_micro", "width": 8, "dropout": 0.0, "atrous_rates": (6, 18)},
}


@pytest.fixture
def smooth(monkeypatch):
    """Softplus for ReLU: rounding decides on which side of a kink a zero lies, and so on far more than rounding."""

    def soften(method, args, kwargs, context):
        if isinstance(context.module, ConvNorm) and context.module.activation is not None:
            object.__setattr__(context.module, "activation", nn.softplus)
        return method(*args, **kwargs)

    monkeypatch.setattr(nn, "relu", nn.softplus)
    with nn.intercept_methods(soften):
        yield


def batch_of(name, size, count=4):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (count, *size, 3), np.uint8)
    label = image.argmax(-1).astype(np.uint8)
    label[0, :3], label[1, :9] = 255, 255
    index = np.arange(count, dtype=np.int32)
    batch = {"image": image, "label": label, "index": index, "position": index}
    batch |= {key: np.array([size] * count, np.int32) for key in ("valid_size", "native_size")}
    if name == "panoptic_deeplab":
        batch["instance"] = (random.integers(1, 6, label.shape) * ((label > 0) & (label < 255))).astype(np.uint16)
    return batch


def gathers(text):
    """Dtypes and shapes of what a program gathers or exchanges whole."""
    lines = re.findall(r"= (.*?) (?:all-gather|all-to-all)(?:-start)?\(", text)
    arrays = [found for line in lines for found in re.findall(r"(\w+)\[([\d,]*)\]", line)]
    return [(dtype, tuple(map(int, shape.split(",")))) for dtype, shape in arrays]


@functools.cache
def one_step(name, rows, devices, size=(64, 32)):
    """Outputs, gradients and the next state of a training step; and the compiled program's text."""
    mesh = parallel.make_mesh(devices=devices, space=rows)
    task = make_task(SPEC, **TASKS[name])
    model, tx = models.create(name, task.spec, **MODELS[name]), optax.sgd(0.1, momentum=0.9)

    def make(axis):
        train = step.make_train_step(model, task.objective, tx, RGB, {"noise": 0.1, "contrast": 0.1}, 0, 9, 0.9, axis)

        def both(train_state, batch):
            outputs = model.apply(train_state.variables(False), step.normalise(batch["image"], RGB), train=False)
            new, scalars = train(train_state, batch)
            return {"outputs": outputs, "gradients": new.opt_state[0].trace, "state": new, "scalars": scalars}

        return both

    train_state = state.init_state(model, tx, (4, *size, 3), True, 0, mesh)
    batch = parallel.put_batch(mesh, batch_of(name, size), "jit")
    compiled = jax.jit(compilation._on_mesh(make(None), mesh), out_shardings=parallel.replicated_sharding(mesh))
    compiled = compiled.lower(train_state, batch).compile()
    return jax.device_get(compiled(train_state, batch)), compiled.as_text()


@pytest.mark.slow
@pytest.mark.usefixtures("smooth")
@pytest.mark.parametrize(
    "name, rows",
    [
        ("unet", 2),
        ("unet", 4),
        ("deeplabv3plus", 4),
        ("panoptic_deeplab", 2),
    ],
)
def test_a_training_step_is_that_of_one_device(name, rows):
    """Batch norm, losses, pyramids wider than a device's rows, resizing, pooling, colour; 1 x 4 devices, and 2 x 2.

    Outputs, scalars, the new state, and gradients: to 1e-5 of the largest. And no map is gathered.
    """
    one, _ = one_step(name, 1, 1)
    assert min(map(np.ptp, jax.tree.leaves(one["outputs"]))) > 1e-3
    other, text = one_step(name, rows, 4)
    # The outputs are gathered as results of the program, along one axis and the other; a step alone has none.
    shapes = [x.shape for x in jax.tree.leaves(one["outputs"])]
    results = {(n // i, h // j, *rest) for n, h, *rest in shapes for i in (1, 4 // rows) for j in (1, rows)}
    assert "collective-permute" in text and {shape for _, shape in gathers(text)} <= results
    assert len(gathers(text)) <= len(shapes) * ((rows > 1) + (rows < 4))
    for part, tree in one.items():
        scale = max(np.abs(x).max() for x in jax.tree.leaves(tree))
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(other[part]), strict=True):
            message = part + jax.tree_util.keystr(path)
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * min(1.0, scale), err_msg=message)


def divided(f, mesh):
    """A function of maps and of other arrays, compiled with the rows of the maps divided."""

    def run(maps, *others):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return f(jax.lax.with_sharding_constraint(maps, NamedSharding(mesh, P("data", "space"))), *others)

    return jax.jit(run)


def check(f, x, *others, exact=False):
    """Results and gradients on 2 x 2 and 1 x 4 devices are those of one, and nothing is gathered."""

    def both(x, *others):
        y, pull = jax.vjp(f, x, *others)
        results = y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))
        # Where rows do not come out even a result could not lie divided, so they are made to.
        return jax.tree.map(lambda a: spatial.pad_rows_to_shards(a) if a.ndim == 4 else a, results)

    one = jax.jit(both)(x, *others)
    for rows in (2, 4):
        compiled = divided(both, parallel.make_mesh(space=rows)).lower(x, *others).compile()
        assert not gathers(compiled.as_text())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(compiled(x, *others)), strict=True):
            b = b[:, : a.shape[1]] if b.ndim == 4 else b
            np.testing.assert_allclose(b, a, rtol=0, atol=0 if exact else 1e-5 * max(1, np.abs(a).max()))


def maps(rows, columns=6, channels=3, count=2):
    return jax.random.normal(jax.random.key(rows), (count, rows, columns, channels))


@pytest.mark.slow
@pytest.mark.parametrize("rows, target", [(8, 16), (4, 64), (16, 8), (9, 31), (5, 40), (1, 8)])
def test_resizing(rows, target):
    """By whole factors a device needs a row of each neighbour, by others and in rows that do not come out even more."""
    check(lambda x: resize.resize(x, (target, 9)), maps(rows))


def test_resizing_of_corners():
    check(lambda x: resize.resize(x, (40, 9), align_corners=True), maps(12))


@pytest.mark.slow
@pytest.mark.parametrize("rows, target", [(8, 16), (9, 31)])
def test_repeating(rows, target):
    check(lambda x: resize.nearest(x, (target, 9)), maps(rows))


def test_resizing_of_parts():
    valid, native = jnp.array([[40, 30], [9, 17]]), jnp.array([[64, 50], [30, 64]])
    check(lambda x: resize.resize_valid_region(x, valid, native, (48, 32), (64, 64)), maps(12))


@pytest.mark.parametrize("rows, by", [(8, 1), (8, -3), (9, 5), (8, -11)])
def test_shifting(rows, by):
    x = maps(rows)
    rows_of = np.arange(rows) + by
    wanted = np.where((rows_of >= 0) & (rows_of < rows), 1, 0)[None, :, None, None] * np.asarray(x)[:, rows_of % rows]
    np.testing.assert_array_equal(spatial.shift_rows(x, by), wanted)
    check(lambda x: spatial.shift_rows(x, by), x, exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("dilation, groups, rows", [(3, 1, 8), (6, 3, 8), (5, 1, 9)])
def test_convolutions_wider_than_a_share_of_the_rows(dilation, groups, rows):
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 3 // groups, 3))
    check(lambda x, k: convolution(x, k, 1, dilation, groups, (dilation, dilation)), maps(rows, 12), kernel)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [8, 10])
def test_halving_and_doubling(rows):
    layer = UpConv2x2(4)
    variables = layer.init(jax.random.key(0), maps(rows))
    check(lambda x, v: layer.apply(v, x), maps(rows), variables)
    check(lambda x: max_pool(x, 2, 2), maps(rows, 8))
    check(lambda x: max_pool(x, 3, 2, padding=(1, 1)), maps(2 * rows, 8))


@pytest.mark.parametrize("rows, k", [(8, 5), (10, 30), (9, 54)])
def test_the_largest_pixels(rows, k):
    """Of equal ones the first, whichever devices they lie on."""
    x = jnp.asarray(np.random.default_rng(0).integers(0, 9, (2, rows, 6)), jnp.float32)
    values, places = jax.lax.top_k(x.reshape(2, -1), k)
    for count in (2, 4):
        compiled = divided(lambda x: spatial.top_k(x, k), parallel.make_mesh(space=count)).lower(x).compile()
        # The tables [b, n] of all devices, and what is found, which has no axis of rows to lie divided.
        assert all(len(shape) == 2 and shape[1] <= count * k for _, shape in gathers(compiled.as_text()))
        found = compiled(x)
        np.testing.assert_array_equal(found[0], values)
        np.testing.assert_array_equal(found[1], places)


@pytest.mark.slow
@pytest.mark.parametrize("name, size, fitted", [("unet", (70, 30), (50, 40)), ("panoptic_deeplab", (64, 32), None)])
def test_evaluation_and_prediction_are_those_of_one_device(name, size, fitted):
    """Any number of rows, the network's input at another size than the label or at the same."""
    task = make_task(SPEC, **TASKS[name])
    model = models.create(name, task.spec, **MODELS[name])
    preprocess = dataclasses.replace(RGB, resize=fitted)
    batch = batch_of(name, size)
    del batch["position"]
    if fitted:
        batch["image"] = batch["image"][:, : fitted[0]].repeat(2, 2)[:, :, : fitted[1]]
        batch["valid_size"] = np.array([[50, 40], [33, 20]] * 2, np.int32)
        batch["native_size"] = np.array([size, (40, 30)] * 2, np.int32)
    found = []
    for rows, devices in ((1, 1), (4, 4)):
        mesh = parallel.make_mesh(devices=devices, space=rows)
        variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
        variables = jax.device_put(variables, parallel.replicated_sharding(mesh))
        evaluate = compilation.compile_eval(
            lambda axis: step.make_eval_step(model, task, preprocess, axis), mesh, "jit"
        )
        compiled = evaluate.lower(variables, parallel.put_batch(mesh, batch, "jit")).compile()
        measured = compiled(variables, parallel.put_batch(mesh, batch, "jit"))
        # Tables [b, n] of the devices' largest peaks, and the results: maps of numbers, on their way to the host.
        kinds = gathers(compiled.as_text())
        assert all((len(shape) == 2 and shape[1] <= rows * TOP_K) or dtype in ("u8", "u16") for dtype, shape in kinds)
        predict = compilation.compile_predict(model, task, preprocess, mesh if rows > 1 else None)
        sizes = (batch[key][:1] for key in ("valid_size", "native_size"))
        place = Geometry(*sizes, batch["image"].shape[1:3], size, fitted is not None)
        predicted = predict(variables, batch["image"][:1], place)
        found.append(jax.device_get((measured, predicted)))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 if a.dtype == np.float32 else 0)


@pytest.mark.slow
def test_grouping_of_rows_that_do_not_come_out_even():
    """Counts of pixels by objects and classes, where a device has fewer rows than others."""
    random = np.random.default_rng(0)
    logits, offset = random.normal(size=(2, 30, 12, 3)), random.normal(size=(2, 30, 12, 2))
    args = [jnp.asarray(x, jnp.float32) for x in (logits, random.random((2, 30, 12)), offset)]
    inside = jnp.ones((2, 30, 12), bool).at[1, 25:].set(False)

    def group(logits, centre, offset):
        instance, confidence, _ = centre_grouping.find_objects(centre, offset, inside, top_k=TOP_K)
        return vote(logits, instance, confidence, inside, things=(1, 2), ignore=255, stuff_area=4)

    compiled = divided(group, parallel.make_mesh(space=4)).lower(*args).compile()
    # What is found cannot lie divided outside of a program: label, instance and semantic are gathered as results.
    maps = [dtype for dtype, shape in gathers(compiled.as_text()) if len(shape) > 2]
    assert len(maps) <= 3 and set(maps) <= {"s32"}
    for a, b in zip(jax.jit(group)(*args), compiled(*args), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-6)


def run(workdir, **parallel_settings):
    """Three steps on crops, then a score of images of several sizes."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (rows, 24, 3), np.uint8) for rows in (32, 27, 30, 32)]
    labels = [image.argmax(-1) for image in images]
    source = arrays("all", data={"all": {"image": images, "label": labels}}, classes=("r", "g", "b"))
    config = default_config(source="arrays")
    config.data.crop, config.data.batch_size, config.eval.batch_size = (24, 16), 4, 4
    config.model.widths, config.run.total, config.loading.loader, config.ema.decay = (8, 16), 3, "threads", 0.9
    config.log.tensorboard = False
    config.parallel.update(parallel_settings)
    sources = {"train": source, "test": source}
    return config, sources, train_and_evaluate(config, str(workdir), sources=sources)


@pytest.mark.slow
def test_a_run_and_its_checkpoint_do_not_depend_on_the_division(tmp_path):
    """Trained with rows and parameters divided; scored, resumed and used on one device, and the reverse."""
    config, sources, one = run(tmp_path / "one", devices=1)
    config, _, four = run(tmp_path / "four", space=2, fsdp=True)
    assert one["pixels"] == four["pixels"] == 24 * (32 + 27 + 30 + 32)
    assert abs(one["mIoU"] - four["mIoU"]) < 1e-3
    config.parallel.update(devices=1, space=1, fsdp=False)
    again = evaluate_workdir(str(tmp_path / "four"), "test", config, sources=sources)
    assert abs(again["mIoU"] - four["mIoU"]) < 1e-3
    image = sources["test"].images[1]
    a, b = (infer.load(str(tmp_path / name))(image).probability for name in ("one", "four"))
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-4)
    config.run.total, config.parallel.devices, config.parallel.fsdp = 4, 4, True
    assert train_and_evaluate(config, str(tmp_path / "one"), sources=sources)["step"] in (3, 4)


@pytest.mark.slow
def test_divided_parameters_are_the_same_parameters(tmp_path):
    """After three steps of AdamW; a device holds its share, before and after, and checkpoints fit either way."""
    task = make_task(SPEC)
    model, tx = (
        models.create("unet", task.spec, widths=(16, 32)),
        optimizer.make_optimizer(10, 0, name="adamw", learning_rate=1e-2)[0],
    )
    states = {}
    for fsdp in (False, True):
        mesh = parallel.make_mesh(fsdp=fsdp)
        train_state = state.init_state(model, tx, (4, 32, 16, 3), True, 0, mesh, fsdp)
        train = compilation.compile_train(
            lambda axis: step.make_train_step(model, task.objective, tx, RGB, {}, 0, 9, 0.9, axis),
            mesh, "jit", parallel.state_shardings(mesh, train_state, fsdp),
        )  # fmt: skip
        shardings = jax.tree.map(lambda x: x.sharding, train_state)
        for _ in range(3):
            train_state, _ = train(train_state, parallel.put_batch(mesh, batch_of("unet", (32, 16)), "jit"))
        assert jax.tree.map(lambda x: x.sharding, train_state) == shardings
        states[fsdp] = train_state
    held, whole = (
        sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(states[fsdp])) for fsdp in (True, False)
    )
    assert held < 0.3 * whole
    same = jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *states.values())
    assert jax.tree.structure(same) is not None
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), states[True])
    with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(3, states[True])
        for devices, fsdp in ((1, False), (2, True)):
            mesh = parallel.make_mesh(devices=devices, fsdp=fsdp)
            read = checkpoints.restore(checkpoints.chosen(), abstract, mesh, fsdp)
            assert jax.tree.map(lambda x: x.sharding, read) == parallel.state_shardings(mesh, abstract, fsdp)
            jax.tree.map(np.testing.assert_array_equal, read, states[True])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"transform": "pmap", "space": 2}, "parallel.transform='jit'"),
        ({"transform": "pmap", "fsdp": True}, "parallel.transform='jit'"),
        ({"space": 3}, r"parallel.space=3 .* 4 devices.*\[1, 2, 4\]"),
        ({"space": 0}, "parallel.space=0"),
        ({"space": 2, "devices": 3}, r"parallel.space=2 .* 3 devices.*\[1, 3\]"),
    ],
)
def test_divisions_that_do_not_come_out_even(settings, message):
    with pytest.raises(UserError, match=message):
        parallel.make_mesh(**settings)


def test_crops_that_do_not_come_out_even(tmp_path):
    mesh = parallel.make_mesh(space=4)
    with pytest.raises(UserError, match=r"data.crop: 30 rows .* use 28 or 32"):
        parallel.check_rows(mesh, 30, 0)
    with pytest.raises(UserError, match="use 4"):
        parallel.check_rows(mesh, 3, 0)
    with pytest.raises(UserError, match=r"preprocess.context"):
        parallel.check_rows(mesh, 32, 92)
    parallel.check_batch(mesh, 3, "data.batch_size")
    with pytest.raises(UserError, match="use 2 or 4"):
        parallel.check_batch(parallel.make_mesh(space=2), 3, "data.batch_size")


def test_folded_maps_have_whole_rows():
    net = models.create("unet", SPEC, widths=(4, 8), pair_columns=True)
    mesh = parallel.make_mesh(devices=4, space=4)
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        pytest.raises(UserError, match=r"model\.pair_columns=False"),
    ):
        jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False))
