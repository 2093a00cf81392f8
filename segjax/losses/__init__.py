"""Losses as pure functions: float32 inside, per pixel or per class, averaged by one function.

A loss returns its terms, not their mean. `weighted_mean` divides them by one global sum of weights, so that unlabelled
pixels weigh nothing and a batch spread over devices gives the loss of the whole batch: sum over sum, never
mean of means.
"""

from segjax.losses.binary import binary_cross_entropy
from segjax.losses.pixels import cross_entropy, pixel_weights, split_ignore, weighted_mean
from segjax.losses.regions import dice, hardest

__all__ = [
    "binary_cross_entropy",
    "cross_entropy",
    "dice",
    "hardest",
    "pixel_weights",
    "split_ignore",
    "weighted_mean",
]
