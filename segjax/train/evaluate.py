"""Evaluates a model on a full split: each image once, at the resolution of its label."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from segjax import parallel
from segjax.data.pipeline import Batches
from segjax.spec import Segments
from segjax.tasks import Task


class Evaluator(NamedTuple):
    """Scores variables on the batches of a split."""

    step: Callable  # from `step.make_eval_step`, compiled
    task: Task
    batches: Batches  # from `pipeline.eval_batches`
    mesh: Mesh
    transform: str  # that the step was compiled with

    def __call__(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Evaluates the split and returns the task's summary."""
        score, pending = self.task.new_metric(), None
        for batch in self.batches.batches(0, int(self.batches.count)):
            measured, _ = self._run(variables, batch)
            # Scoring lags one batch behind: the host scores while the devices compute.
            if pending is not None:
                score = self.task.update(score, jax.device_get(pending))
            pending = measured
        if pending is not None:
            score = self.task.update(score, jax.device_get(pending))
        return self.task.summary(score)

    def segments(self, variables: dict[str, Any], indices: Sequence[int]) -> Iterator[tuple[int, Segments]]:
        """Predicts some images of the split with the same compiled step, on a single host.

        Yields:
            Source index and segments [y, x, ...] of each image, without padding, in batch order.
        """
        for number in sorted({self.batches.arrange().batch_of(i) for i in indices}):
            batch = next(self.batches.batches(number, number + 1))
            _, found = self._run(variables, batch)
            found = jax.device_get(found)
            if self.transform == "pmap":  # [devices, images per device, ...]
                found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
            for row in np.flatnonzero(np.isin(batch["index"], indices)).tolist():
                yield int(batch["index"][row]), found.crop(row, batch["native_size"][row].tolist())

    def _run(self, variables, batch):
        batch = {key: value for key, value in batch.items() if key != "position"}
        return self.step(variables, parallel.put_batch(self.mesh, batch, self.transform))
