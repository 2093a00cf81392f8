"""Losses: pure functions that compute in float32, per pixel or per class, and one function that averages them.

A loss returns its terms, not their mean. `weighted_mean` divides the sum of the terms by one global sum of weights.
Unlabelled pixels have weight 0, and a batch sharded over devices gives the loss of the full batch: sum over sum,
never mean of means.
"""

from segjax.losses.binary import binary_cross_entropy
from segjax.losses.pixels import cross_entropy, mean_and_divisor, pixel_weights, split_ignore, weighted_mean
from segjax.losses.regions import dice, ohem_mask

__all__ = [
    "binary_cross_entropy",
    "cross_entropy",
    "dice",
    "mean_and_divisor",
    "ohem_mask",
    "pixel_weights",
    "split_ignore",
    "weighted_mean",
]
