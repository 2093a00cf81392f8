"""The order of samples: a permutation for each epoch, without state."""

_MASK = 0xFFFFFFFF


def shuffled(position: int, count: int, seed: int) -> int:
    """Sample that stands at a global position; each epoch of `count` positions is a permutation.

    A Feistel network over the next power of four, walked until it lands below `count`: constant time and
    memory for any position, and the same numbers on every version of every library.

    Args:
        position: global sample number, from 0.
        count: samples in the set.
        seed: seed of the run.

    Returns:
        Index of the sample, 0 .. count - 1.

    Example:
        >>> sorted(shuffled(p, 5, seed=3) for p in range(5, 10))
        [0, 1, 2, 3, 4]
    """
    epoch, index = divmod(position, count)
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(6):
            left, right = right, left ^ (_hash(right, turn, epoch, seed) & mask)
        index = left << half | right
        if index < count:
            return index


def _hash(*words: int) -> int:
    """Mixes integers to 32 bits with the finaliser of MurmurHash3 (Appleby, 2008)."""
    h = 0x9E3779B9
    for word in words:
        h ^= word & _MASK
        h = (h ^ h >> 16) * 0x85EBCA6B & _MASK
        h = (h ^ h >> 13) * 0xC2B2AE35 & _MASK
        h ^= h >> 16
    return h
