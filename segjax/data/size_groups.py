"""Groups images of similar size, so that evaluation pads few pixels in few shapes of batches."""

import collections
import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

MOST_SIZES = 64  # distinct sizes that are compared in pairs; more are first rounded up
MOST_PADDING = 4.0  # computed pixels over own pixels beyond which more groups are made than asked for
MOST_GROUPS = 8  # that are made then


class SizeGroup(NamedTuple):
    """Images that are padded to one size.

    Attributes:
        members: their indices.
        size: rows and columns of the largest.
        batch_size: images in each of its batches.
    """

    members: list[int]
    size: tuple[int, int]
    batch_size: int

    @property
    def batches(self) -> int:
        """Number of batches; the last one may have empty rows."""
        return math.ceil(len(self.members) / self.batch_size)

    @property
    def pixels(self) -> int:
        """Pixels that are computed, padding and empty rows included."""
        return self.batches * self.batch_size * math.prod(self.size)


def group_sizes(
    sizes: Integer[np.ndarray, "n 2"], count: int, batch_size: int, divisor: int = 1
) -> tuple[list[SizeGroup], float]:
    """Groups images by size: the two groups whose union costs the fewest pixels are merged, again and again.

    A batch of a small group has fewer rows, so that one large image alone is not computed `batch_size` times.

    Args:
        sizes: rows and columns of each image.
        count: groups to end with. There are more, at most `MOST_GROUPS`, while more than `MOST_PADDING` times the
            images' own pixels would be computed.
        batch_size: largest number of images in a batch.
        divisor: batch sizes are multiples of it.

    Returns:
        The groups, the largest size last; members are sorted by area. And computed pixels over the images' own.

    Example:
        >>> groups, padding = group_sizes(np.array([[4, 6], [4, 6], [4, 5], [9, 9]]), 2, batch_size=4)
        >>> [(group.members, group.size, group.batch_size) for group in groups], round(padding, 2)
        ([([2, 0, 1], (4, 6), 3), ([3], (9, 9), 1)], 1.03)
    """
    own = sizes.astype(np.int64).prod(1)
    order = np.lexsort((np.arange(len(sizes)), sizes[:, 1], own)).tolist()
    merged = [_group(members, sizes, batch_size, divisor) for members in _alike(sizes, order)]
    while len(merged) > count:
        i, j = _cheapest_pair(merged, batch_size, divisor)
        both = {*merged[i].members, *merged[j].members}
        union = _group([k for k in order if k in both], sizes, batch_size, divisor)
        groups = [group for k, group in enumerate(merged) if k not in (i, j)] + [union]
        if len(merged) <= MOST_GROUPS and _pixels(groups) > MOST_PADDING * own.sum():
            break
        merged = groups
    merged.sort(key=lambda group: (math.prod(group.size), group.size))
    return merged, _pixels(merged) / int(own.sum())


def _alike(sizes, order):
    """Lists the images of each size, in order; sizes are rounded up until there are few."""
    unit, rounded = 1, sizes
    while len(np.unique(rounded, axis=0)) > MOST_SIZES:
        unit *= 2
        rounded = -(-sizes // unit) * unit
    alike = collections.defaultdict(list)
    for i in order:
        alike[tuple(rounded[i].tolist())].append(i)
    return alike.values()


def _group(members, sizes, batch_size, divisor):
    height, width = sizes[members].max(0).tolist()
    return SizeGroup(members, (height, width), _batch_size(len(members), batch_size, divisor))


@functools.cache
def _batch_size(number, most, divisor):
    """Batch size that leaves the fewest rows empty; at least half of the largest one, if there are as many images."""
    largest = min(most, math.ceil(number / divisor) * divisor)
    least = min(largest, math.ceil(most / 2 / divisor) * divisor)
    return min(range(largest, least - 1, -divisor), key=lambda rows: math.ceil(number / rows) * rows)


def _pixels(groups):
    return sum(group.pixels for group in groups)


def _cheapest_pair(groups, batch_size, divisor):
    """Finds the two groups whose union computes the fewest pixels more."""

    def more(pair):
        a, b = groups[pair[0]], groups[pair[1]]
        number, height = len(a.members) + len(b.members), max(a.size[0], b.size[0])
        rows = _batch_size(number, batch_size, divisor)
        union = math.ceil(number / rows) * rows * height * max(a.size[1], b.size[1])
        return union - a.pixels - b.pixels

    return min(itertools.combinations(range(len(groups)), 2), key=more)
