"""Predicts a large image window by window (U-Net paper, figure 2)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped

from segjax.data import warping
from segjax.spec import Preprocess


def overlap_tile(
    apply: Callable[[Shaped[np.ndarray, "b h w c"]], dict[str, Any]],
    image: Shaped[np.ndarray, "y x c"],
    tile: int,
    context: int,
) -> dict[str, np.ndarray]:
    """Predicts seamless maps of an image of any size from tiles of one size (U-Net paper, figure 2).

    Each tile gets `context` pixels of image around it, mirrored beyond the border. If the tile is a multiple of the
    network's stride, the maps are those of the whole image.

    Args:
        apply: maps tiles with their context [1, tile + 2 context, tile + 2 context, c] to a dict of maps
            [1, tile, tile, ...].
        image: [y, x, c].
        tile: rows and columns of a tile (388 in the paper).
        context: pixels around it (92 in the paper).

    Returns:
        The same dict of maps [y, x, ...].

    Example:
        >>> image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
        >>> middle = lambda tiles: {"image": tiles[:, 1:-1, 1:-1]}
        >>> bool((overlap_tile(middle, image, tile=2, context=1)["image"] == image).all())
        True
    """
    channels, (height, width) = image.shape[2], image.shape[:2]
    mirror = Preprocess(mean=(0.0,) * channels, std=(1.0,) * channels, context=context, outside="mirror")
    whole = warping.evaluation_warp((height, width), mirror)

    def at(top, left):
        warp = whole._replace(matrix=np.array([[1, 0, top], [0, 1, left]], np.float32))
        pixels = warping.sample_image(image, warping.source_positions(warp, (tile, tile), context), mirror)
        return {key: np.asarray(value)[0] for key, value in apply(pixels[None]).items()}

    rows = [[at(top, left) for left in range(0, width, tile)] for top in range(0, height, tile)]
    return {
        key: np.concatenate([np.concatenate([part[key] for part in row], axis=1) for row in rows])[:height, :width]
        for key in rows[0][0]
    }
