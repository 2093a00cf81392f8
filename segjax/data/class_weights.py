"""Class weights by the rules of the literature, from the counts of an audit."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Integer

from segjax.checks import UserError

Counts = Integer[np.ndarray, "k"] | Sequence[int]


def median_frequency(pixels: Counts, image_pixels: Counts) -> Float64[np.ndarray, "k"]:
    """Class weights by median frequency balancing: `median(f) / f_c`.

    `f_c` is the number of pixels of class c over the number of pixels in images that contain c (Eigen and Fergus
    2015; used by SegNet, Badrinarayanan et al. 2017). The median is over the classes that occur.

    Args:
        pixels: pixels of each class, [k].
        image_pixels: labelled pixels in the images that contain each class, [k].

    Returns:
        Weights, float64 [k]; 0 for a class that does not occur.

    Raises:
        UserError: no class occurs.

    Example:
        >>> median_frequency([100, 200, 400], [1000, 1000, 1000])
        array([2. , 1. , 0.5])
    """
    pixels, present = _counts(pixels)
    weights = np.zeros(len(pixels))
    frequency = pixels[present] / np.asarray(image_pixels, np.float64)[present]
    weights[present] = np.median(frequency) / frequency
    return weights


def inverse_frequency(pixels: Counts) -> Float64[np.ndarray, "k"]:
    """Class weights by inverse frequency: `N / (K n_c)`, whose mean over all pixels is 1.

    `N` is the number of pixels, `K` the number of classes that occur, `n_c` the number of pixels of class c (King and
    Zeng 2001; the "balanced" weights of scikit-learn).

    Args:
        pixels: pixels of each class, [k].

    Returns:
        Weights, float64 [k]; 0 for a class that does not occur.

    Raises:
        UserError: no class occurs.

    Example:
        >>> inverse_frequency([100, 300])
        array([2.        , 0.66666667])
    """
    pixels, present = _counts(pixels)
    weights = np.zeros(len(pixels))
    weights[present] = pixels.sum() / (present.sum() * pixels[present])
    return weights


def effective_number(pixels: Counts, beta: float | None = None) -> Float64[np.ndarray, "k"]:
    """Class weights by the effective number of samples: `(1 - beta) / (1 - beta^n_c)`, scaled to a mean of 1.

    Cui et al. 2019, proposition 1 and section 4. Their beta of 0.9 to 0.9999 suits image counts; for millions of pixels
    it gives all classes the same weight. `beta = (N - 1) / N`, where N is the number of samples beyond which more add
    nothing new; the default N is the median pixel count of the classes. Frequent classes then get nearly equal weights
    (within a factor of 1.6), rare ones nearly their weight by inverse frequency.

    Args:
        pixels: pixels of each class, [k].
        beta: 0 gives equal weights, values near 1 inverse frequency; None for (N - 1) / N as above.

    Returns:
        Weights, float64 [k], with a mean of 1 over the classes that occur; 0 for one that does not.

    Raises:
        UserError: no class occurs, or beta is not in [0, 1).

    Example:
        >>> effective_number([10, 10, 0])
        array([1., 1., 0.])
    """
    pixels, present = _counts(pixels)
    if beta is not None and not 0 <= beta < 1:
        raise UserError(f"beta must be at least 0 and less than 1, got {beta}.")
    small = 1 / np.median(pixels[present]) if beta is None else 1 - beta
    weights = np.zeros(len(pixels))
    with np.errstate(divide="ignore"):  # beta = 0: log 0 = -inf, and exp(-inf) = 0 is right
        weights[present] = -1 / np.expm1(pixels[present] * np.log1p(-small))
    return weights / weights[present].mean()


def _counts(pixels):
    pixels = np.asarray(pixels, np.float64)
    if not pixels.any():
        raise UserError("Class weights need labelled pixels: no class occurs in the samples.")
    return pixels, pixels > 0
