"""Uses a trained model: from an image of any size to its mask."""

import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from segjax.checks import UserError
from segjax.data import geometry
from segjax.spec import DatasetSpec, Preprocess
from segjax.tasks import Task
from segjax.train import checkpoint, loop
from segjax.train.step import compile_predict

log = logging.getLogger("segjax")


class Predictor:
    """A trained model as a function of one image.

    Attributes:
        spec: the classes.
        preprocess: how images become inputs.
        divisor: more than the model finds objects in an image; 0 where it finds none.

    Example:
        predictor = infer.load("runs/brain")
        mask = predictor(image)["label"]
    """

    def __init__(
        self,
        model: Any,
        variables: dict[str, Any],
        task: Task,
        preprocess: Preprocess,
        grid: int = 1,
        tile: int = 0,
        mesh: Any = None,
    ):
        """Ties a model to its variables.

        Args:
            model: maps normalised images to outputs.
            variables: its parameters and statistics.
            task: turns outputs into predictions.
            preprocess: how images become inputs.
            grid: sizes are padded to multiples of this, so that images of similar sizes share a compiled program;
                1 compiles one for each size and sees no padding.
            tile: predict in tiles of this size with the model's context around each; 0 predicts whole images.
            mesh: devices that share the rows of each image; None for one device.

        Raises:
            UserError: tiles asked of a model without context, or whose images are resized.
        """
        if tile and (not preprocess.context or preprocess.resize is not None):
            raise UserError("Tiles need a model with preprocess.context > 0 and without preprocess.resize.")
        self.spec: DatasetSpec = task.spec
        self.divisor = task.divisor
        self.preprocess = preprocess
        self._grid, self._tile = grid, tile
        self._variables = variables
        self._run = compile_predict(model, task, preprocess, mesh)

    def __call__(self, image: UInt8[np.ndarray, "y x c"]) -> dict[str, np.ndarray]:
        """Predicts one image.

        Args:
            image: uint8 [y, x, c], c as the model was trained.

        Returns:
            "label": int32 [y, x], or bool [y, x, k] in multi-label mode; "probability": float32 [y, x, k], or
            [y, x, 1] of the foreground in binary mode. Of models that find objects also "instance": int32 [y, x],
            the object of each pixel, 0 for none; "score": float32 [n], of objects 1 .. n; "centre": float32 [y, x];
            "offset": float32 [y, x, 2]; their "label" is `spec.ignore` where nothing was decided.

        Raises:
            UserError: another number of channels.
        """
        if image.ndim != 3 or image.shape[2] != len(self.preprocess.mean):
            raise UserError(f"The model takes images [y, x, {len(self.preprocess.mean)}], not {list(image.shape)}.")
        if self._tile:
            side = (self._tile, self._tile)
            content = np.array([[*side, *side]], np.int32)
            return overlap_tile(
                lambda tiles: jax.device_get(self._run(self._variables, tiles, content, side, side)),
                image,
                self._tile,
                self.preprocess.context,
            )
        height, width = image.shape[:2]
        fitted = geometry.resized((height, width), self.preprocess.resize)
        canvas = tuple(math.ceil(n / self._grid) * self._grid for n in fitted)
        size = tuple(math.ceil(n / self._grid) * self._grid for n in (height, width))
        warp = geometry.whole((height, width), self.preprocess)
        at = geometry.positions(warp, canvas, self.preprocess.context)
        pixels = geometry.sample_image(image, at, self.preprocess)
        content = np.array([[*fitted, height, width]], np.int32)
        found = jax.device_get(self._run(self._variables, pixels[None], content, canvas, size))
        return {key: value[0, :height, :width] if value.ndim > 2 else value[0] for key, value in found.items()}


def load(workdir: str, grid: int = 1, tile: int = 0) -> Predictor:
    """Loads the model that a run trained: its best checkpoint, or its last (`checkpoint.evaluate`).

    Args:
        workdir: folder of the run.
        grid: see `Predictor`.
        tile: see `Predictor`.

    Returns:
        The predictor.

    Raises:
        UserError: no run or no checkpoint there.
    """
    config, spec = checkpoint.read_config(workdir)
    # Images are predicted one at a time, by the devices that share one; where those are not here, by one.
    space, here = config.parallel.space, jax.local_device_count()
    if space > here:
        log.warning("parallel.space=%d, but %d devices are here: an image is predicted by one of them.", space, here)
        space = 1
    config.parallel.update(devices=space, space=space)
    plan, state, _ = loop.restore(config, spec, workdir)
    variables, mesh = state.variables(config.ema.evaluate), plan.mesh if space > 1 else None
    return Predictor(plan.model, variables, plan.task, plan.preprocess, grid, tile, mesh)


def overlap_tile(
    apply: Callable[[UInt8[np.ndarray, "b h w c"]], dict[str, Any]],
    image: UInt8[np.ndarray, "y x c"],
    tile: int,
    context: int,
) -> dict[str, np.ndarray]:
    """Seamless maps of an image of any size from tiles of one size (U-Net paper, figure 2).

    Each tile is seen with `context` pixels of image around it; beyond the border stands the mirror image. With a
    tile of a multiple of the network's stride the maps are those of the whole image.

    Args:
        apply: maps tiles with their context [1, tile + 2 context, tile + 2 context, c] to a dict of maps
            [1, tile, tile, ...].
        image: uint8 [y, x, c].
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
    whole = geometry.whole((height, width), mirror)

    def at(top, left):
        warp = whole._replace(matrix=np.array([[1, 0, top], [0, 1, left]], np.float32))
        pixels = geometry.sample_image(image, geometry.positions(warp, (tile, tile), context), mirror)
        return {key: np.asarray(value)[0] for key, value in apply(pixels[None]).items()}

    rows = [[at(top, left) for left in range(0, width, tile)] for top in range(0, height, tile)]
    return {
        key: np.concatenate([np.concatenate([part[key] for part in row], axis=1) for row in rows])[:height, :width]
        for key in rows[0][0]
    }
