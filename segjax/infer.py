"""Uses a trained model: from an image of any size to its mask."""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Shaped

from segjax.checks import UserError
from segjax.data import geometry
from segjax.objectives import Objective
from segjax.spec import DatasetSpec, Geometry, Preprocess, Segments
from segjax.tasks import Task
from segjax.train.compilation import compile_predict
from segjax.train.restore import restore
from segjax.train.workdir import read_config

log = logging.getLogger("segjax")


class Predictor:
    """A trained model as a function of one image.

    Attributes:
        spec: the classes.
        preprocess: how images become inputs.
        divisor: of panoptic ids; 0 where the task tells no objects apart.

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
            task: decides on maps.
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

    def __call__(self, image: Shaped[np.ndarray, "y x c"]) -> dict[str, np.ndarray]:
        """Predicts one image.

        Args:
            image: [y, x, c], channels and dtype as the model was trained.

        Returns:
            "label": int32 [y, x], or bool [y, x, k] in multi-label mode; "probability": float32 [y, x, k], or
            [y, x, 1] of the foreground in binary mode. Where objects are told apart also "instance": int32 [y, x],
            the object of each pixel, 0 for none; "score": float32 [n], of objects 1 .. n; "masks" bool [n, y, x] and
            "classes" int32 [n] where they may overlap; and what else the objective shows, such as "centre" [y, x] and
            "offset" [y, x, 2]; their "label" is `spec.ignore` where nothing was decided.

        Raises:
            UserError: another number of channels, or another dtype.
        """
        spec, channels = self.spec, len(self.preprocess.mean)
        if image.ndim != 3 or image.shape[2] != channels or image.dtype != spec.image_dtype:
            raise UserError(
                f"The model takes images [y, x, {channels}] of {spec.image_dtype}, not {list(image.shape)} of "
                f"{image.dtype}."
            )
        if self._tile:
            return overlap_tile(self._predict_tiles, image, self._tile, self.preprocess.context)
        height, width = image.shape[:2]
        fitted = geometry.resized((height, width), self.preprocess.resize)
        padded, output = (tuple(math.ceil(n / self._grid) * self._grid for n in s) for s in (fitted, (height, width)))
        warp = geometry.whole((height, width), self.preprocess)
        at = geometry.positions(warp, padded, self.preprocess.context)
        pixels = geometry.sample_image(image, at, self.preprocess)
        place = Geometry(
            valid_size=np.array([fitted], np.int32),
            native_size=np.array([(height, width)], np.int32),
            padded_size=padded,
            output_size=output,
            resized=self.preprocess.resize is not None,
        )
        found = jax.device_get(self._run(self._variables, pixels[None], place))
        return _named(found.image(0, (height, width)))

    def _predict_tiles(self, tiles):
        side = (self._tile, self._tile)
        sizes = np.array([side] * len(tiles), np.int32)
        place = Geometry(valid_size=sizes, native_size=sizes, padded_size=side, output_size=side, resized=False)
        return _named(jax.device_get(self._run(self._variables, tiles, place)))


def _named(found: Segments) -> dict[str, np.ndarray]:
    """Segments as a dict, without what is not there."""
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    maps = fields.pop("maps") or {}
    return {name: x for name, x in {**fields, **maps}.items() if x is not None}


def load(
    workdir: str,
    grid: int = 1,
    tile: int = 0,
    *,
    model: nn.Module | None = None,
    objective: Objective | None = None,
) -> Predictor:
    """Loads the model that a run trained: its best checkpoint, or its last (`checkpoint.evaluate`).

    Args:
        workdir: folder of the run.
        grid: see `Predictor`.
        tile: see `Predictor`.
        model: the run's own, where it had one.
        objective: the run's own, where it had one.

    Returns:
        The predictor.

    Raises:
        UserError: no run or no checkpoint there.
    """
    config, spec = read_config(workdir)
    # Images are predicted one at a time, by the devices that share one; where those are not here, by one.
    space, here = config.parallel.space, jax.local_device_count()
    if space > here:
        log.warning("parallel.space=%d, but %d devices are here: an image is predicted by one of them.", space, here)
        space = 1
    config.parallel.update(devices=space, space=space)
    parts, state, _ = restore(config, spec, workdir, model, objective)
    variables, mesh = state.variables(config.ema.evaluate), parts.mesh if space > 1 else None
    return Predictor(parts.model, variables, parts.task, parts.preprocess, grid, tile, mesh)


def overlap_tile(
    apply: Callable[[Shaped[np.ndarray, "b h w c"]], dict[str, Any]],
    image: Shaped[np.ndarray, "y x c"],
    tile: int,
    context: int,
) -> dict[str, np.ndarray]:
    """Seamless maps of an image of any size from tiles of one size (U-Net paper, figure 2).

    Each tile is seen with `context` pixels of image around it; beyond the border stands the mirror image. With a
    tile of a multiple of the network's stride the maps are those of the whole image.

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
