import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from segjax import augment
from segjax.checks import UserError

LUMA = np.array([0.299, 0.587, 0.114])
ALL = {
    "brightness": 0.2,
    "contrast": 0.3,
    "saturation": 0.4,
    "hue": 0.1,
    "gamma": 0.3,
    "noise": 0.05,
    "blur": 1.0,
    "cutout": 0.3,
}


def make(b=6, h=24, w=31, c=3, low=0.0, high=1.0, seed=0):
    pixels = np.random.default_rng(seed).uniform(low, high, (b, h, w, c))
    return jax.random.split(jax.random.key(seed), b), jnp.asarray(pixels, jnp.float32)


def apply(keys, images, **amplitudes):
    return np.asarray(jax.jit(lambda k, x: augment.colour(k, x, **amplitudes))(keys, images))


def assert_spread(draws, low, high):
    """Draws fill (low, high): none outside, and 200 of them come within 5 % of both ends."""
    margin = 0.05 * (high - low)
    assert len(draws) >= 200 and low <= draws.min() < low + margin and high - margin < draws.max() <= high


def test_zero_amplitudes_leave_no_operation():
    keys, images = make()
    jaxpr = jax.make_jaxpr(augment.colour)(keys, images)
    assert not jaxpr.eqns
    np.testing.assert_array_equal(augment.colour(keys, images), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_result_is_finite_and_in_range(channels):
    keys, images = make(c=channels)
    images = images.at[0].set(0.0).at[1].set(1.0)
    loud = {name: 2 * a for name, a in ALL.items() if channels == 3 or name not in ("saturation", "hue")}
    result = apply(keys, images, **loud)
    assert result.shape == images.shape and result.dtype == np.float32
    assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1
    assert (result != np.asarray(images)).any(axis=(1, 2, 3)).all()


def test_an_image_depends_on_its_own_key_only():
    keys, images = make()
    result = apply(keys, images, **ALL)
    order = np.array([4, 0, 5, 2, 1, 3])
    np.testing.assert_allclose(apply(keys[order], images[order], **ALL), result[order], atol=1e-6)
    np.testing.assert_allclose(apply(keys[2:3], images[2:3], **ALL)[0], result[2], atol=1e-6)
    same = apply(keys, jnp.broadcast_to(images[:1], images.shape), **ALL)
    assert len({image.tobytes() for image in same}) == len(same)


def test_an_operation_draws_the_same_whatever_else_is_on():
    keys, images = make(low=0.4, high=0.6)
    shift = apply(keys, images, brightness=0.1) - np.asarray(images)
    blurred = apply(keys, images, blur=1.0)
    np.testing.assert_allclose(apply(keys, images, brightness=0.1, blur=1.0), blurred + shift, atol=1e-5)


def test_brightness_adds_one_number():
    keys, images = make(b=200, h=4, w=5, low=0.3, high=0.7)
    shift = apply(keys, images, brightness=0.25) - np.asarray(images)
    np.testing.assert_allclose(shift, shift[:, :1, :1, :1] + 0 * shift, atol=1e-6)
    assert_spread(shift[:, 0, 0, 0], -0.25, 0.25)


def test_contrast_scales_about_the_mean_colour():
    keys, images = make(b=200, h=4, w=5, low=0.4, high=0.6)
    before = np.asarray(images)
    after = apply(keys, images, contrast=0.5)
    mean = before.mean((1, 2), keepdims=True)
    factor = ((after - mean) * (before - mean)).sum((1, 2, 3)) / ((before - mean) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(after, mean + factor[:, None, None, None] * (before - mean), atol=1e-6)
    assert_spread(factor, 0.5, 1.5)


def test_saturation_scales_about_luma():
    keys, images = make(b=200, h=4, w=5, low=0.4, high=0.6)
    before = np.asarray(images)
    after = apply(keys, images, saturation=0.5)
    grey = (before @ LUMA)[..., None]
    factor = ((after - grey) * (before - grey)).sum((1, 2, 3)) / ((before - grey) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(after, grey + factor[:, None, None, None] * (before - grey), atol=1e-6)
    assert_spread(factor, 0.5, 1.5)


def test_hue_turns_the_chroma_plane():
    keys, images = make(b=200, h=4, w=5, low=0.4, high=0.6)
    before, after = np.asarray(images), apply(keys, images, hue=0.25)

    def chroma(rgb):
        """I and Q of the standard library's YIQ, with luma to three digits as in BT.601, as a complex number."""
        y = rgb @ LUMA
        return (
            0.74 * (rgb[..., 0] - y)
            - 0.27 * (rgb[..., 2] - y)
            + 1j * (0.48 * (rgb[..., 0] - y) + 0.41 * (rgb[..., 2] - y))
        )

    red = np.array([1.0, 0.0, 0.0])
    assert abs(chroma(red) - complex(*colorsys.rgb_to_yiq(*red)[1:])) < 2e-3
    np.testing.assert_allclose(after @ LUMA, before @ LUMA, atol=1e-6)
    turn = (chroma(after) * chroma(before).conj()).sum((1, 2))
    turn = turn / np.abs(turn)
    np.testing.assert_allclose(chroma(after), turn[:, None, None] * chroma(before), atol=1e-6)
    assert_spread(np.angle(turn) / (2 * np.pi), -0.25, 0.25)


@pytest.mark.parametrize("operation", [{"hue": 0.5}, {"saturation": 1.0}])
def test_grey_stays_grey(operation):
    keys, images = make(c=1)
    images = jnp.broadcast_to(images, (*images.shape[:3], 3))
    np.testing.assert_allclose(apply(keys, images, **operation), images, atol=1e-6)


def test_gamma_raises_to_a_power():
    keys, images = make(b=200, h=4, w=5, low=0.2, high=0.8)
    power = np.log(apply(keys, images, gamma=0.7)) / np.log(np.asarray(images))
    np.testing.assert_allclose(power, power[:, :1, :1, :1] + 0 * power, rtol=1e-4)
    assert_spread(np.log(power[:, 0, 0, 0]), -0.7, 0.7)


def test_noise_is_white_and_of_every_strength():
    keys, images = make(b=200, h=32, w=32, low=0.5, high=0.5)
    noise = apply(keys, images, noise=0.05) - 0.5
    deviation = noise.std((1, 2, 3))
    assert deviation.min() < 0.0025 and 0.0475 < deviation.max() < 0.0525
    strong = noise[deviation > 0.02] / deviation[deviation > 0.02][:, None, None, None]
    assert abs(strong.mean()) < 0.01 and abs((strong**3).mean()) < 0.02 and abs((strong**4).mean() - 3) < 0.05
    for lag in (strong[:, 1:] * strong[:, :-1], strong[..., 1:] * strong[..., :-1]):
        assert abs(lag.mean()) < 0.01


def test_blur_is_a_gaussian_with_edges_continued():
    keys, images = make(b=20, h=24, w=31)
    impulse = jnp.zeros_like(images).at[:, 12, 15].set(1.0)
    response = apply(keys, impulse, blur=2.0)[:, 12, 13:18, 0].astype(np.float64)
    with np.errstate(divide="ignore"):  # the neighbour of a very narrow kernel's centre underflows to 0
        sigma = np.sqrt(-0.5 / np.log(response[:, 3] / response[:, 2]))
    assert sigma.min() < 0.5 and 1.5 < sigma.max() <= 2.0
    for before, after, s in zip(np.asarray(images), apply(keys, images, blur=2.0), sigma, strict=True):
        expected = ndimage.gaussian_filter(before, s, axes=(0, 1), mode="nearest", radius=6)
        np.testing.assert_allclose(after, expected, atol=1e-4)


def test_blur_keeps_constants_and_the_mean():
    keys, images = make(h=40, w=40)
    np.testing.assert_allclose(apply(keys, jnp.full_like(images, 0.3), blur=2.0), 0.3, atol=1e-6)
    framed = jnp.full_like(images, 0.5).at[:, 12:-12, 12:-12].set(images[:, 12:-12, 12:-12])
    np.testing.assert_allclose(apply(keys, framed, blur=2.0).mean((1, 2)), np.asarray(framed).mean((1, 2)), atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 31), (31, 24)])
def test_cutout_paints_one_square_anywhere(shape):
    keys, images = make(b=200, h=shape[0], w=shape[1])
    after, before = apply(keys, images, cutout=0.25), np.asarray(images)
    corners = []
    for a, b in zip(after, before, strict=True):
        rows, columns = np.nonzero((a != b).any(axis=-1))
        assert len(rows) == 36 and np.ptp(rows) == np.ptp(columns) == 5
        np.testing.assert_allclose(a[rows, columns], b.mean((0, 1)) + np.zeros((36, 3)), atol=1e-6)
        corners.append((rows.min(), columns.min()))
    corners = np.array(corners)
    assert (corners.min(0) == 0).all() and (corners.max(0) == np.array(shape) - 6).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("amplitude", [-0.1, 100.0, float("nan")])
def test_amplitudes_out_of_range_name_the_key(name, amplitude):
    with pytest.raises(UserError, match=rf"augment.{name}=.* in \[0, "):
        augment.colour(*make(b=1), **{name: amplitude})


@pytest.mark.parametrize("name", ["saturation", "hue"])
def test_colour_operations_need_rgb(name):
    with pytest.raises(UserError, match=f"augment.{name}=0.1 needs RGB images, not 1 channel"):
        augment.colour(*make(b=1, c=1), **{name: 0.1})
