"""The battery that every backbone inherits: a new one is a line of `MICRO`, and of `COUNTS` if it is published."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from parts import quick

from segjax.checks import UserError
from segjax.nn.backbones import create
from segjax.nn.kernels import convolution, max_pool
from segjax.nn.layers import Conv, LayerConfig

# Name -> how odd sizes are rounded, and channels of the maps it has, up to c5.
MICRO = {
    "resnet_micro": (math.ceil, (8, 32, 64, 128, 256)),
    "vgg_micro": (math.floor, (8, 8, 16, 16, 16)),
    "mobilenet_v2_micro": (math.ceil, (8, 8, 16, 16, 48)),
    "mobilenet_v3_micro": (math.ceil, (16, 16, 24, 24, 48)),
    "convnext_micro": (math.floor, (8, 16, 16, 24)),
}
STRIDES = (8, 16, 32)

# torchvision's published number of parameters, less the classifier's.
COUNTS = {
    "resnet18": 11689512 - (512 * 1000 + 1000),
    "resnet34": 21797672 - (512 * 1000 + 1000),
    "resnet50": 25557032 - (2048 * 1000 + 1000),
    "resnet101": 44549160 - (2048 * 1000 + 1000),
    "resnet152": 60192808 - (2048 * 1000 + 1000),
    # A 7x7 convolution makes way for three 3x3 ones with their norms, and the first block takes 128 channels, not 64.
    "resnet50_deep": 25557032 - (2048 * 1000 + 1000) - (49 * 3 * 64 + 2 * 64)
    + (9 * 3 * 64 + 2 * 64) + (9 * 64 * 64 + 2 * 64) + (9 * 64 * 128 + 2 * 128) + 64 * (64 + 256),
    "vgg16": 138357544 - (25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000),
    # torchvision's convolutions have biases, which the norms after them take away again.
    "vgg16_bn": 138365992 - (25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000)
    - (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512),
    "mobilenet_v2": 3504872 - (1280 * 1000 + 1000),
    "mobilenet_v3_large": 5483032 - (960 * 1280 + 1280 + 1280 * 1000 + 1000),
    "mobilenet_v3_small": 2542856 - (576 * 1024 + 1024 + 1024 * 1000 + 1000),
    "convnext_tiny": 28589128 - (2 * 768 + 768 * 1000 + 1000),
    "convnext_small": 50223688 - (2 * 768 + 768 * 1000 + 1000),
}  # fmt: skip


def each(function):
    return pytest.mark.parametrize("name", MICRO)(function)


def images(size=(33, 47), batch=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, *size, 3)), jnp.float32)


def shapes(name, size=(64, 96), norm="batch", **settings):
    """Maps and variables, without computing any."""
    net = create(name, layer_config=LayerConfig(norm=norm), **settings)
    return jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), images(size, 1), train=False))


@functools.cache
def variables(name, norm="batch"):
    """Random weights and statistics, so that nothing is hidden by a layer scale of 1e-6 or a mean of 0."""
    draw = np.random.default_rng(1)

    def random(path, leaf):
        kind, size = path[-1].key, leaf.shape
        if kind == "kernel":
            value = draw.normal(size=size) * math.sqrt(2 / math.prod(size[:-1]))
        else:
            value = draw.uniform(0.5, 1.5, size) if kind in ("scale", "var") else draw.normal(size=size) * 0.2
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(random, shapes(name, norm=norm)[1])


def evaluate(name, x, weights=None, dtype="float32", **settings):
    net = create(name, layer_config=LayerConfig(dtype=dtype), **settings)
    return jax.jit(functools.partial(net.apply, train=False))(weights or variables(name), x)


def gradients(name, norm="batch", remat=False, train=False):
    net, start = create(name, layer_config=LayerConfig(norm=norm, remat=remat)), variables(name, norm)

    def loss(params):
        maps, _ = net.apply(start | {"params": params}, images((64, 96)), train=train, mutable=["batch_stats"])
        return sum(jnp.sum(jnp.sin(m)) for m in maps.values())

    return jax.jit(jax.grad(loss))(start["params"])


@each
@pytest.mark.parametrize("output_stride", STRIDES)
@pytest.mark.parametrize("size", quick((33, 47), (71, 90), of=[(32, 32), (64, 96), (33, 47), (71, 90)]))
def test_keys_and_shapes(name, output_stride, size):
    rounding, channels = MICRO[name]
    maps, _ = shapes(name, size, output_stride=output_stride)
    levels = range(6 - len(channels), 6)
    assert list(maps) == [f"c{k}" for k in levels]
    for k, width in zip(levels, channels, strict=True):
        stride = min(2**k, output_stride)
        assert maps[f"c{k}"].shape == (1, rounding(size[0] / stride), rounding(size[1] / stride), width)


@pytest.mark.slow
@pytest.mark.parametrize("name", MICRO)
def test_gradient_reaches_every_parameter(name, norm="none"):
    """With the statistics fixed: those of a batch take away a bias that only a 1x1 convolution and a norm follow."""
    assert ("batch_stats" in variables(name, norm)) == (norm == "batch" and name != "convnext_micro")
    for path, g in jax.tree_util.tree_leaves_with_path(gradients(name, norm)):
        assert 0.01 < jnp.max(jnp.abs(g)) < jnp.inf, jax.tree_util.keystr(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg_micro", "convnext_micro"])
def test_gradient_passes_dilated_poolings(name):
    """What keeps its resolution by other means than a dilated convolution has a derivative, too."""
    net, weights = create(name, layer_config=LayerConfig(), output_stride=8), variables(name)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(net.apply(weights, x, train=False)["c5"]))))
    assert jnp.any(gradient(images()) != 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2_micro", "convnext_micro"])  # the others: in networks, test_models.py
def test_remat_changes_nothing(name):
    a, b = (gradients(name, remat=remat, train=True) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.ptp(a)), a, b)
    for remat in (False, True):
        net = create(name, layer_config=LayerConfig(remat=remat))
        program = jax.make_jaxpr(lambda weights, net=net: net.apply(weights, images(), train=False))(variables(name))
        assert any(name in str(program) for name in ("remat", "checkpoint")) == remat


@pytest.mark.slow
@each
def test_every_branch_changes_the_maps(name):
    """Zeroing what a layer gives is seen: no convolution, shortcut or gate stands there for nothing."""
    net, weights, x = create(name, layer_config=LayerConfig()), variables(name), images((64, 64), 1)
    tree = weights["params"]
    paths = sorted({(a, b) for a in tree for b, inner in tree[a].items() if isinstance(inner, dict)})

    @jax.jit
    def run(gates):
        gate = dict(zip(paths, gates, strict=True))

        def intercept(call, args, kwargs, context):
            result = call(*args, **kwargs)
            return (
                result * gate[context.module.path]
                if context.method_name == "__call__" and context.module.path in gate
                else result
            )

        with nn.intercept_methods(intercept):
            return net.apply(weights, x, train=False)

    before = run(np.ones(len(paths), np.float32))
    for i, path in enumerate(paths):
        after = run(1 - np.eye(len(paths), dtype=np.float32)[i])
        change = [float(jnp.max(jnp.abs(before[k] - after[k])) / jnp.ptp(before[k])) for k in before]
        assert max(change) > 1e-3, path


@pytest.mark.slow
@each
def test_statistics_change_in_training_only(name):
    net, start = create(name, layer_config=LayerConfig()), variables(name)
    x = images((64, 96))
    apply = jax.jit(functools.partial(net.apply, mutable=["batch_stats"]), static_argnames="train")
    (a, kept), (b, _), (c, changed) = (apply(start, x, train=train) for train in (False, False, True))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    if name == "convnext_micro":
        assert not kept and not changed
        return
    jax.tree.map(np.testing.assert_array_equal, dict(kept), {"batch_stats": start["batch_stats"]})
    assert all(
        jnp.all(old != new)
        for old, new in zip(jax.tree.leaves(start["batch_stats"]), jax.tree.leaves(changed), strict=True)
    )
    assert not jnp.allclose(a["c5"], c["c5"])


@pytest.mark.slow
@each
def test_bfloat16_is_near_float32(name):
    x = images((64, 96))
    a, b = evaluate(name, x), evaluate(name, x, dtype="bfloat16")
    for k in a:
        assert a[k].dtype == jnp.float32 and b[k].dtype == jnp.bfloat16
        assert 0 < jnp.linalg.norm(a[k] - b[k].astype(jnp.float32)) < 0.04 * jnp.linalg.norm(a[k])


def without_squeezing(weights):
    """Gates that are the same whatever the map: squeezing takes the mean, which depends on the resolution."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if "['squeeze']['expand']['kernel']" in jax.tree_util.keystr(path) else x, weights
    )


@pytest.mark.slow
@each
@pytest.mark.parametrize("size, margin", [((97, 129), 0), ((330, 365), 8)])
def test_output_strides_agree(name, size, margin):
    """Maps at a finer output stride, subsampled, are the coarser ones.

    The zeros beyond the border lie on the same pixels where no size is rounded down, as at 32 n + 1 pixels and as in
    networks that round up; elsewhere the last few pixels differ.
    """
    x, weights = images(size, 1), without_squeezing(variables(name))
    fine, *others = (evaluate(name, x, weights, output_stride=s) for s in STRIDES)
    for stride, coarse in zip(STRIDES[1:], others, strict=True):
        for k in ("c4", "c5"):
            step = min(2 ** int(k[1]), stride) // 8
            h, w = (n - margin * 32 // (8 * step) for n in coarse[k].shape[1:3])
            assert h > 1 and w > 1
            found = fine[k][:, ::step, ::step][:, :h, :w]
            np.testing.assert_allclose(found, coarse[k][:, :h, :w], atol=1e-5 * float(jnp.ptp(coarse[k])))


@pytest.mark.slow
@each
def test_conventions(name):
    """They differ in the first layer that lost its stride, where that is a convolution of more than one pixel."""
    x = images((64, 96))
    atrous, torchvision, smp = (evaluate(name, x, output_stride=8, variant=c) for c in ("atrous", "torchvision", "smp"))
    np.testing.assert_array_equal(atrous["c3"], smp["c3"])
    assert jnp.allclose(atrous["c5"], smp["c5"]) == (name == "vgg_micro")
    np.testing.assert_array_equal(torchvision["c5"], smp["c5"] if "mobilenet" in name else atrous["c5"])
    same = {jax.tree.structure(shapes(name, output_stride=s, variant=c)[1]) for s in STRIDES for c in ("atrous", "smp")}
    assert len(same) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_number_of_parameters(name):
    assert sum(x.size for x in jax.tree.leaves(shapes(name)[1]["params"])) == COUNTS[name]


@pytest.mark.slow
def test_mobilenet_v3_taps():
    """Last block of each stride, or the first, as torchvision's segmentation networks tap it."""
    for name, variant, channels in [
        ("mobilenet_v3_large", "atrous", [16, 24, 40, 112, 960]),
        ("mobilenet_v3_large", "torchvision", [16, 24, 40, 80, 960]),
        ("mobilenet_v3_small", "atrous", [16, 16, 24, 48, 576]),
        ("mobilenet_v3_small", "torchvision", [16, 16, 24, 40, 576]),
    ]:
        maps, _ = shapes(name, output_stride=16, variant=variant)
        assert [m.shape[-1] for m in maps.values()] == channels


@pytest.mark.slow
def test_mobilenet_v3_has_its_own_epsilon():
    x, outputs = images(), {}
    for name in ("mobilenet_v2_micro", "mobilenet_v3_micro"):
        for epsilon in (1e-3, 0.1):
            net = create(name, layer_config=LayerConfig(epsilon=epsilon))
            outputs[name, epsilon] = jax.jit(functools.partial(net.apply, train=False))(variables(name), x)["c5"]
    assert not jnp.allclose(outputs["mobilenet_v2_micro", 1e-3], outputs["mobilenet_v2_micro", 0.1])
    np.testing.assert_array_equal(outputs["mobilenet_v3_micro", 1e-3], outputs["mobilenet_v3_micro", 0.1])


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("resnet_50", {}, r"model\.backbone='resnet_50'.*Did you mean 'resnet50'"),
        ("resnet50", {"output_stride": 4}, r"model\.output_stride=4 .*8, 16, 32"),
        ("resnet50", {"variant": "tv"}, r"model\.variant='tv'.*atrous, torchvision, smp"),
        ("vgg16", {"multi_grid": (1, 2, 4)}, r"model\.multi_grid.*ResNets only.*\(1, 1, 1\).*'vgg16'"),
        ("resnet50", {"multi_grid": (1, 2)}, r"model\.multi_grid=\(1, 2\) must be 3 positive factors"),
        ("resnet18", {"multi_grid": (1, 2, 4)}, r"must be 2 positive factors"),
        ("resnet50", {"multi_grid": (0, 1, 1)}, r"must be 3 positive factors"),
    ],
)
def test_errors_name_the_fix(name, settings, message):
    with pytest.raises(UserError, match=message):
        create(name, layer_config=LayerConfig(), **settings)


def convolutions(monkeypatch, name, **settings):
    """(kernel shape, stride, dilation) of every convolution, in the order they are applied."""
    seen = []

    def record(x, kernel, stride, dilation, groups, padding):
        seen.append((kernel.shape, stride, dilation))
        return convolution(x, kernel, stride, dilation, groups, padding)

    monkeypatch.setattr("segjax.nn.kernels.convolution", record)
    shapes(name, **settings)
    monkeypatch.undo()
    return seen


@pytest.mark.parametrize(
    "settings, rates",
    [
        ({"output_stride": 32}, (1,) * 6 + (1, 1, 1)),
        ({"output_stride": 16}, (1,) * 6 + (1, 2, 2)),
        ({"output_stride": 8}, (1, 2, 2, 2, 2, 2, 2, 4, 4)),
        ({"output_stride": 16, "variant": "torchvision"}, (1,) * 6 + (1, 2, 2)),
        ({"output_stride": 16, "variant": "smp"}, (1,) * 6 + (2, 2, 2)),
        ({"output_stride": 8, "variant": "smp"}, (2,) * 6 + (4, 4, 4)),
        ({"output_stride": 16, "variant": "smp", "multi_grid": (1, 2, 4)}, (1,) * 6 + (2, 4, 8)),
        ({"output_stride": 8, "variant": "smp", "multi_grid": (1, 2, 4)}, (2,) * 6 + (4, 8, 16)),
        ({"output_stride": 16, "multi_grid": (1, 2, 4)}, (1,) * 6 + (2, 4, 8)),
        ({"output_stride": 8, "multi_grid": (1, 2, 4)}, (1, 2, 2, 2, 2, 2, 4, 8, 16)),
    ],
)
def test_dilations_of_the_last_stages(monkeypatch, settings, rates):
    """Output stride 16 dilates the last stage by 2, 8 by 4; multi-grid multiplies."""
    found = [dilation for shape, _, dilation in convolutions(monkeypatch, "resnet50", **settings) if shape[0] == 3]
    assert tuple(found[-9:]) == rates and set(found[:-9]) == {1}


def test_dilations_of_basic_blocks(monkeypatch):
    for multi_grid, rates in [((1, 1, 1), (1, 2, 2, 2)), ((2, 4), (4, 4, 8, 8))]:
        found = convolutions(monkeypatch, "resnet18", output_stride=16, multi_grid=multi_grid)
        assert tuple(dilation for shape, _, dilation in found if shape[0] == 3)[-4:] == rates


def test_deep_stem(monkeypatch):
    """It has 64, 64 and 128 channels, the stride on the first, and a first block that takes 128."""
    found = convolutions(monkeypatch, "resnet50_deep")
    stem = [((3, 3, 3, 64), 2, 1), ((3, 3, 64, 64), 1, 1), ((3, 3, 64, 128), 1, 1)]
    assert found[:4] == [*stem, ((1, 1, 128, 64), 1, 1)]
    assert shapes("resnet50_deep")[0]["c1"].shape[-1] == 128


def test_stride_is_on_the_3x3_convolution(monkeypatch):
    """Beside the 7x7 stem, strides are on 3x3 convolutions and on the shortcuts around them."""
    strided = [shape for shape, stride, _ in convolutions(monkeypatch, "resnet50") if stride == 2]
    assert strided == [
        (7, 7, 3, 64),
        *[s for f in (128, 256, 512) for s in ((3, 3, f, f), (1, 1, 2 * f, 4 * f))],
    ]


def windows(x, size, outside):
    """Windows [i, j, y, x, c] of stride 2 around every other pixel of [h, w, c], the first around the first."""
    reach = size // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), constant_values=outside)
    found = [[padded[i : i + size, j : j + size] for j in range(0, x.shape[1], 2)] for i in range(0, x.shape[0], 2)]
    return np.array(found)


@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
@pytest.mark.parametrize("kernel", [3, 7])
def test_padding_is_symmetric_at_stride_2(kernel, size):
    """XLA's "SAME" would pad an even size behind more than before."""
    draw = np.random.default_rng(0)
    x, weights = draw.normal(size=(*size, 4)), draw.normal(size=(kernel, kernel, 4, 5))
    maps = jnp.asarray(x[None], jnp.float32)
    found = jax.jit(Conv(5, kernel, 2).apply)({"params": {"kernel": jnp.asarray(weights, jnp.float32)}}, maps)[0]
    np.testing.assert_allclose(found, np.einsum("ijyxc,yxcf->ijf", windows(x, kernel, 0.0), weights), atol=1e-4)
    found = max_pool(maps, 3, 2, 1, (1, 1))[0]
    np.testing.assert_array_equal(found, windows(np.asarray(maps[0]), 3, -np.inf).max((2, 3)))
