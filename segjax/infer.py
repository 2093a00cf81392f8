"""Uses a trained model: from an image of any size to its mask."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from segjax.data import geometry
from segjax.spec import DatasetSpec, Preprocess
from segjax.tasks import Task
from segjax.train import checkpoint, loop
from segjax.train.step import normalise


class Predictor:
    """A trained model as a function of one image.

    Attributes:
        spec: the classes.
        preprocess: how images become inputs.

    Example:
        predictor = infer.load("runs/brain")
        mask = predictor(image)["label"]
    """

    def __init__(self, model: Any, variables: dict[str, Any], task: Task, preprocess: Preprocess, grid: int = 1):
        """Ties a model to its variables.

        Args:
            model: maps normalised images to outputs.
            variables: its parameters and statistics.
            task: turns outputs into predictions.
            preprocess: how images become inputs.
            grid: sizes are padded to multiples of this, so that images of similar sizes share a compiled program;
                1 compiles one for each size and sees no padding.
        """
        self.spec: DatasetSpec = task.spec
        self.preprocess = preprocess
        self._grid = grid
        self._variables = variables

        @functools.partial(jax.jit, static_argnums=(3, 4))
        def run(variables, image, content, canvas, size):
            outputs = model.apply(variables, normalise(image, preprocess), train=False)
            return task.predict(outputs, canvas, size, content)

        self._run = run

    def __call__(self, image: UInt8[np.ndarray, "y x c"]) -> dict[str, np.ndarray]:
        """Predicts one image.

        Args:
            image: uint8 [y, x, c], c as the model was trained.

        Returns:
            "label": int32 [y, x], or bool [y, x, k] in multi-label mode; "probability": float32 [y, x, k], or
            [y, x, 1] of the foreground in binary mode.
        """
        height, width = image.shape[:2]
        fitted = geometry.resized((height, width), self.preprocess.resize)
        canvas = tuple(math.ceil(n / self._grid) * self._grid for n in fitted)
        size = tuple(math.ceil(n / self._grid) * self._grid for n in (height, width))
        warp = geometry.whole((height, width), self.preprocess)
        at = geometry.positions(np, warp, canvas, self.preprocess.context, 0)
        pixels = geometry.sample_image(np, image, warp, at, self.preprocess)
        content = None if self.preprocess.resize is None else np.array([[*fitted, height, width]], np.int32)
        found = jax.device_get(self._run(self._variables, pixels[None], content, canvas, size))
        return {key: value[0, :height, :width] for key, value in found.items()}


def load(workdir: str, grid: int = 1) -> Predictor:
    """Loads the model that a run trained: its best checkpoint, or its last (`checkpoint.evaluate`).

    Args:
        workdir: folder of the run.
        grid: see `Predictor`.

    Returns:
        The predictor.

    Raises:
        UserError: no run or no checkpoint there.
    """
    config, spec = checkpoint.read_config(workdir)
    config.parallel.devices = 1
    plan, state, _ = loop.restore(config, spec, workdir)
    return Predictor(plan.model, state.variables(config.ema.evaluate), plan.task, plan.preprocess, grid)


def overlap_tile(
    apply: Callable[[UInt8[np.ndarray, "b h w c"]], Float[np.ndarray, "b t u k"]],
    image: UInt8[np.ndarray, "y x c"],
    tile: int,
    context: int,
) -> Float[np.ndarray, "y x k"]:
    """Seamless maps of an image of any size from tiles of one size (U-Net paper, figure 2).

    Each tile is seen with `context` pixels of image around it; beyond the border stands the mirror image.

    Args:
        apply: maps tiles with their context [1, tile + 2 context, tile + 2 context, c] to maps [1, tile, tile, k].
        image: uint8 [y, x, c].
        tile: rows and columns of a tile (388 in the paper).
        context: pixels around it (92 in the paper).

    Returns:
        float32 [y, x, k].

    Example:
        >>> image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
        >>> middle = lambda tiles: tiles[:, 1:-1, 1:-1].astype(np.float32)
        >>> bool((overlap_tile(middle, image, tile=2, context=1) == image).all())
        True
    """
    mirror = Preprocess(mean=(0.0,) * image.shape[2], std=(1.0,) * image.shape[2], context=context, outside="mirror")
    height, width = image.shape[:2]
    whole = geometry.whole((height, width), mirror)
    rows = []
    for top in range(0, height, tile):
        row = []
        for left in range(0, width, tile):
            warp = whole._replace(matrix=np.array([[1, 0, top], [0, 1, left]], np.float32))
            at = geometry.positions(np, warp, (tile, tile), context, 0)
            row.append(np.asarray(apply(geometry.sample_image(np, image, warp, at, mirror)[None]))[0])
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows)[:height, :width]
