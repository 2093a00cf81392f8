from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax import losses
from segjax.losses import regions

pytestmark = pytest.mark.core

DEVICES = 4


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def problem(seed=0, b=8, h=7, w=5, k=3, ignored=0.3):
    """Logits, labels and validity in which class 2 is in one image only and image 1 has no ground truth at all."""
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, k - 1, (b, h, w)).astype(np.uint8)
    stored[0, :2] = k - 1
    stored[rng.random((b, h, w)) < ignored] = 255
    stored[1] = 255
    logits = rng.normal(size=(b, h, w, k)).astype(np.float32) * 3
    label, valid = losses.split_ignore(jnp.asarray(stored), 255)
    return jnp.asarray(logits), label, valid


@pytest.mark.parametrize("dtype, ignore", [(np.uint8, 255), (np.uint16, 65535), (np.uint16, 300), (np.uint8, 65535)])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 5, 2)])
def test_split_ignore(dtype, ignore, shape):
    stored = np.random.default_rng(0).choice(np.array([0, 1, 7, 255], dtype), shape)
    stored = np.asarray(stored, dtype)
    if ignore <= np.iinfo(dtype).max and shape:
        stored.flat[0] = ignore
    label, valid = losses.split_ignore(jnp.asarray(stored), ignore)
    assert label.dtype == jnp.int32 and valid.dtype == jnp.bool_
    np.testing.assert_array_equal(valid, stored.astype(int) != ignore)
    np.testing.assert_array_equal(label, np.where(stored.astype(int) == ignore, 0, stored))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_textbooks_and_optaxs(smoothing):
    logits, label, _ = problem()
    loss = jax.jit(lambda x: losses.cross_entropy(x, label, label_smoothing=smoothing))(logits)
    target = np.eye(3)[np.asarray(label)] * (1 - smoothing) + smoothing / 3
    expected = -(target * np.log(softmax(np.asarray(logits, np.float64)))).sum(-1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    if not smoothing:
        reference = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        np.testing.assert_allclose(loss, reference, rtol=1e-5, atol=1e-6)


def test_cross_entropy_gradient_is_softmax_minus_truth():
    logits, label, _ = problem()
    grad = jax.grad(lambda x: losses.cross_entropy(x, label).sum())(logits)
    np.testing.assert_allclose(grad, softmax(np.asarray(logits)) - np.eye(3)[np.asarray(label)], atol=1e-6)


def test_cross_entropy_is_stable_in_bfloat16():
    logits = jnp.array([[[[3e38, -3e38], [80.0, -80.0]]]], jnp.bfloat16)
    label = jnp.zeros((1, 1, 2), jnp.int32)
    loss, grad = jax.value_and_grad(lambda x: losses.cross_entropy(x, label).sum())(logits)
    assert loss.dtype == jnp.float32 and loss == 0
    assert grad.dtype == jnp.bfloat16 and not np.asarray(grad, np.float32).any()
    wrong = losses.cross_entropy(jnp.array([[[[1000.0, -1000.0]]]], jnp.bfloat16), jnp.ones((1, 1, 1), jnp.int32))
    assert wrong.item() == 2000.0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.float32, jnp.bfloat16])
def test_binary_cross_entropy_is_two_class_cross_entropy(smoothing, dtype):
    logits, label, _ = problem(k=2)
    pair = jnp.stack([jnp.zeros_like(logits[..., 1]), logits[..., 1]], axis=-1)
    loss = losses.binary_cross_entropy(logits[..., 1], (label == 1).astype(dtype), label_smoothing=smoothing)
    np.testing.assert_allclose(loss, losses.cross_entropy(pair, label, label_smoothing=smoothing), rtol=1e-5, atol=1e-6)
    if not smoothing:
        reference = optax.sigmoid_binary_cross_entropy(logits[..., 1], (label == 1).astype(jnp.float32))
        np.testing.assert_allclose(loss, reference, rtol=1e-5, atol=1e-6)


def test_binary_cross_entropy_keeps_small_losses_and_bounds_large_gradients():
    logits = jnp.array([20.0, -20.0, 1e4, -1e4, 1e4])
    target = jnp.array([1.0, 0.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(
        losses.binary_cross_entropy(logits, target), [np.exp(-20), np.exp(-20), 0, 0, 1e4], rtol=1e-5
    )
    grad = jax.grad(lambda x: losses.binary_cross_entropy(x, target).sum())(logits)
    np.testing.assert_allclose(grad, [-np.exp(-20), np.exp(-20), 0, 0, 1], rtol=1e-5)


def test_class_weighted_mean_divides_by_the_weights():
    logits, label, valid = problem()
    weights = (0.5, 2, 7.0)
    mean = losses.weighted_mean(losses.cross_entropy(logits, label), losses.pixel_weights(label, valid, weights))
    log_p = np.log(softmax(np.asarray(logits, np.float64)))
    top = bottom = 0.0
    for at in zip(*np.nonzero(np.asarray(valid)), strict=True):  # torch.nn.CrossEntropyLoss, "mean", written out
        truth = int(label[at])
        top, bottom = top - weights[truth] * log_p[at][truth], bottom + weights[truth]
    np.testing.assert_allclose(mean, top / bottom, rtol=1e-5)


@pytest.mark.parametrize("weights", [(0.5, 2, 7.0), (0.0, 1.0, 3.0)])
def test_smoothed_targets_take_the_weight_of_each_class(weights):
    """torch.nn.CrossEntropyLoss(weight, ignore_index, label_smoothing), written out; also for two classes."""
    for k in (3, 2):
        logits, label, valid = problem(k=k)
        w = np.array(weights[:k])
        values = losses.cross_entropy(logits, label, label_smoothing=0.2, class_weights=weights[:k])
        divided_by = losses.pixel_weights(label, valid, weights[:k])
        mean, divisor = losses.mean_and_divisor(values, valid, divided_by=divided_by)
        log_p = np.log(softmax(np.asarray(logits, np.float64)))[np.asarray(valid)]
        truth = np.asarray(label)[np.asarray(valid)]
        target = 0.8 * np.eye(k)[truth] + 0.2 / k
        np.testing.assert_allclose(mean, -(w * target * log_p).sum() / w[truth].sum(), rtol=1e-5)
        np.testing.assert_allclose(divisor, w[truth].sum(), rtol=1e-6)
    one = jnp.stack([jnp.zeros_like(logits[..., 1]), logits[..., 1]], axis=-1)
    expected = losses.cross_entropy(one, label, label_smoothing=0.2, class_weights=weights[:2])
    found = losses.binary_cross_entropy(one[..., 1], label == 1, label_smoothing=0.2, class_weights=weights[:2])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [(), (0.5, 2.0, 7.0)])
def test_weights_without_smoothing_multiply(weights):
    logits, label, valid = problem()
    found = losses.cross_entropy(logits, label, class_weights=weights)
    factor = losses.pixel_weights(label, jnp.ones_like(valid), weights) if weights else 1.0
    np.testing.assert_allclose(found, losses.cross_entropy(logits, label) * factor, rtol=1e-5, atol=1e-6)


def test_weighted_mean_of_nothing_is_zero_with_zero_gradient():
    value, grad = jax.value_and_grad(losses.weighted_mean)(jnp.ones(5), jnp.zeros(5))
    assert value == 0 and not grad.any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_weightless_values_do_not_leak(poison):
    def mean(x):
        return losses.weighted_mean(jnp.log(x), jnp.array([True, True, False]))

    value, grad = jax.value_and_grad(mean)(jnp.array([1.0, np.e, 1.0]))
    poisoned = jnp.array([0.0, 1.0, poison])
    assert losses.weighted_mean(poisoned, jnp.array([1.0, 1.0, 0.0])) == 0.5
    np.testing.assert_allclose(value, 0.5, rtol=1e-6)
    gradient = jax.grad(losses.weighted_mean)(poisoned, jnp.array([1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(gradient, [0.5, 0.5, 0.0])
    np.testing.assert_allclose(grad, [0.5, 0.5 / np.e, 0], rtol=1e-6)


def test_ignored_logits_change_neither_loss_nor_gradient():
    logits, label, valid = problem()

    def loss(logits):
        probabilities = jax.nn.softmax(logits)
        per_class, present = losses.dice(probabilities, jax.nn.one_hot(label, 3), valid[..., None])
        return losses.weighted_mean(losses.cross_entropy(logits, label), valid) + losses.weighted_mean(
            per_class, present
        )

    changed = jnp.where(valid[..., None], logits, -7 * logits + 100)
    (a, da), (b, db) = (jax.value_and_grad(loss)(x) for x in (logits, changed))
    assert a == b
    np.testing.assert_array_equal(da, db)
    assert not np.asarray(da)[~np.asarray(valid)].any()


POISON = (np.nan, np.inf, -np.inf, 3e38, -3e38)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1}, {"class_weights": (1.0, 0.0)}], ids=str)
def test_the_gradient_of_ignored_pixels_is_zero_whatever_the_logits(settings, dtype, poison):
    logits, label, valid = problem(k=2)
    logits, keep = logits.astype(dtype), np.asarray(valid)
    poisoned = jnp.where(valid[..., None], logits, poison).astype(dtype)

    def multiclass(x):
        return losses.weighted_mean(losses.cross_entropy(x, label, **settings), valid)

    def binary(x):
        return losses.weighted_mean(losses.binary_cross_entropy(x[..., 0], label == 1, **settings), valid)

    for mean in (multiclass, binary):
        (value, grad), (expected, clean) = (jax.value_and_grad(mean)(x) for x in (poisoned, logits))
        assert value == expected
        assert not np.asarray(grad)[~keep].any() and np.asarray(clean)[keep].any()
        np.testing.assert_array_equal(grad, clean)


def test_nan_logits_of_labelled_pixels_show():
    """Only where no gradient comes in is a NaN held back."""
    logits, label, valid = problem()
    broken = logits.at[0, 0, 0].set(jnp.nan)
    grad = jax.grad(lambda x: losses.weighted_mean(losses.cross_entropy(x, label), valid | True))(broken)
    assert np.isnan(grad[0, 0, 0]).all() and np.isfinite(grad[1:]).all()


def test_soft_targets_have_a_gradient():
    logits, _, _ = problem(k=2)
    target = jax.nn.sigmoid(logits[..., 1])
    grad = jax.grad(lambda t: losses.binary_cross_entropy(logits[..., 0], t).sum())(target)
    np.testing.assert_allclose(grad, -logits[..., 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.3, 0.07, 0.29, 0.1, 0.001, 0.123456789, 1 / 3, 2 / 7, 1e-9, 0.2])
def test_the_number_of_hard_pixels_is_exact(fraction):
    """Against Python's rational numbers."""
    random = np.random.default_rng(0)
    counts = np.concatenate([np.arange(20_000), random.integers(0, 2**31, 20_000), [2**31 - 1, 2**24 + 1, 100_000_000]])
    found = jax.jit(lambda n: regions.ceil_of_fraction(n, fraction))(jnp.asarray(counts, jnp.int32))
    exact = {1 / 3: Fraction(1, 3), 2 / 7: Fraction(2, 7)}.get(fraction, Fraction(str(fraction)))
    expected = [-(-int(n) * exact.numerator // exact.denominator) for n in counts]
    np.testing.assert_array_equal(found, expected)


def test_ohem_marks_exactly_that_many():
    """Different losses have no ties: 0.07 of 100 are 7, which floats get wrong."""
    for n in (100, 1000, 3125):
        values = jnp.asarray(np.random.default_rng(0).permutation(n), jnp.float32)[None]
        assert losses.ohem_mask(values, jnp.ones((1, n), bool), 0.07).sum() == -(-7 * n // 100)


@pytest.mark.parametrize("over", ["image", "batch"])
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("smooth", [1.0, 1e-3])
def test_dice_is_the_formula(over, per_class, smooth):
    logits, label, valid = problem()
    p, t = softmax(np.asarray(logits, np.float64)), np.eye(3)[np.asarray(label)]
    mask = np.asarray(valid)[..., None] & (np.random.default_rng(1).random((*valid.shape, 3 if per_class else 1)) < 0.8)
    loss, present = losses.dice(
        jnp.asarray(p, jnp.float32), jnp.asarray(t == 1), jnp.asarray(mask), over=over, smooth=smooth
    )
    scopes = [slice(None)] if over == "batch" else [slice(i, i + 1) for i in range(len(p))]
    for row, scope in enumerate(scopes):
        for k in range(3):
            m = np.broadcast_to(mask, p.shape)[scope, ..., k]
            pk, tk = p[scope, ..., k][m], t[scope, ..., k][m]
            expected = 1 - (2 * (pk * tk).sum() + smooth) / (pk.sum() + tk.sum() + smooth)
            np.testing.assert_allclose(loss[row, k], expected, rtol=1e-4, atol=1e-6)
            assert present[row, k] == float(tk.any())
    assert loss.shape == present.shape == (len(scopes), 3)


def test_dice_of_hard_masks_is_one_minus_dice_without_smoothing():
    prediction = jnp.array([[1.0, 1, 1, 0, 0, 0]]).reshape(1, 2, 3, 1)
    truth = jnp.array([[0.0, 1, 1, 1, 1, 0]]).reshape(1, 2, 3, 1)
    loss, _ = losses.dice(prediction, truth, jnp.ones((1, 2, 3, 1), bool), smooth=0.0)
    np.testing.assert_allclose(loss, [[1 - 2 * 2 / (3 + 4)]], rtol=1e-6)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("over", ["image", "batch"])
def test_everything_ignored_is_finite(over, smooth):
    stored = jnp.full((2, 4, 4), 255, jnp.uint8)
    label, valid = losses.split_ignore(stored, 255)

    def loss(logits):
        per_class, present = losses.dice(
            jax.nn.softmax(logits), jax.nn.one_hot(label, 3), valid[..., None], over=over, smooth=smooth
        )
        return (
            losses.weighted_mean(losses.cross_entropy(logits, label), valid)
            + losses.weighted_mean(per_class, present)
            + 0.0 * per_class.sum()
        )

    value, grad = jax.value_and_grad(loss)(jnp.full((2, 4, 4, 3), 1e4, jnp.bfloat16))
    assert value == 0 and not np.asarray(grad, np.float32).any()


def test_a_million_bfloat16_pixels_are_summed_exactly():
    pixels = jnp.ones((1, 1024, 1024, 1), jnp.bfloat16)
    truth = jnp.zeros((1, 1024, 1024, 1), bool).at[:, :256].set(True)
    (loss,), _ = losses.dice(pixels, truth, jnp.ones_like(truth), smooth=1.0)
    np.testing.assert_allclose(loss, [1 - (2 * 2**18 + 1) / (2**20 + 2**18 + 1)], rtol=1e-6)
    assert losses.weighted_mean(jnp.where(truth, pixels, 0), jnp.ones_like(truth)) == 0.25


@pytest.mark.parametrize("over", ["image", "batch"])
@pytest.mark.parametrize("term", ["cross_entropy", "dice"])
def test_device_shares_sum_to_the_global_loss_and_gradient(over, term):
    logits, label, valid = problem()
    factor = jnp.array([0.5, 1.0, -0.3])

    def loss(factor, logits, label, valid, axis_name=None):
        logits = logits * factor[None, None, None]
        if term == "cross_entropy":
            weights = losses.pixel_weights(label, valid, (1.0, 2.0, 5.0))
            return losses.weighted_mean(losses.cross_entropy(logits, label), weights, axis_name)
        per_class, present = losses.dice(
            jax.nn.softmax(logits), jax.nn.one_hot(label, 3), valid[..., None], over=over, axis_name=axis_name
        )
        return losses.weighted_mean(per_class, present, axis_name)

    def device(factor, logits, label, valid):
        share, grad = jax.value_and_grad(loss)(factor, logits, label, valid, "data")
        return share, jax.lax.psum(grad, "data")

    whole, whole_grad = jax.value_and_grad(loss)(factor, logits, label, valid)
    shards = [x.reshape(DEVICES, -1, *x.shape[1:]) for x in (logits, label, valid)]
    shares, grads = jax.pmap(device, axis_name="data", in_axes=(None, 0, 0, 0))(factor, *shards)
    np.testing.assert_allclose(shares.sum(), whole, rtol=1e-5)
    if term == "dice" and over == "batch":
        np.testing.assert_allclose(shares, whole / DEVICES * np.ones(DEVICES), rtol=1e-5)
    for grad in grads:
        np.testing.assert_allclose(grad, whole_grad, rtol=1e-4, atol=1e-6)


def test_losses_map_over_a_leading_axis():
    logits, label, valid = (x[:, None] for x in problem())

    def loss(logits, label, valid):
        return losses.weighted_mean(losses.cross_entropy(logits, label), valid)

    each = [loss(*one).item() for one in zip(logits, label, valid, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(logits, label, valid), each, rtol=1e-6)
    assert each[1] == 0
