"""Colour augmentation, blur, noise and cutout, inside the compiled step.

Each image has its own random key, and each operation folds its own number into that key. The result for an image
depends neither on the other images of the batch nor on which other operations are enabled.
"""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32
from jaxtyping import Key as RandomKey

from segjax.checks import Key, UserError, check_section

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, section 2.5.1
_MIN_SIGMA = 1e-3  # pixels: a Gaussian this narrow is the identity in float32; 0 would cause a division by 0


def colour(
    keys: RandomKey[Array, " b"],
    images: Float32[Array, "b h w c"],
    *,
    brightness: Annotated[float, Key("adds u(-a, a)", "[0, 1]")] = 0.0,
    contrast: Annotated[float, Key("scales by u(1 - a, 1 + a) about the image's mean colour", "[0, 1]")] = 0.0,
    saturation: Annotated[float, Key("scales by u(1 - a, 1 + a) about each pixel's grey; RGB only", "[0, 1]")] = 0.0,
    hue: Annotated[float, Key("rotates the hue by u(-a, a) turns; RGB only", "[0, 0.5]")] = 0.0,
    gamma: Annotated[float, Key("raises pixels to the power exp(u(-a, a))", "[0, 2]")] = 0.0,
    noise: Annotated[float, Key("adds Gaussian noise of standard deviation u(0, a)", "[0, 1]")] = 0.0,
    blur: Annotated[float, Key("Gaussian blur of standard deviation u(0, a) pixels", "[0, 10]")] = 0.0,
    cutout: Annotated[float, Key("fills a square of a times the image's shorter side", "[0, 0.9]")] = 0.0,
) -> Float32[Array, "b h w c"]:
    """Augments each image at random, in the order of the arguments, and clips the result to [0, 1].

    The keyword arguments are keys of the section `augment`: amplitudes a; u is a uniform draw for each image. An
    amplitude of 0 leaves its operation out of the program. Hue rotates in the chroma plane of YIQ, which keeps luma and
    greys and costs one 3 x 3 matrix per pixel; saturated colours may leave the RGB cube and are clipped. Noise is
    independent for each pixel and channel. Blur extends edges outwards and reads 2 (2 ceil(3 a) + 1) pixels per pixel.
    Cutout fills a square at a random position inside the image with the image's mean colour; labels do not change, so
    the network must infer what is hidden from its surroundings (DeVries and Taylor 2017).

    Args:
        keys: a typed key for each image. Use threefry keys (JAX's default): draws of "rbg" under `jax.vmap` depend on
            the full batch.
        images: pixels in [0, 1].

    Returns:
        Images of the same shape, in [0, 1].

    Raises:
        UserError: an amplitude is out of range, or saturation or hue is used on images that are not RGB.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> colour(keys, jnp.full((2, 8, 8, 3), 0.5), brightness=0.2, hue=0.1).shape
        (2, 8, 8, 3)
    """
    operations = {
        "brightness": (_brightness, brightness),
        "contrast": (_contrast, contrast),
        "saturation": (_saturation, saturation),
        "hue": (_hue, hue),
        "gamma": (_gamma, gamma),
        "noise": (_noise, noise),
        "blur": (_blur, blur),
        "cutout": (_cutout, cutout),
    }
    check_section("augment", colour, {name: amplitude for name, (_, amplitude) in operations.items()})
    for name in ("saturation", "hue"):
        if operations[name][1] and (channels := images.shape[-1]) != 3:
            raise UserError(
                f"augment.{name}={operations[name][1]} needs RGB images, not {channels} channel(s): set it to 0."
            )
    if not any(amplitude for _, amplitude in operations.values()):
        return images

    def augment(key, image):
        for number, (operation, amplitude) in enumerate(operations.values()):
            if amplitude:
                image = operation(jax.random.fold_in(key, number), image, amplitude)
        return jnp.clip(image, 0.0, 1.0)

    return jax.vmap(augment)(keys, images)


def _brightness(key, image, amplitude):
    return image + jax.random.uniform(key, minval=-amplitude, maxval=amplitude)


def _contrast(key, image, amplitude):
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + jax.random.uniform(key, minval=1 - amplitude, maxval=1 + amplitude) * (image - mean)


def _saturation(key, image, amplitude):
    grey = _recolour(image, np.tile(_LUMA, (3, 1)))
    return grey + jax.random.uniform(key, minval=1 - amplitude, maxval=1 + amplitude) * (image - grey)


def _hue(key, image, amplitude):
    angle = 2 * math.pi * jax.random.uniform(key, minval=-amplitude, maxval=amplitude)
    keep_luma, keep_chroma, quarter_turn = _chroma_rotation()
    return _recolour(image, keep_luma + jnp.cos(angle) * keep_chroma + jnp.sin(angle) * quarter_turn)


def _gamma(key, image, amplitude):
    return jnp.clip(image, 0.0, 1.0) ** jnp.exp(jax.random.uniform(key, minval=-amplitude, maxval=amplitude))


def _noise(key, image, amplitude):
    deviation_key, noise_key = jax.random.split(key)
    return image + jax.random.uniform(deviation_key, maxval=amplitude) * jax.random.normal(noise_key, image.shape)


def _blur(key, image, amplitude):
    sigma = jnp.maximum(jax.random.uniform(key, maxval=amplitude), _MIN_SIGMA)
    radius = math.ceil(3 * amplitude)
    weights = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1, dtype=jnp.float32) / sigma) ** 2)
    weights = weights / weights.sum()
    for axis in (0, 1):
        # Sums of shifted images fuse into one loop; a convolution with a different kernel per image would not.
        padded = jnp.pad(image, [(radius, radius) if a == axis else (0, 0) for a in range(3)], mode="edge")
        size = image.shape[axis]
        shifts = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(2 * radius + 1)]
        image = sum(weight * shift for weight, shift in zip(weights, shifts, strict=True))
    return image


def _cutout(key, image, amplitude):
    height, width, _ = image.shape
    side = round(amplitude * min(height, width))
    limit = jnp.array([height - side + 1, width - side + 1])
    top, left = jax.random.randint(key, (2,), 0, limit)
    y, x = jnp.ogrid[:height, :width]
    inside = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    return jnp.where(inside[..., None], image.mean(axis=(0, 1), keepdims=True), image)


def _recolour(image, matrix):
    """Multiplies each RGB pixel by a 3 x 3 matrix, in full float32 even on TPUs, which default to bfloat16."""
    matrix = jnp.asarray(matrix, jnp.float32)
    return jnp.einsum("dc,hwc->hwd", matrix, image, precision=jax.lax.Precision.HIGHEST)


def _chroma_rotation():
    """Returns matrices K, C, Q that keep luma, keep chroma and rotate chroma by 90 degrees: K + cos(t) C + sin(t) Q."""
    red, _, blue = np.eye(3) - _LUMA
    # The NTSC axes as differences from luma (FCC 1953, 47 CFR 73.682), which makes the chroma of greys exactly 0.
    to_yiq = np.stack([_LUMA, 0.74 * red - 0.27 * blue, 0.48 * red + 0.41 * blue])
    to_rgb = np.linalg.inv(to_yiq)
    turn = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]])
    return tuple((to_rgb @ m @ to_yiq).astype(np.float32) for m in (np.diag([1, 0, 0]), np.diag([0, 1, 1]), turn))
