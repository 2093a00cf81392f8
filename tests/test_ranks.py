"""Losses, counts, resizing and convolution of volumes, against plain references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax import losses
from segjax.metrics import confusion, multilabel
from segjax.nn.layers import Conv, ConvNorm, LayerConfig
from segjax.nn.resize import resize

SHAPE, K = (2, 3, 4, 5), 3


def volume():
    random = np.random.default_rng(0)
    logits = random.normal(size=(*SHAPE, K)).astype(np.float32)
    label = random.integers(0, K, SHAPE).astype(np.int32)
    return logits, label, random.random(SHAPE) < 0.8


def test_cross_entropy_and_weights_of_volumes():
    logits, label, valid = volume()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, label[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(logits), jnp.asarray(label)), expected, rtol=1e-5)
    weights = losses.pixel_weights(jnp.asarray(label), jnp.asarray(valid), (0.5, 1.0, 2.0))
    np.testing.assert_array_equal(weights, np.where(valid, np.array([0.5, 1.0, 2.0])[label], 0))


@pytest.mark.parametrize("over", ["image", "batch"])
def test_dice_of_volumes(over):
    logits, label, valid = volume()
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    truth = label[..., None] == np.arange(K)
    found, present = losses.dice(jnp.asarray(p), jnp.asarray(truth), jnp.asarray(valid)[..., None], over=over)
    axes = (1, 2, 3) if over == "image" else (0, 1, 2, 3)
    p, t = p * valid[..., None], truth * valid[..., None]
    expected = 1 - (2 * (p * t).sum(axes) + 1) / (p.sum(axes) + t.sum(axes) + 1)
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-5)
    np.testing.assert_array_equal(present, (t.sum(axes) > 0).reshape(found.shape))


def test_counts_of_volumes():
    logits, label, valid = volume()
    prediction = logits.argmax(-1)
    expected = np.zeros((2, K, K), int)
    for place in np.ndindex(SHAPE):
        expected[place[0], label[place], prediction[place]] += valid[place]
    found = confusion.confusion_matrix(*map(jnp.asarray, (label, prediction, valid)), K)
    np.testing.assert_array_equal(found, expected)
    there, truth = logits > 0, label[..., None] == np.arange(K)
    every = np.broadcast_to(valid[..., None], there.shape)
    found = multilabel.multilabel_confusion(*map(jnp.asarray, (truth, there, every)))
    np.testing.assert_array_equal(found[:, :, 1, 1], (there & truth & every).sum((1, 2, 3)))
    np.testing.assert_array_equal(found.sum((-1, -2)), every.sum((1, 2, 3)))


def test_large_images_are_counted_slice_by_slice(monkeypatch):
    logits, label, valid = volume()
    args = (*map(jnp.asarray, (logits.argmax(-1), label, valid)), K)
    whole = confusion.confusion_matrix(*args)
    monkeypatch.setattr(confusion, "_EXACT_FLOAT32", 10)
    np.testing.assert_array_equal(confusion.confusion_matrix(*args), whole)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(6, 4, 9), (2, 8, 5), (3, 4, 5)])
def test_resize_of_volumes(size, align_corners):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2)).astype(np.float32)
    expected = x.astype(np.float64)
    for axis, target in enumerate(size, 1):
        source = x.shape[axis]
        centre = np.arange(target) * (source - 1) / max(target - 1, 1) if align_corners else None
        centre = (np.arange(target) + 0.5) * source / target - 0.5 if centre is None else centre
        centre = centre.clip(0, source - 1)
        below = np.floor(centre).astype(int).clip(max=source - 1)
        above, share = np.minimum(below + 1, source - 1), (centre - below).reshape(-1, *(1,) * (4 - axis))
        expected = expected.take(below, axis) * (1 - share) + expected.take(above, axis) * share
    np.testing.assert_allclose(resize(jnp.asarray(x), size, align_corners), expected, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2}, {"dilation": 2}, {"kernel": (1, 3, 3), "stride": (1, 2, 1)}, {"groups": 2, "use_bias": True}],
)
def test_conv_of_volumes(settings):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 7, 4))
    layer = Conv(6, **settings)
    params = layer.init(jax.random.key(1), x)["params"]
    size = settings.get("kernel", (3, 3, 3))
    assert params["kernel"].shape == (*size, 4 // settings.get("groups", 1), 6)
    dilation = settings.get("dilation", 1)
    stride = settings.get("stride", 1)
    expected = lax.conv_general_dilated(
        x, params["kernel"], (stride,) * 3 if isinstance(stride, int) else stride,
        [(dilation * (n - 1) // 2,) * 2 for n in size], rhs_dilation=(dilation,) * 3,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), feature_group_count=settings.get("groups", 1),
    ) + params.get("bias", jnp.zeros(6)).reshape(1, 1, 1, 1, -1)  # fmt: skip
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_of_volumes(norm):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 7, 4))
    layer = ConvNorm(4, LayerConfig(norm=norm), activation=None)
    y, _ = layer.init_with_output(jax.random.key(1), x, True)
    axes = (0, 1, 2, 3) if norm == "batch" else (1, 2, 3, 4)
    np.testing.assert_allclose(y.mean(axes), 0.0, atol=1e-5)
