"""Runs the reading and the warp in parallel: as a tf.data pipeline, or in threads where TensorFlow is absent."""

import atexit
import collections
import contextlib
import functools
import importlib.util
import itertools
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np

from segjax.config import check_choice
from segjax.data import geometry
from segjax.spec import DatasetSpec, Preprocess, UserError


class Canvas(NamedTuple):
    """Rows and columns of the padded inputs and labels; `exact` where one input pixel is one label pixel."""

    inputs: tuple[int, int]
    labels: tuple[int, int]
    exact: bool


class Layout(NamedTuple):
    """What batches look like; `points` is the side of the grid of elastic displacements, 0 without."""

    canvas: Canvas
    spec: DatasetSpec
    preprocess: Preprocess
    points: int


class Sample(NamedTuple):
    """What is read and drawn for one row, before the warp.

    image: uint8 [y, x, c]; label: as the source gives it; index: int32, -1 for padding; position: int32 global
    sample number; content: int32 [4], see segjax.spec.
    """

    image: Any
    label: Any
    warp: geometry.Warp
    index: Any
    position: Any
    content: Any


class Loading(NamedTuple):
    """How samples are read.

    Args:
        loader: "tf.data", "threads", or "auto": tf.data where TensorFlow is installed. The batches are the same.
        workers: parallel readers; 0 is the number of cores.
        max_corrupt: share of a split that may be unreadable before the run stops.
    """

    loader: Literal["auto", "tf.data", "threads"] = "auto"
    workers: int = 0
    max_corrupt: float = 0.02


def run(
    loading: Loading, sample: Callable[[int], Sample], count: int, rows: int, layout: Layout
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of `rows` consecutive samples.

    Args:
        loading: how samples are read.
        sample: gives sample i, for 0 <= i < count; called from several threads.
        count: number of samples, a multiple of `rows`.
        rows: samples a batch.
        layout: what the batches look like.

    Yields:
        Batches as in `segjax.spec`; the same for both loaders, bit for bit.

    Raises:
        UserError: what `sample` raises, an unknown loader, or tf.data without TensorFlow.
    """
    found = importlib.util.find_spec("tensorflow") is not None
    kind, workers = loading.loader, loading.workers or os.cpu_count() or 1
    if kind == "tf.data" and not found:
        raise UserError(
            "loading.loader='tf.data' needs TensorFlow, which is not installed. Install it with "
            "`pip install tensorflow-cpu`, or use --config.loading.loader=threads: the batches are the same."
        )
    check_choice("loading.loader", kind, ("auto", "tf.data", "threads"))
    use_tf = kind == "tf.data" or (kind == "auto" and found)
    batches = (_tf_batches if use_tf else _thread_batches)(sample, count, rows, layout, workers)
    _close_at_exit().add(batches)
    return batches


@functools.cache
def _close_at_exit() -> weakref.WeakSet:
    """Pipelines to close while Python still runs.

    A run that fails leaves its pipeline half read. If that is freed with the interpreter, TensorFlow waits for a
    reader thread that waits for the interpreter's lock, and the process never ends.
    """
    open_pipelines: weakref.WeakSet = weakref.WeakSet()

    @atexit.register
    def close() -> None:
        for batches in list(open_pipelines):
            batches.close()

    return open_pipelines


def _warped(xp: Any, sample: Sample, layout: Layout) -> dict[str, Any]:
    """The row of a batch that a sample makes."""
    canvas, margin = layout.canvas, layout.preprocess.context
    height, width = canvas.inputs
    at = geometry.positions(xp, sample.warp, canvas.inputs, margin, layout.points)
    row = {
        "image": geometry.sample_image(xp, sample.image, sample.warp, at, layout.preprocess),
        "index": sample.index,
        "position": sample.position,
    }
    if canvas.exact:
        at = tuple(a[margin : margin + height, margin : margin + width] for a in at)
    else:
        # The label stays at its own size: scores are of its pixels.
        identity = geometry.Warp(np.eye(2, 3, dtype=np.float32), None, sample.warp.size)
        at = geometry.positions(xp, identity, canvas.labels, 0, 0)
        row["content"] = sample.content
    return row | {"label": geometry.sample_label(xp, sample.label, sample.warp, at, layout.spec.ignore)}


def _thread_batches(sample, count, rows, layout, workers):
    with ThreadPoolExecutor(workers) as pool:
        rest = iter(range(count))
        # Two batches ahead, so that the consumer never waits for a whole one.
        waiting = collections.deque(
            pool.submit(lambda i: _warped(np, sample(i), layout), i) for i in itertools.islice(rest, 2 * rows)
        )
        try:
            while waiting:
                ready = []
                for _ in range(rows):
                    ready.append(waiting.popleft().result())
                    for i in itertools.islice(rest, 1):
                        waiting.append(pool.submit(lambda i: _warped(np, sample(i), layout), i))
                yield {k: np.stack([row[k] for row in ready]) for k in ready[0]}
        finally:
            for future in waiting:
                future.cancel()


def _tf_batches(sample, count, rows, layout, workers):
    # Read at import: the pipeline has no use for oneDNN, whose rounding differs between processors.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf
    import tensorflow.experimental.numpy as tnp

    with contextlib.suppress(RuntimeError):  # raised where the caller has already chosen TensorFlow's devices
        tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's
    failures = []

    def read(i):
        try:
            s = sample(int(i))
        except Exception as error:
            failures.append(error)  # tf.data hands on no more than its text
            raise
        return s.image, s.label, *s.warp, s.index, s.position, s.content

    types = [tf.uint8, tf.as_dtype(layout.spec.label_dtype), *[tf.float32] * 3, *[tf.int32] * 3]
    channels, points = len(layout.preprocess.mean), layout.points
    shapes = [
        (None, None, channels),
        (None, None, *layout.spec.layers),
        (2, 3),
        (points, points, 2),
        (2,),
        (),
        (),
        (4,),
    ]

    def row(i):
        values = tf.numpy_function(read, [i], types, stateful=False)
        for value, shape in zip(values, shapes, strict=True):
            value.set_shape(shape)
        image, label, matrix, grid, size, *rest = values
        return _warped(tnp, Sample(image, label, geometry.Warp(matrix, grid, size), *rest), layout)

    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    data = tf.data.Dataset.range(count).map(row, num_parallel_calls=workers, deterministic=True)
    data = data.batch(rows, drop_remainder=True).prefetch(2).with_options(options)
    try:
        yield from data.as_numpy_iterator()
    except tf.errors.OpError as error:
        raise (failures[0] if failures else error) from None
