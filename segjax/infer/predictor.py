"""A trained model as a function of images."""

import collections
import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Shaped

from segjax.checks import UserError
from segjax.data import warping
from segjax.data.formats.opening import DEFAULT, Reading
from segjax.infer import memory
from segjax.infer.windows import overlap_tile
from segjax.objectives import Objective
from segjax.spec import DatasetSpec, Geometry, Preprocess, Segments
from segjax.tasks import Task
from segjax.train.compilation import compile_predict
from segjax.train.restore import restore
from segjax.train.workdir import read_config

log = logging.getLogger("segjax")


class Predictor:
    """A trained model as a function of images.

    Attributes:
        spec: the classes.
        preprocess: how images become inputs.
        divisor: divisor of panoptic ids; 0 if the task has no objects.
        reading: how image files are read.
        device: one that predicts.

    Example:
        predictor = Predictor.from_workdir("runs/brain")
        mask = predictor(image).label
    """

    def __init__(
        self,
        model: nn.Module,
        variables: dict[str, Any],
        task: Task,
        preprocess: Preprocess,
        size_multiple: int = 1,
        tile: int = 0,
        mesh: jax.sharding.Mesh | None = None,
        reading: Reading = DEFAULT,
    ):
        """Combines a model with its variables.

        Args:
            model: maps normalised images to outputs.
            variables: its parameters and statistics.
            task: turns maps into segments.
            preprocess: how images become inputs.
            size_multiple: pads sizes to multiples of this, so that images of similar sizes share a compiled
                program; 1 compiles one for each size, without padding.
            tile: predict in tiles of this size with the model's context around each; 0 predicts whole images.
            mesh: devices that share the rows of each image; None for one device.
            reading: how image files are read, for whoever reads them.

        Raises:
            UserError: tiles with a model that has no context, or resizes its images.
        """
        if tile and (not preprocess.context or preprocess.resize is not None):
            raise UserError("Tiles need a model with preprocess.context > 0 and without preprocess.resize.")
        self.spec: DatasetSpec = task.spec
        self.divisor = task.divisor
        self.preprocess = preprocess
        self.reading = reading
        self._size_multiple, self._tile = size_multiple, tile
        self._variables = variables
        self._predict = compile_predict(model, task, preprocess, mesh)
        self.device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]

    @classmethod
    def from_workdir(
        cls,
        workdir: str,
        size_multiple: int = 1,
        tile: int = 0,
        *,
        model: nn.Module | None = None,
        objective: Objective | None = None,
    ) -> "Predictor":
        """Loads the model that a run trained: its best checkpoint, or its last (`checkpoint.evaluate`).

        Args:
            workdir: folder of the run.
            size_multiple: as for `Predictor`.
            tile: as for `Predictor`.
            model: the run's own, if it had one.
            objective: the run's own, if it had one.

        Returns:
            The predictor.

        Raises:
            UserError: no run or no checkpoint there.
        """
        config, spec = read_config(workdir)
        # One image at a time, on the devices that share its rows; on one device if fewer are here.
        space, here = config.parallel.space, jax.local_device_count()
        if space > here:
            log.warning("parallel.space=%d, but %d devices are here: images are predicted on one of them.", space, here)
            space = 1
        config.parallel.update(devices=space, space=space)
        parts, state, _ = restore(config, spec, workdir, model, objective)
        variables, mesh = state.variables(config.ema.evaluate), parts.mesh if space > 1 else None
        reading = Reading(**config.reading)
        return cls(parts.model, variables, parts.task, parts.preprocess, size_multiple, tile, mesh, reading)

    def __call__(
        self, image: Shaped[np.ndarray, "y x c"] | Shaped[np.ndarray, "b y x c"] | Sequence[Shaped[np.ndarray, "_ _ c"]]
    ) -> Segments | list[Segments]:
        """Predicts one image, or several; images of the same size share one call of the compiled program.

        Args:
            image: [y, x, c], with the channels and dtype of the training images; or several, of any sizes. The device
                must hold all images of one size at once.

        Returns:
            The `Segments` of the image, as numpy arrays without the axis b; a list of them for several images.

        Raises:
            UserError: a wrong number of channels or dtype.
        """
        if getattr(image, "ndim", 4) < 4:
            return self._several([np.asarray(image)])[0]
        return self._several([np.asarray(each) for each in image])

    def bytes_needed(self, size: tuple[int, int]) -> tuple[int, int]:
        """Estimates the memory that an image needs, from the program for a small one.

        Args:
            size: rows and columns of the image.

        Returns:
            Bytes on the device, and on the host.
        """
        fitted = warping.resized_size(size, self.preprocess.resize)
        pixels = (self._tile or fitted[0]) * (self._tile or fitted[1])
        channels = len(self.preprocess.mean)
        host = math.prod(size) * (memory.PER_VALUE * channels + memory.PER_PIXEL + 8 * len(self.spec.classes))
        return int(pixels * self._bytes_per_pixel), host

    @functools.cached_property
    def _bytes_per_pixel(self):
        side = 256
        context = 2 * self.preprocess.context
        images = np.zeros((1, side + context, side + context, len(self.preprocess.mean)), self.spec.image_dtype)
        sizes = np.full((1, 2), side, np.int32)
        place = Geometry(sizes, sizes, (side, side), (side, side), self.preprocess.resize is not None)
        traced = self._predict.trace(self._variables, images, place)
        usage = traced.lower().compile().memory_analysis()
        patches = memory.patch_bytes(traced.jaxpr.jaxpr) if self.device.platform == "cpu" else 0
        return (usage.temp_size_in_bytes + usage.output_size_in_bytes + patches) / side**2

    def _several(self, images):
        for image in images:
            self._check(image)
        if self._tile:
            return [self._tiled(image) for image in images]
        places = collections.defaultdict(list)
        for i, image in enumerate(images):
            places[image.shape].append(i)
        results: list[Any] = [None] * len(images)
        for (height, width, _), same in places.items():
            segments = self._whole(np.stack([images[i] for i in same]))
            for place, i in enumerate(same):
                results[i] = segments.crop(place, (height, width))
        return results

    def _check(self, image):
        spec, channels = self.spec, len(self.preprocess.mean)
        if image.ndim != 3 or image.shape[2] != channels or image.dtype != spec.image_dtype:
            raise UserError(
                f"The model takes images [y, x, {channels}] of {spec.image_dtype}, not {list(image.shape)} of "
                f"{image.dtype}."
            )

    def _whole(self, images):
        """Predicts images [b, y, x, c]; segments are padded to the output size of the program."""
        count, size = len(images), images.shape[1:3]
        fitted = warping.resized_size(size, self.preprocess.resize)
        multiple = self._size_multiple
        padded, output = (tuple(math.ceil(n / multiple) * multiple for n in each) for each in (fitted, size))
        warp = warping.evaluation_warp(size, self.preprocess)
        at = warping.source_positions(warp, padded, self.preprocess.context)
        pixels = np.stack([warping.sample_image(image, at, self.preprocess) for image in images])
        place = Geometry(
            valid_size=np.array([fitted] * count, np.int32),
            native_size=np.array([size] * count, np.int32),
            padded_size=padded,
            output_size=output,
            resized=self.preprocess.resize is not None,
        )
        return jax.device_get(self._predict(self._variables, pixels, place))

    def _tiled(self, image):
        return Segments(**overlap_tile(self._tiles, image, self._tile, self.preprocess.context))

    def _tiles(self, tiles):
        """Predicts tiles, as maps by field of Segments; models with context have no objects."""
        side = (self._tile, self._tile)
        sizes = np.array([side] * len(tiles), np.int32)
        place = Geometry(valid_size=sizes, native_size=sizes, padded_size=side, output_size=side, resized=False)
        segments = jax.device_get(self._predict(self._variables, tiles, place))
        return {"label": segments.label, "probability": segments.probability}
