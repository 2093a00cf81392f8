"""Batch norm: statistics of all devices, running statistics as PyTorch's, and the rounding of the variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.nn.batch_norm import BatchNorm
from segjax.nn.kernels.column_pairs import PairedBatchNormReLU, pair_columns
from segjax.nn.layers import LayerConfig

pytestmark = pytest.mark.core


def variables(channels, mean=0.0, var=1.0):
    filled = {name: jnp.full(channels, value) for name, value in (("mean", mean), ("var", var))}
    return {"params": {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}, "batch_stats": filled}


def trained(norm, given, x):
    y, updated = jax.jit(lambda given, x: norm.apply(given, x, True, mutable="batch_stats"))(given, jnp.asarray(x))
    return np.asarray(y), jax.tree.map(np.asarray, updated["batch_stats"])


def values(*shape, seed=0, ratio=1.0):
    """Normal values whose mean is so many deviations."""
    return (np.random.default_rng(seed).normal(size=shape) + ratio).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (4, 1, 1, 3), (1, 2, 1, 3), (2, 5, 7, 3), (2, 2, 3, 4, 3), (1, 9, 2)])
def test_the_running_variance_is_unbiased(shape):
    x = values(*shape)
    y, stats = trained(BatchNorm(0.9, 1e-5), variables(shape[-1], 0.3, 2.0), x)
    axes = tuple(range(x.ndim - 1))
    np.testing.assert_allclose(stats["mean"], 0.9 * 0.3 + 0.1 * x.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 * 2.0 + 0.1 * x.var(axes, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(y, (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5), atol=1e-4)


def test_one_value_keeps_the_running_variance():
    y, stats = trained(BatchNorm(0.9, 1e-5), variables(2, 0.3, 2.0), np.array([[[[5.0, -7.0]]]], np.float32))
    np.testing.assert_array_equal(stats["var"], [2.0, 2.0])
    np.testing.assert_allclose(stats["mean"], [0.77, -0.43], rtol=1e-6)
    assert not y.any()


@pytest.mark.parametrize("shifted", [False, True])
def test_paired_maps_have_the_same_statistics(shifted):
    x = values(2, 3, 8, 4)
    paired = np.asarray(pair_columns(jnp.asarray(x)))
    if shifted:
        edge = np.full((2, 3, 1, 4), 1e3, np.float32)  # columns outside the image
        paired = np.asarray(pair_columns(jnp.asarray(np.concatenate([edge, x, edge], axis=2))))
    config = LayerConfig(momentum=0.9)
    _, stats = trained(PairedBatchNormReLU(config, shifted), variables(4, 0.3, 2.0), paired)
    _, expected = trained(BatchNorm(config.momentum, config.epsilon), variables(4, 0.3, 2.0), x)
    np.testing.assert_allclose(expected["var"], 0.9 * 2.0 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, expected)


@pytest.mark.parametrize("shape", [(4, 1, 1, 3), (4, 4, 6, 3)])
def test_devices_share_statistics_and_their_count(shape):
    """One value a device is not one value in all: the count is the global one."""
    x = values(*shape)
    norm = BatchNorm(0.9, 1e-5, axis_name="data")
    parts = jax.pmap(
        lambda given, x: norm.apply(given, x, True, mutable="batch_stats"), axis_name="data", in_axes=(None, 0)
    )
    _, found = parts(variables(3), x[:, None])
    _, expected = trained(BatchNorm(0.9, 1e-5), variables(3), x)
    for name, each in found["batch_stats"].items():
        np.testing.assert_allclose(each, np.broadcast_to(expected[name], each.shape), rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 7, 9, 64), (4, 96, 128, 4)])
def test_rounding_of_the_variance_is_bounded(shape, ratio):
    """By the docstring's bound, in plain and in paired maps."""
    x = values(*shape, ratio=ratio)
    exact = x.astype(np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2), ddof=1)
    found = [trained(BatchNorm(0.0, 1e-5), variables(shape[-1]), x)]
    if shape[2] % 2 == 0:
        paired = np.asarray(pair_columns(jnp.asarray(x)))
        found.append(trained(PairedBatchNormReLU(LayerConfig(momentum=0.0), False), variables(shape[-1]), paired))
    for _, stats in found:
        error = np.abs(stats["var"] / var - 1)
        assert (error <= 32 * 2**-24 * (1 + mean**2 / var)).all()
        assert ratio < 1000 or error.max() > 1e-3, "else the bound is too wide"


@pytest.mark.parametrize("ratio", [1.0, 1000.0])
def test_maps_of_one_pixel_take_a_second_pass(ratio):
    x = values(8, 1, 1, 5, ratio=ratio)
    _, stats = trained(BatchNorm(0.0, 1e-5), variables(5), x)
    np.testing.assert_allclose(stats["var"], x.astype(np.float64).var((0, 1, 2), ddof=1), rtol=2e-5 + 1e-7 * ratio)
