"""What every model must do; a new one is a line in MODELS."""

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from parts import make_task, quick

from segjax import models, parallel
from segjax.checks import UserError
from segjax.profile.model_cost import model_cost
from segjax.spec import DatasetSpec, Geometry, Preprocess
from segjax.train import compilation, optimizer, state, step

SPEC = DatasetSpec(("a", "b", "c"), things=(1, 2))
# name -> (settings, stride of each output, features of the backbone that it uses)
MODELS = {
    "unet": ({"name": "unet", "widths": (8, 16, 32)}, {"logits": 1}, ()),
    "unet_folded": ({"name": "unet", "widths": (8, 16), "pair_columns": True}, {"logits": 1}, ()),
    "unet_resnet": (
        {"name": "unet", "backbone": "resnet_micro", "widths": (8, 8, 8, 8, 8)}, {"logits": 1},
        ("c1", "c2", "c3", "c4", "c5"),
    ),
    "fcn": (
        {"name": "fcn", "backbone": "resnet_micro", "aux": "c4"}, {"logits": 8, "aux": 8}, ("c4", "c5"),
    ),
    "fcn_8s": ({"name": "fcn", "backbone": "vgg_micro", "head": "8s", "width": 16}, {"logits": 8}, ("c3", "c4", "c5")),
    "fcn_16s": ({"name": "fcn", "backbone": "vgg_micro", "head": "16s", "width": 16}, {"logits": 16}, ("c4", "c5")),
    "fcn_32s": ({"name": "fcn", "backbone": "vgg_micro", "head": "32s", "width": 16}, {"logits": 32}, ("c5",)),
    "deeplabv3": (
        {"name": "deeplabv3", "backbone": "resnet_micro", "width": 16, "aux": "c3", "multi_grid": (1, 2, 4)},
        {"logits": 16, "aux": 8}, ("c3", "c5"),
    ),
    "deeplabv3plus": (
        {"name": "deeplabv3plus", "backbone": "mobilenet_v2_micro", "width": 16}, {"logits": 4}, ("c2", "c5"),
    ),
    "deeplabv3plus_smp": (
        {"name": "deeplabv3plus", "backbone": "resnet_micro", "width": 16, "variant": "smp", "refine": 1, "fuse": 1},
        {"logits": 4}, ("c2", "c5"),
    ),
    "deeplabv3plus_convnext": (
        {"name": "deeplabv3plus", "backbone": "convnext_micro", "width": 16, "separable": False, "pooling": (32, 32)},
        {"logits": 4}, ("c2", "c5"),
    ),
    "panoptic_deeplab": (
        {"name": "panoptic_deeplab", "backbone": "mobilenet_v2_micro", "width": 32},
        {"logits": 4, "centre": 4, "offset": 4}, ("c2", "c3", "c5"),
    ),
    "panoptic_deeplab_plain": (
        {"name": "panoptic_deeplab", "backbone": "resnet_micro", "width": 32, "separable": False},
        {"logits": 4, "centre": 4, "offset": 4}, ("c2", "c3", "c5"),
    ),
    "lraspp": ({"name": "lraspp", "backbone": "mobilenet_v3_micro", "width": 16}, {"logits": 8}, ("c3", "c5")),
    "deeplabv3_group": (
        {"name": "deeplabv3", "backbone": "resnet_micro", "width": 16, "norm": "group"}, {"logits": 16}, ("c5",),
    ),
}  # fmt: skip
CHANNELS = {"logits": (3,), "aux": (3,), "centre": (), "offset": (2,)}
# These have the layers of others (DeepLabs those of Panoptic-DeepLab; see also test_sharding.py), and group norm takes
# no statistics over devices.
ALIKE = ("fcn", "fcn_16s", "fcn_32s", "unet_resnet", "deeplabv3", "deeplabv3_group", "deeplabv3plus")
ALIKE += ("deeplabv3plus_smp", "deeplabv3plus_convnext", "panoptic_deeplab")
TRAINED = [case for case in MODELS if case not in ALIKE]
ODD = (33, 47)


def make(case, **changes):
    return models.create(spec=SPEC, **(MODELS[case][0] | changes))


def images(size=ODD, count=2):
    return jax.random.normal(jax.random.key(1), (count, *size, 3))


@functools.cache
def randomised(model, size=ODD):
    """Variables without zeros: some layers start at zero and would hide what lies before them."""
    variables = jax.jit(lambda: model.init(jax.random.key(0), images(size), train=False))()
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))

    def value(path, x, key):
        name = path[-1].key
        if name in ("scale", "var"):
            return jax.random.uniform(key, x.shape, minval=0.5, maxval=1.5)
        return x if name == "kernel" and jnp.any(x != 0) else 0.1 * jax.random.normal(key, x.shape)

    return jax.tree.unflatten(tree, [value(path, x, key) for (path, x), key in zip(leaves, keys, strict=True)])


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("size", quick(ODD, of=[(64, 96), ODD]))
def test_outputs_have_their_stride(case, size):
    model, strides = make(case), MODELS[case][1]
    out = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images(size), train=False))[0]
    assert out.keys() == strides.keys()
    backbone = MODELS[case][0].get("backbone", "")
    rounded = np.floor if backbone in ("vgg_micro", "convnext_micro") else np.ceil
    for key, stride in strides.items():
        assert out[key].shape == (2, *(int(rounded(n / stride)) for n in size), *CHANNELS[key])
        assert out[key].dtype == jnp.float32


@pytest.mark.parametrize("case", quick("unet", of=MODELS))
def test_gradient_reaches_every_parameter(case):
    model = make(case)
    variables = randomised(model)

    @jax.jit
    @jax.grad
    def gradient(params):
        # With fixed statistics: batch statistics cancel a bias that only feeds a norm, and leave rounding noise.
        out = model.apply(variables | {"params": params}, images(), train=False)
        return sum(jnp.sum(jnp.sin(x)) for x in out.values())

    grads = jax.tree_util.tree_leaves_with_path(gradient(variables["params"]))
    largest = [float(jnp.max(jnp.abs(g))) for _, g in grads]
    for (path, g), value in zip(grads, largest, strict=True):
        assert jnp.all(jnp.isfinite(g)) and value > 1e-4 * np.median(largest), jax.tree_util.keystr(path)


@pytest.mark.parametrize("backbone", ["vgg_micro", "convnext_micro", "resnet_micro"])
@pytest.mark.parametrize("upsampling", ["transposed", "resize", "nearest"])
def test_unet_on_a_backbone_keeps_odd_sizes(backbone, upsampling):
    model = models.create("unet", SPEC, backbone=backbone, upsampling=upsampling)
    out = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images(), train=False))[0]
    assert out["logits"].shape == (2, *ODD, 3)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["deeplabv3"])
def test_the_same_weights_at_every_output_stride(case):
    """Output stride 8 or 16, subsampled, is output stride 32, and the pyramid's rates follow from it.

    The other models enlarge their features by another factor at each stride: for them test_backbones.py has this.
    """
    size, outputs = (256, 320), {}
    for stride in (8, 16, 32):
        name = MODELS[case][0]["name"]
        model = models.create(name, SPEC, backbone="resnet_micro", width=8).clone(output_stride=stride)
        assert case == "fcn" or model.rates == tuple(rate * 16 // stride for rate in (6, 12, 18))
        variables = jax.tree.map(lambda x: x, randomised(model, size))  # dicts that may be changed
        params = variables["params"]
        if case == "deeplabv3":  # the image's mean is over other pixels at each stride
            params["aspp"]["pool"]["norm"] = jax.tree.map(jnp.zeros_like, params["aspp"]["pool"]["norm"])
        middle = np.zeros((3, 3, 1, 1), np.float32)  # the last 3x3 convolution is not dilated at any stride
        middle[1, 1] = 1
        params["conv"]["conv"]["kernel"] *= middle
        out = jax.jit(lambda v, model=model: model.apply(v, images(size, 1), train=False))(variables)["logits"]
        outputs[stride] = np.asarray(out)[:, :: 32 // stride, :: 32 // stride]
    assert outputs[32].shape == (1, 8, 10, 3)
    for stride in (8, 16):
        np.testing.assert_allclose(outputs[stride], outputs[32], atol=1e-4 * np.ptp(outputs[32]))


@pytest.mark.parametrize("case", quick("unet", of=MODELS))
def test_every_branch_and_skip_changes_the_output(case):
    """Zeroing a layer's result, or a feature of the backbone, is seen; features that are not used are not."""
    model = make(case)
    variables, x = randomised(model), images((64, 64), 1)
    params = variables["params"]
    layers = sorted({(a, b)[: 2 if a.endswith("aspp") else 1] for a in params for b in params[a] if a != "backbone"})
    taps = [("backbone", f"c{k}") for k in range(1, 6)] if "backbone" in params else []

    @jax.jit
    def run(gates):
        gates = dict(zip((*layers, *taps), gates, strict=True))

        def intercept(call, args, kwargs, context):
            result, path = call(*args, **kwargs), context.module.path
            if context.method_name == "__call__" and path == ("backbone",):
                return {tap: value * gates["backbone", tap] for tap, value in result.items()}
            return result * gates[path] if context.method_name == "__call__" and path in gates else result

        with nn.intercept_methods(intercept):
            return model.apply(variables, x, train=False)

    before = run(np.ones(len(layers) + len(taps), np.float32))
    for i, name in enumerate((*layers, *taps)):
        after = run(1 - np.eye(len(layers) + len(taps), dtype=np.float32)[i])
        change = max(float(jnp.max(jnp.abs(before[key] - after[key])) / jnp.ptp(before[key])) for key in before)
        assert (change > 1e-3) == (name in layers or name[1] in MODELS[case][2]), name


@pytest.mark.parametrize("case", quick("unet", of=MODELS))
def test_evaluation_is_deterministic_and_leaves_statistics(case):
    """And bfloat16 stays near float32."""
    model = make(case)
    variables, x = randomised(model), images()

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def run(model, variables, train):
        return model.apply(variables, x, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})

    (a, same), (b, _), (_, trained) = (run(model, variables, train) for train in (False, False, True))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    for old, kept, new in zip(
        *(jax.tree.leaves(v.get("batch_stats", {})) for v in (variables, same, trained)), strict=True
    ):
        np.testing.assert_array_equal(old, kept)
        assert not np.allclose(old, new)
    half, _ = run(make(case, dtype="bfloat16"), variables, False)
    for key in a:
        assert half[key].dtype == jnp.float32
        assert 0 < jnp.max(jnp.abs(a[key] - half[key])) < 0.03 * jnp.ptp(a[key])


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINED)
def test_devices_modes_and_recomputing_agree(case, monkeypatch):
    """The same step on one device, on four that recompute activations, and on four under pmap.

    Loss and statistics agree for every batch, but for the rounding that batch norm over few pixels enlarges. Gradients
    do where no ReLU's input is rounded to the other side of zero, which takes a pixel's gradient along: so for most of
    four batches. Dropout is left out: under pmap each device draws its own.
    """
    monkeypatch.setattr(nn.Dropout, "__call__", lambda self, x, deterministic: x)
    objects = "centre" in make(case).outputs
    task = make_task(SPEC, name="panoptic", sigma=3.0) if objects else make_task(SPEC, dice=0.5)
    tx, _ = optimizer.make_optimizer(10, 0, name="sgd", learning_rate=0.1)
    rgb = Preprocess(mean=(127.5,) * 3, std=(64.0,) * 3)
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 40, 48, 3), np.uint8)
    index = np.arange(4, dtype=np.int32)

    def run(mode, devices, remat=False):
        """(loss, statistics, change of all parameters) of a step on each of four batches."""
        mesh = parallel.make_mesh(transform=mode, devices=devices)
        model = make(case, remat=remat)
        old = state.init_state(model, tx, images.shape[1:], False, 0, mesh)
        batches = [
            {"image": image, "label": image.argmax(-1).astype(np.uint8), "index": index, "position": index}
            for image in images
        ]
        if objects:  # of very different numbers of pixels on each device
            for batch in batches:
                batch["instance"] = np.where(batch["label"] > 0, batch["image"][..., 0] // 40, 0).astype(np.uint16)
                batch["label"][1, :30] = 255
        batches = [parallel.put_batch(mesh, batch, mode) for batch in batches]
        compiled = compilation.compile_train(
            lambda axis: step.make_train_step(model, task.objective, tx, rgb, {}, 0, 9, 0.0, axis),
            mesh,
            mode,
            donate=False,
        )
        if mode == "jit" and devices == 4:
            compiled = compiled.lower(old, batches[0]).compile()
            text = compiled.as_text()
            assert "/checkpoint/" in text or "/rematted_computation/" in text
            assert "all-reduce" in text
            assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text
        for batch in batches:
            new, scalars = jax.device_get(compiled(old, batch))
            change = jax.tree.map(lambda a, b: np.ravel(a - b), new.params, jax.device_get(old.params))
            yield scalars["loss"], new.batch_stats, np.concatenate(jax.tree.leaves(change))

    one, *others = (list(run(*args)) for args in (("jit", 1), ("jit", 4, True), ("pmap", 4)))
    for other in others:
        for (loss, stats, _), (other_loss, other_stats, _) in zip(one, other, strict=True):
            np.testing.assert_allclose(loss, other_loss, rtol=1e-3)
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), stats, other_stats)
        distances = [np.linalg.norm(a - b) / np.linalg.norm(a) for (*_, a), (*_, b) in zip(one, other, strict=True)]
        assert np.median(distances) < 5e-4 and max(distances) < 0.05, distances


@pytest.mark.parametrize("name", quick("unet", of=models.MODELS))
def test_full_size_shapes_cost_no_memory(name):
    model = models.create(name, SPEC)
    gc.collect()  # what other tests have left
    before = len(jax.live_arrays())
    counted = model_cost(model, (1024, 2048))
    assert len(jax.live_arrays()) == before
    assert counted.strides == {"unet": {"logits": 1}, "fcn": {"logits": 8}, "deeplabv3": {"logits": 16},
                               "deeplabv3plus": {"logits": 4}, "lraspp": {"logits": 8},
                               "panoptic_deeplab": {"logits": 4, "centre": 4, "offset": 4}}[name]  # fmt: skip
    small = model_cost(model, (512, 512))
    # XLA leaves out the products with padding, of which larger images have a smaller share.
    assert small.parameters == counted.parameters and 8 < counted.flops / small.flops < 9


def test_mistakes_name_the_fix():
    with pytest.raises(UserError, match=r"model\.width\b.*model\.widths"):
        models.create("unet", SPEC, width=(8,))
    with pytest.raises(UserError, match="unet"):
        models.create("unett", SPEC)
    for name, settings, message in [
        ("unet", {"backbone": "resnet_micro", "padding": "valid"}, "model.padding must be 'same'"),
        ("unet", {"backbone": "resnet_micro", "widths": (8, 8)}, r"model.widths=\(8, 8\) must be five numbers"),
        ("unet", {"pair_columns": True, "norm": "group"}, "model.pair_columns=True needs model.norm='batch'"),
        (
            "unet",
            {"pair_columns": True, "backbone": "resnet_micro"},
            "model.pair_columns=True needs model.backbone='plain'",
        ),
        ("unet", {"pair_columns": True, "widths": (8,)}, r"model.pair_columns=True.*model.widths=\(8,\)"),
        ("unet", {"backbone": "resnet_34"}, r"model.backbone='resnet_34'.*'resnet34'"),
        ("fcn", {"head": "8s", "output_stride": 16}, r"model.head='8s'.*model.output_stride=32"),
        ("fcn", {"variant": "smp"}, r"model.variant='smp'"),
        ("deeplabv3", {"output_stride": 4}, "model.output_stride=4"),
        ("deeplabv3plus", {"pooling": (64,)}, r"model.pooling=\(64,\)"),
        ("deeplabv3plus", {"multi_grid": (1, 2)}, r"model.multi_grid=\(1, 2\) must be 3"),
        ("lraspp", {"backbone": "mobilenet"}, "model.backbone='mobilenet'"),
        ("fcn", {"head": "4s"}, r"model.head='4s'"),
        ("deeplabv3", {"aux": "c2"}, r"model.aux='c2' is not one of '', c3, c4"),
        ("deeplabv3", {"norm": "layer"}, r"model.norm='layer'"),
        ("deeplabv3", {"dtype": "float16"}, r"model.dtype='float16'"),
        ("deeplabv3", {"dropout": 1.0}, r"model.dropout=1.0 .*\[0, 1\)"),
        ("deeplabv3", {"width": 0}, r"model.width=0 .*\[1, inf\)"),
        (
            "deeplabv3",
            {"atrous_rates": (1, 2), "output_stride": 32},
            r"model.atrous_rates=\(1, 2\) must be positive at",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            models.create(name, SPEC, **settings)


@pytest.mark.parametrize("case", ["fcn", "deeplabv3"])
def test_the_auxiliary_heads_dropout_is_a_setting(case, monkeypatch):
    rates = []
    monkeypatch.setattr(nn.Dropout, "__call__", lambda self, x, deterministic: rates.append(self.rate) or x)
    for settings in ({}, {"aux_dropout": 0.25}):
        net = make(case, dropout=0.0, **settings)
        jax.eval_shape(lambda net=net: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    assert [rate for rate in rates if rate] == [0.1, 0.25]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_batch_norm_over_one_value_is_refused(devices):
    """The pyramid's mean of one image: its norm would leave the bias, and statistics that are of no use."""
    task, rgb = make_task(SPEC), Preprocess(mean=(127.5,) * 3, std=(64.0,) * 3)
    tx, _ = optimizer.make_optimizer(10, 0, name="sgd", learning_rate=0.1)
    mesh = parallel.make_mesh(transform="pmap", devices=devices)
    index = np.arange(devices, dtype=np.int32)
    batch = {"image": np.zeros((devices, 32, 32, 3), np.uint8), "label": np.zeros((devices, 32, 32), np.uint8)}
    batch = parallel.put_batch(mesh, batch | {"index": index, "position": index}, "pmap")

    def train(case):
        model = make(case)
        start = state.init_state(model, tx, (devices, 32, 32, 3), False, 0, mesh)
        make_step = functools.partial(step.make_train_step, model, task.objective, tx, rgb, {}, 0, 9, 0.0)
        return compilation.compile_train(make_step, mesh, "pmap", donate=False).lower(start, batch)

    if devices == 1:
        with pytest.raises(UserError, match=r"data.batch_size of 2 or more, or with model.norm='group'"):
            train("deeplabv3")
    assert train("deeplabv3_group" if devices == 1 else "deeplabv3").out_info


@pytest.mark.parametrize("name", ["unet", "deeplabv3", "deeplabv3plus", "fcn", "lraspp"])
def test_images_smaller_than_the_stride(name):
    """A backbone that rounds down leaves nothing of them, which is said before anything is made of it."""
    model, task = models.create(name, SPEC, backbone="convnext_micro"), make_task(SPEC)
    x = images((7, 7), 1)
    with pytest.raises(UserError, match="images are smaller than the network's stride"):
        outputs = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, train=False))[0]
        seven = np.full((1, 2), 7, np.int32)
        geometry = Geometry(seven, seven, (7, 7), (7, 7), False)
        jax.eval_shape(lambda o: task.decide(task.objective.maps(o, geometry), geometry), outputs)
