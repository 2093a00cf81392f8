import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from parts import quick

from segjax import models
from segjax.nn.kernels import max_pool
from segjax.nn.kernels.scaling import transposed_convolution
from segjax.nn.layers import UpConv2x2
from segjax.nn.resize import resize, resize_valid_region
from segjax.spec import DatasetSpec

pytestmark = pytest.mark.core

SPEC = DatasetSpec(("a", "b", "c"))
VARIANTS = {
    "same": {},
    "valid": {"padding": "valid", "norm": "none"},
    "group": {"norm": "group"},
    "resize": {"upsampling": "resize", "norm": "none"},
    "bf16": {"dtype": "bfloat16"},
    "remat": {"remat": True, "dropout": 0.3},
}


def make(size=(24, 40), **kwargs):
    model = models.create("unet", SPEC, **({"widths": (8, 16, 32)} | kwargs))
    images = jax.random.normal(jax.random.key(1), (2, *size, 3))
    return model, jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images), images


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(60, 60), (61, 79)])
def test_outputs_cover_input_less_margin(variant, size):
    model, variables, _ = make(**VARIANTS[variant])
    out = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, jnp.zeros((2, *size, 3)))
    assert list(out) == ["logits"] and out["logits"].dtype == jnp.float32
    assert out["logits"].shape == (2, size[0] - 2 * model.margin, size[1] - 2 * model.margin, 3)


def test_paper_sizes():
    model = models.create("unet", SPEC, widths=(64, 128, 256, 512, 1024), padding="valid", norm="none")
    shapes = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, 572, 572, 1)), train=False))
    assert model.margin == 92
    assert shapes[0]["logits"].shape == (1, 388, 388, 3)
    # 1x1 convolution from 64 channels: 23 convolutional layers in total (section 2 of the paper).
    kernels = [p for p in jax.tree.leaves(shapes[1]["params"]) if p.ndim == 4]
    assert len(kernels) == 23


@pytest.mark.parametrize("variant", quick("bf16", of=VARIANTS))
def test_gradient_reaches_every_parameter(variant):
    model, variables, _ = make(**VARIANTS[variant])
    images = jax.random.normal(jax.random.key(1), (2, 60, 60, 3))

    @jax.jit
    def loss(params):
        out, _ = model.apply(
            variables | {"params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(3)},
        )
        return jnp.sum(jnp.sin(out["logits"]))

    grads = jax.grad(loss)(variables["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.any(g != 0), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_every_skip_changes_the_output(monkeypatch):
    model, variables, images = make()
    before = model.apply(variables, images, train=False)["logits"]
    concatenate = jnp.concatenate
    for dropped in range(2):
        seen = []

        def cut(arrays, axis, dropped=dropped, seen=seen):
            seen.append(arrays)
            up, skip = arrays
            return concatenate([up, skip * 0 if len(seen) - 1 == dropped else skip], axis=axis)

        monkeypatch.setattr("segjax.models.unet.jnp.concatenate", cut)
        after = model.apply(variables, images, train=False)["logits"]
        monkeypatch.undo()
        assert len(seen) == 2 and not np.allclose(before, after)


def test_padding_to_the_stride_equals_padding_by_hand():
    model, variables, images = make(size=(21, 30), norm="none")
    padded = jnp.pad(images, ((0, 0), (0, 3), (0, 2), (0, 0)))
    a = model.apply(variables, images, train=False)["logits"]
    b = model.apply(variables, padded, train=False)["logits"][:, :21, :30]
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_he_initialisation():
    net = UpConv2x2(64)
    kernel = net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 128)))["params"]["kernel"]
    assert abs(float(kernel.std()) - (2 / 128) ** 0.5) < 0.003
    model = models.create("unet", SPEC, widths=(64, 128))
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"]
    assert abs(float(params["down_1"]["conv1"]["conv"]["kernel"].std()) - (2 / (9 * 64)) ** 0.5) < 0.002


def test_platform_forms_agree():
    x = jax.random.normal(jax.random.key(0), (2, 6, 10, 5))
    np.testing.assert_array_equal(max_pool(x, 2, 2), nn.max_pool(x, (2, 2), (2, 2)))
    up = UpConv2x2(7)
    variables = up.init(jax.random.key(1), x)
    reference = nn.ConvTranspose(7, (2, 2), (2, 2), padding="VALID")
    np.testing.assert_allclose(up.apply(variables, x), reference.apply(variables, x), atol=1e-5)
    # What TPUs run, whose gradients are its own.
    kernel = variables["params"]["kernel"]
    g = jax.random.normal(jax.random.key(2), (2, 12, 20, 7))

    def gradients(function):
        return jax.vjp(function, x, kernel)[1](g)

    def transposed(x, kernel):
        return lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    for a, b in zip(gradients(transposed_convolution), gradients(transposed), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_folding_changes_nothing(train):
    """Parameters, outputs, gradients and statistics are those of the unfolded network, to float32 rounding."""
    nets = [models.create("unet", SPEC, widths=(4, 8), pair_columns=paired) for paired in (False, True)]
    images = jax.random.normal(jax.random.key(1), (2, 9, 7, 3))
    plain = jax.jit(functools.partial(nets[0].init, train=False))(jax.random.key(0), images)
    folded = jax.eval_shape(functools.partial(nets[1].init, train=False), jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, folded)
    noise = jax.random.uniform(jax.random.key(2), (8,), minval=-0.1, maxval=0.1)
    variables = jax.tree.map(lambda x: x + jnp.resize(noise, x.shape), plain)

    def run(model):
        @jax.jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def loss(params, images):
            given = variables | {"params": params}
            out, updated = model.apply(given, images, train=train, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(out["logits"])), (out["logits"], updated)

        return loss(variables["params"], images)

    for a, b in zip(*(jax.tree.leaves(run(model)) for model in nets), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * np.max(np.abs(a)))


def test_resize_is_half_pixel_without_antialiasing():
    x = np.random.default_rng(0).normal(size=(1, 5, 7, 2)).astype(np.float32)
    for size in [(11, 3), (5, 14), (1, 1)]:
        expected = np.zeros((1, *size, 2), np.float32)
        for i in range(size[0]):
            for j in range(size[1]):
                y = np.clip((i + 0.5) * 5 / size[0] - 0.5, 0, 4)
                u = np.clip((j + 0.5) * 7 / size[1] - 0.5, 0, 6)
                y0, u0 = int(y), int(u)
                y1, u1 = min(y0 + 1, 4), min(u0 + 1, 6)
                a, b = y - y0, u - u0
                expected[0, i, j] = (1 - a) * ((1 - b) * x[0, y0, u0] + b * x[0, y0, u1]) + a * (
                    (1 - b) * x[0, y1, u0] + b * x[0, y1, u1]
                )
        np.testing.assert_allclose(resize(jnp.asarray(x), size), expected, atol=1e-5)


def test_fit_resizes_each_image_as_if_alone():
    x = jax.random.normal(jax.random.key(0), (2, 8, 10, 3))
    valid, native = jnp.array([[8, 6], [4, 10]]), jnp.array([[16, 13], [9, 20]])
    found = resize_valid_region(x, valid, native, (8, 10), (16, 20))
    for i, ((h, w), (y, u)) in enumerate(zip(valid.tolist(), native.tolist(), strict=True)):
        np.testing.assert_allclose(found[i, :y, :u], resize(x[i : i + 1, :h, :w], (y, u))[0], atol=1e-5)
