"""Augmentations that keep an image's shape, made inside the compiled step.

Every draw of an image comes from that image's own key, and every operation folds its own number into it: what
happens to an image depends neither on its neighbours in the batch nor on which other operations are on.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Key

from segjax.checks import UserError

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, section 2.5.1
_MIN_SIGMA = 1e-3  # pixels: a Gaussian this narrow is the identity in float32, and 0 would divide by 0


def colour(
    keys: Key[Array, " b"],
    images: Float32[Array, "b h w c"],
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    gamma: float = 0.0,
    noise: float = 0.0,
    blur: float = 0.0,
    cutout: float = 0.0,
) -> Float32[Array, "b h w c"]:
    """Changes the colours of each image at random, in the order of the arguments, and clips the result to [0, 1].

    With u(a, b) a uniform draw for each image. An amplitude of 0 leaves its operation out of the program.

    Args:
        keys: a typed key for each image. Use threefry keys (jax's default): "rbg" draws under `jax.vmap` depend on
            the whole batch.
        images: pixels in [0, 1].
        brightness: adds u(-brightness, brightness). At most 1.
        contrast: scales by u(1 - contrast, 1 + contrast) about the image's mean colour. At most 1.
        saturation: scales by u(1 - saturation, 1 + saturation) about each pixel's grey (luma). At most 1; RGB only.
        hue: turns colours by u(-hue, hue) turns in the chroma plane of YIQ, which keeps luma and greys and costs one
            3 x 3 matrix a pixel; saturated colours may leave the RGB cube and are clipped. At most 0.5; RGB only.
        gamma: raises pixels, clipped to [0, 1] first, to the power exp(u(-gamma, gamma)). At most 2.
        noise: adds Gaussian noise, independent in each pixel and channel, of deviation u(0, noise). At most 1.
        blur: Gaussian blur of deviation u(0, blur) pixels, edges continued outwards. At most 10; the cost grows with
            the amplitude, 2 (2 ceil(3 blur) + 1) reads a pixel.
        cutout: paints one square of side `cutout` times the image's shorter side, anywhere inside the image, in the
            image's mean colour. Labels stay: what is hidden must be told from its surroundings (DeVries and Taylor
            2017). At most 0.9.

    Returns:
        Images of the same shape, in [0, 1].

    Raises:
        UserError: an amplitude is negative or beyond its bound, or a colour operation is asked of images that are
            not RGB.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> colour(keys, jnp.full((2, 8, 8, 3), 0.5), brightness=0.2, hue=0.1).shape
        (2, 8, 8, 3)
    """
    operations = (
        ("brightness", _brightness, brightness, 1.0),
        ("contrast", _contrast, contrast, 1.0),
        ("saturation", _saturation, saturation, 1.0),
        ("hue", _hue, hue, 0.5),
        ("gamma", _gamma, gamma, 2.0),
        ("noise", _noise, noise, 1.0),
        ("blur", _blur, blur, 10.0),
        ("cutout", _cutout, cutout, 0.9),
    )
    for name, _, amplitude, bound in operations:
        if not 0 <= amplitude <= bound:
            raise UserError(f"augment.{name}={amplitude} is out of range: give 0 (off) to {bound:g}.")
        if amplitude and name in ("saturation", "hue") and (channels := images.shape[-1]) != 3:
            raise UserError(
                f"augment.{name}={amplitude} needs RGB images, but these have {channels} channel(s): give 0."
            )
    if not any(amplitude for _, _, amplitude, _ in operations):
        return images

    def augment(key, image):
        for number, (_, operation, amplitude, _) in enumerate(operations):
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
    return _recolour(image, _KEEP_LUMA + jnp.cos(angle) * _KEEP_CHROMA + jnp.sin(angle) * _QUARTER_TURN)


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
        # Shifted sums fuse into one loop; a convolution whose kernel differs from image to image would not.
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
    """Multiplies each RGB pixel by a 3 x 3 matrix, in full float32 where a TPU would default to bfloat16."""
    matrix = jnp.asarray(matrix, jnp.float32)
    return jnp.einsum("dc,hwc->hwd", matrix, image, precision=jax.lax.Precision.HIGHEST)


def _chroma_rotation():
    """Matrices that keep luma, keep chroma, and turn chroma by a quarter: a turn by t is K + cos(t) C + sin(t) Q."""
    red, _, blue = np.eye(3) - _LUMA
    # The NTSC axes as differences to luma (FCC 1953, 47 CFR 73.682), so that greys have no chroma at all.
    to_yiq = np.stack([_LUMA, 0.74 * red - 0.27 * blue, 0.48 * red + 0.41 * blue])
    to_rgb = np.linalg.inv(to_yiq)
    turn = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]])
    return ((to_rgb @ m @ to_yiq).astype(np.float32) for m in (np.diag([1, 0, 0]), np.diag([0, 1, 1]), turn))


_KEEP_LUMA, _KEEP_CHROMA, _QUARTER_TURN = _chroma_rotation()
