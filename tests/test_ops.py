"""Every formulation against XLA's own operation: values, gradients, what other platforms get, sharded batches."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.nn.kernels import convolution, max_pool, mean_pool, resample
from segjax.nn.kernels.formulations import Window
from segjax.nn.kernels.stem import stem_by_column_pairs
from segjax.nn.layers import UpConv2x2

# What `convolution` is to be, and the kind of formulation: (maps, features, kernel, stride, dilation, groups, padding).
CONVOLUTIONS = {
    "pointwise": ((2, 5, 6, 4), 8, 1, 1, 1, 1, (0, 0)),
    "pointwise narrow": ((2, 5, 6, 8), 4, 1, 1, 1, 1, (0, 0)),
    "pointwise stride": ((2, 7, 10, 8), 4, 1, 2, 1, 1, (0, 0)),
    "pointwise padded": ((2, 7, 10, 8), 4, 1, 2, 1, 1, (1, 1)),
    "depthwise": ((2, 9, 12, 6), 6, 3, 1, 1, 6, (1, 1)),
    "depthwise stride": ((2, 9, 12, 6), 6, 3, 2, 1, 6, (1, 1)),
    "depthwise stride, even": ((2, 8, 11, 6), 6, 3, 2, 1, 6, (0, 1)),
    "depthwise stride 3": ((2, 10, 11, 6), 6, 3, 3, 1, 6, (0, 1)),
    "depthwise 2x2": ((2, 6, 7, 6), 6, 2, 2, 1, 6, (0, 0)),
    "depthwise 5x5": ((2, 9, 8, 6), 6, 5, 2, 1, 6, (2, 2)),
    "depthwise 7x7": ((2, 9, 8, 6), 6, 7, 1, 1, 6, (3, 3)),
    "depthwise dilated": ((2, 9, 12, 6), 6, 5, 1, 2, 6, (4, 4)),
    "depthwise dilated, stride": ((2, 9, 12, 6), 6, 3, 2, 2, 6, (2, 3)),
    "depthwise wide": ((2, 9, 16, 6), 6, 3, 1, 12, 6, (12, 12)),
    "depthwise wide, stride": ((2, 9, 16, 6), 6, 3, 2, 12, 6, (12, 12)),
    "depthwise beside": ((2, 1, 1, 6), 6, 2, 1, 4, 6, (2, 2)),
    "depthwise, two of each": ((2, 9, 8, 6), 12, 3, 1, 1, 6, (1, 1)),
    "grouped": ((2, 9, 8, 6), 6, 3, 1, 1, 2, (1, 1)),
    "rows": ((2, 5, 256, 3), 4, 3, 1, 1, 1, (1, 1)),
    "rows stride": ((2, 6, 513, 3), 4, 3, 2, 1, 1, (1, 1)),
    "rows stride, even": ((2, 6, 512, 3), 4, 3, 2, 1, 1, (0, 1)),
    "rows dilated": ((2, 25, 260, 3), 4, 3, 1, 2, 1, (2, 2)),
    "rows valid": ((2, 6, 258, 3), 4, 3, 1, 1, 1, (0, 0)),
    "rows wide, stride": ((2, 5, 512, 3), 4, 3, 2, 9, 1, (9, 9)),
    "overlaps": ((2, 8, 16, 5), 4, 3, 1, 6, 1, (6, 6)),
    "overlaps one column": ((2, 8, 3, 5), 4, 3, 1, 4, 1, (4, 4)),
    "overlaps centre": ((2, 5, 5, 5), 4, 3, 1, 6, 1, (6, 6)),
    "overlaps uneven": ((2, 9, 8, 5), 4, 3, 1, 5, 1, (4, 6)),
    "overlaps nowhere": ((2, 1, 1, 5), 4, 2, 1, 4, 1, (2, 2)),
    "plain": ((2, 9, 8, 5), 4, 3, 1, 1, 1, (1, 1)),
    "plain stem": ((2, 11, 12, 3), 4, 7, 2, 1, 1, (3, 3)),
}
POOLS = [
    ((2, 8, 6, 3), (2, 2, 1, (0, 0))),
    ((2, 7, 7, 3), (2, 2, 1, (0, 0))),
    ((2, 9, 12, 3), (3, 2, 1, (1, 1))),
    ((2, 8, 8, 3), (3, 2, 1, (0, 1))),
    ((2, 8, 6, 3), (3, 1, 1, (1, 1))),
    ((1, 10, 7, 3), (3, 3, 1, (1, 0))),
]


def plain(x, kernel, stride, dilation, groups, padding):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (padding, padding),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def reduce_window(x, size, stride, dilation, padding):
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        (1, size, size, 1),
        (1, stride, stride, 1),
        ((0, 0), padding, padding, (0, 0)),
        window_dilation=(1, dilation, dilation, 1),
    )


def normal(*shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


def with_gradients(function):
    """Value and the gradients of all arguments for a given gradient of the value."""

    def run(args, g):
        value, vjp = jax.vjp(function, *args)
        return (value, *vjp(g))

    return run


def case(name, dtype="float32"):
    """Arguments (maps, kernel), gradient of the result, and the two functions to compare."""
    shape, features, size, *static = CONVOLUTIONS[name]
    args = normal(*shape, dtype=dtype), normal(size, size, shape[-1] // static[2], features, dtype=dtype)

    def ours(x, kernel):
        return convolution(x, kernel, *static)

    def theirs(x, kernel):
        return plain(x, kernel, *static)

    return args, normal(*jax.eval_shape(theirs, *args).shape, dtype=dtype), ours, theirs


def assert_close(ours, theirs, tolerance=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = (np.asarray(v, np.float32) for v in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.ptp(b), 1e-6))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_is_xlas(name):
    args, g, ours, theirs = case(name)
    assert_close(*(jax.jit(with_gradients(f))(args, g) for f in (ours, theirs)))


@pytest.mark.parametrize("settings", [{"stride": (2,)}, {"dilation": (1, 1, 1)}, {"padding": ((1, 1),)}])
def test_settings_of_another_number_of_axes_are_refused(settings):
    with pytest.raises((TypeError, ValueError)):
        convolution(jnp.ones((1, 8, 8, 1)), jnp.ones((3, 3, 1, 1)), **settings)


def test_every_formulation_is_tried():
    """The cases above are of the kind that their names say: other programs than XLA's own where it is not "plain"."""
    for name in CONVOLUTIONS:
        args, g, *both = case(name)
        ours, theirs = (jax.jit(with_gradients(f)).lower(args, g).as_text().count("convolution(") for f in both)
        kind = name.split()[0].rstrip(",")
        if name in ("pointwise padded", "depthwise, two of each", "grouped") or kind == "plain":
            assert ours == theirs == 3, name
        else:
            assert ours == {"rows": 2}.get(kind, 0), name


@pytest.mark.parametrize(
    "shape, size, padding",
    [
        ((2, 8, 12, 3), 7, (3, 3)),
        ((1, 9, 8, 4), 3, (0, 1)),
        ((2, 8, 6, 1), 4, (1, 2)),
        ((2, 7, 2, 3), 4, (2, 1)),
        ((1, 6, 8, 3), 2, (0, 0)),
    ],
)
def test_pairs_of_columns_are_columns(shape, size, padding):
    """What TPUs run for the first layer, on the CPU: all remainders by two of kernel and padding."""
    x, kernel = normal(*shape), normal(size, size, shape[-1], 5)
    g = normal(*jax.eval_shape(lambda: plain(x, kernel, 2, 1, 1, padding)).shape)
    passes = stem_by_column_pairs(Window(size, 2, 1, padding))
    ours = jax.jit(lambda *args: (passes.forward(*args[:2]), passes.dx(*args), passes.dk(*args)))
    theirs = jax.jit(with_gradients(lambda x, kernel: plain(x, kernel, 2, 1, 1, padding)))
    assert_close(ours(x, kernel, g), theirs((x, kernel), g))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pointwise stride", "depthwise 5x5", "rows", "overlaps", "plain"])
def test_convolution_of_half_precision(name):
    """Sums have float32's digits: what is lost is the last rounding, 2^-9 of the value."""
    args, g, ours, _ = case(name, "bfloat16")
    *_, theirs = case(name)
    exact = with_gradients(theirs)([v.astype(jnp.float32) for v in args], g.astype(jnp.float32))
    got = jax.jit(with_gradients(ours))(args, g)
    assert all(v.dtype == jnp.bfloat16 for v in got)
    assert_close([v.astype(jnp.float32) for v in got], exact, 2**-8)


@pytest.mark.parametrize("shape, window", POOLS)
def test_max_pool_is_xlas(shape, window):
    """Few distinct values, so that most windows have several largest ones."""
    x = jnp.asarray(np.random.default_rng(0).integers(-3, 1, shape), jnp.float32)
    g = normal(*jax.eval_shape(lambda x: reduce_window(x, *window), x).shape)
    both = (lambda x: max_pool(x, *window)), (lambda x: reduce_window(x, *window))
    assert_close(*(jax.jit(with_gradients(f))((x,), g) for f in both))


def test_dilated_max_pool_has_a_gradient():
    """Against a loop over windows; XLA has none."""
    x = normal(1, 9, 8, 2)
    g = np.asarray(normal(1, 5, 4, 2))
    value, gradient = with_gradients(lambda x: max_pool(x, 3, 2, 2, (2, 2)))((x,), jnp.asarray(g))
    np.testing.assert_array_equal(value, reduce_window(x, 3, 2, 2, (2, 2)))
    expected = np.zeros(x.shape, np.float32)
    for i, j, k in itertools.product(range(5), range(4), range(2)):
        pixels = [(y, u) for y in range(2 * i - 2, 2 * i + 3, 2) for u in range(2 * j - 2, 2 * j + 3, 2)]
        y, u = max(((y, u) for y, u in pixels if 0 <= y < 9 and 0 <= u < 8), key=lambda p: x[0, *p, k])
        expected[0, y, u, k] += g[0, i, j, k]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_max_pool_is_undilated_and_unpadded_by_default():
    x = normal(2, 6, 4, 3)
    np.testing.assert_array_equal(max_pool(x, 2, 2), reduce_window(x, 2, 2, 1, (0, 0)))


@pytest.mark.parametrize("window", [(3, 4), (5, 2), (1, 1), (6, 7), (9, 9), (6, 3)])
def test_mean_pool_is_xlas(window):
    x = normal(2, 6, 7, 3)
    size = min(window[0], 6), min(window[1], 7)
    both = (
        (lambda x: mean_pool(x, window)),
        (lambda x: nn.pool(x, 0.0, jax.lax.add, size, (1, 1), "VALID") / math.prod(size)),
    )
    g = normal(*jax.eval_shape(both[1], x).shape)
    assert_close(*(jax.jit(with_gradients(f))((x,), g) for f in both))
    half = mean_pool(x.astype(jnp.bfloat16), window)
    assert half.dtype == jnp.bfloat16
    assert_close([half.astype(jnp.float32)], [both[1](x)], 2**-6)


def test_tpu_takes_means_at_once():
    found = operations(lowered(lambda x: mean_pool(x, (3, 4)), normal(2, 6, 7, 3)))
    assert found.count("reduce_window") == 1


def test_transposed_convolution_is_xlas():
    net = UpConv2x2(5)
    x, kernel = normal(2, 3, 4, 6), normal(2, 2, 6, 5)
    g = normal(2, 6, 8, 5)

    def ours(x, kernel):
        return net.apply({"params": {"kernel": kernel, "bias": jnp.zeros(5)}}, x)

    def theirs(x, kernel):
        return jax.lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert_close(*(jax.jit(with_gradients(f))((x, kernel), g) for f in (ours, theirs)))


@pytest.mark.parametrize("has_rows, has_columns", [(True, True), (True, False), (False, True), (False, False)])
def test_resample_is_a_product(has_rows, has_columns):
    x = normal(2, 3, 4, 5)
    rows = normal(6, 3) if has_rows else None
    columns = normal(7, 4) if has_columns else None
    r, c = (np.eye(n) if m is None else np.asarray(m, np.float64) for m, n in ((rows, 3), (columns, 4)))
    g = normal(2, len(r), len(c), 5)
    value, gradient = jax.jit(with_gradients(lambda x: resample(x, rows, columns)))((x,), g)
    np.testing.assert_allclose(value, np.einsum("yh,xw,bhwc->byxc", r, c, x), rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient, np.einsum("yh,xw,byxc->bhwc", r, c, g), rtol=0, atol=1e-5)


def lowered(function, *args):
    """The program for a TPU."""
    return export.export(jax.jit(function), platforms=["tpu"])(*args).mlir_module()


def operations(text):
    """The operations of a program, but for constants and the case of one branch that a choice by platform leaves."""
    names = re.findall(r"\bstablehlo\.(\w+)", text)
    return sorted(name for name in names if name not in ("case", "return", "constant"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_tpu_convolves(name):
    """Value and gradients are XLA's own operations, and no others; of an image's columns in pairs at stride 2."""
    args, g, *both = case(name)
    ours, theirs = (operations(lowered(with_gradients(f), args, g)) for f in both)
    assert ours.count("convolution") == 3
    if name in ("rows stride, even", "plain stem"):
        assert "reshape" in ours
    else:
        assert ours == theirs


@pytest.mark.parametrize("shape, window", POOLS)
def test_tpu_pools(shape, window):
    x = normal(*shape)
    g = normal(*jax.eval_shape(lambda x: reduce_window(x, *window), x).shape)
    both = (lambda x: max_pool(x, *window)), (lambda x: reduce_window(x, *window))
    ours, theirs = (operations(lowered(with_gradients(f), (x,), g)) for f in both)
    assert ours.count("select_and_scatter") == ours.count("reduce_window") == 1
    assert ours == theirs


def test_tpu_transposes_and_resamples():
    net = UpConv2x2(5)
    x = normal(2, 3, 4, 6)
    variables = net.init(jax.random.key(0), x)
    found = operations(lowered(with_gradients(lambda v, x: net.apply(v, x)), (variables, x), normal(2, 6, 8, 5)))
    assert found.count("convolution") == 3 and "dot_general" not in found
    found = operations(
        lowered(with_gradients(lambda x: resample(x, jnp.ones((6, 3)), jnp.ones((8, 4)))), (x,), normal(2, 6, 8, 6))
    )
    assert found.count("dot_general") == 4
    assert set(found) <= {"dot_general", "transpose", "broadcast_in_dim"}


def sharded(function, args, g):
    """Value and gradients, and the program, where maps are spread over four devices by image."""
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    images, copies = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    shardings = [images, *[copies] * (len(args) - 1)]
    compiled = (
        jax.jit(with_gradients(function), in_shardings=(shardings, images), out_shardings=(images, *shardings))
        .lower(list(args), g)
        .compile()
    )
    return compiled([jax.device_put(a, s) for a, s in zip(args, shardings, strict=True)], jax.device_put(g, images)), (
        compiled.as_text()
    )


def stays_apart(program, reductions):
    moves = ("all-gather(", "all-to-all(", "collective-permute(")
    return not any(move in program for move in moves) and program.count(" all-reduce(") <= reductions


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CONVOLUTIONS if n not in ("grouped", "depthwise, two of each")])
def test_images_stay_on_their_devices(name):
    """The one thing that travels is the gradient of the kernel, once. (XLA's own grouped convolution moves images.)"""
    args, g, ours, theirs = case(name)
    args, g = (jnp.concatenate([args[0]] * 2), args[1]), jnp.concatenate([g] * 2)
    got, program = sharded(ours, args, g)
    assert stays_apart(program, 1)
    assert_close(got, with_gradients(theirs)(args, g))


def test_other_images_stay_on_their_devices():
    net = UpConv2x2(5)
    x = normal(4, 4, 6, 3)
    variables = net.init(jax.random.key(0), x)
    rows, columns = normal(8, 4), normal(12, 6)
    for function, channels in ((lambda x, v: net.apply(v, x), 5), (lambda x, v: resample(x, rows, columns), 3)):
        _, program = sharded(function, (x, variables), normal(4, 8, 12, channels))
        assert stays_apart(program, 2)
    _, program = sharded(lambda x: max_pool(x, 3, 2, 1, (1, 1)), (x,), normal(4, 2, 3, 3))
    assert stays_apart(program, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pointwise stride", "depthwise", "rows", "overlaps"])
def test_pmap_and_vmap(name):
    """One image a device, and a further axis before the batch."""
    args, g, ours, theirs = case(name)
    expected = with_gradients(theirs)(args, g)
    split = [v.reshape(2, 1, *v.shape[1:]) for v in (args[0], g)]
    for mapped in (jax.pmap, jax.vmap):
        y, dx, dk = mapped(lambda x, kernel, g: with_gradients(ours)((x, kernel), g), in_axes=(0, None, 0))(
            split[0], args[1], split[1]
        )
        assert_close((jnp.concatenate(list(y)), jnp.concatenate(list(dx)), dk.sum(0)), expected)


@pytest.mark.parametrize("kernel", [(1, 3, 4, 4), (3, 1, 1, 4)])
def test_kernel_need_not_be_square(kernel):
    x, kernel = normal(2, 6, 7, 4), normal(*kernel)
    static = 1, 1, 4 // kernel.shape[2], (0, 0)
    np.testing.assert_allclose(convolution(x, kernel, *static), plain(x, kernel, *static), atol=1e-5)


def test_result_may_be_empty():
    assert convolution(jnp.ones((1, 2, 5, 4)), jnp.ones((3, 3, 1, 4)), groups=4).shape == (1, 0, 3, 4)
