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
from typing import Annotated, Any, NamedTuple

import numpy as np

from segjax.checks import Key, UserError, check_choice
from segjax.data import geometry
from segjax.spec import DatasetSpec, Preprocess

LOADERS = ("auto", "tf.data", "threads")


class Canvas(NamedTuple):
    """Rows and columns of the padded inputs and labels; `exact` where one input pixel is one label pixel."""

    inputs: tuple[int, int]
    labels: tuple[int, int]
    exact: bool


class Layout(NamedTuple):
    """What batches look like.

    canvas: sizes.
    spec: the labels.
    preprocess: how images become inputs.
    whole: evaluation of whole images, whose place on the canvas goes along.
    instances: instance maps go along.
    paste: objects of other images are pasted.
    """

    canvas: Canvas
    spec: DatasetSpec
    preprocess: Preprocess
    whole: bool
    instances: bool
    paste: bool


class Scene(NamedTuple):
    """An image as it is read, and the warp that was drawn for it.

    image: as stored [y, x, c]; label: as the source gives it; instance: uint16 [y, x], a single 0 where none is wanted.
    """

    image: Any
    label: Any
    instance: Any
    warp: geometry.Warp


class Sample(NamedTuple):
    """What is read and drawn for one row, before the warp.

    scene: the image; pasted: another one, of whose objects some are pasted; numbers: uint16 [n], what the objects
    0 .. n - 1 of that are called in the row, 0 for those that are not pasted; index: int32, -1 for padding; position:
    int32 global sample number; content: int32 [4], see segjax.spec.
    """

    scene: Scene
    pasted: Scene
    numbers: Any
    index: Any
    position: Any
    content: Any


class Loading(NamedTuple):
    """How samples are read: the keys of the section `loading`."""

    loader: Annotated[
        str, Key("auto: tf.data where TensorFlow is installed, else threads; the same batches", LOADERS)
    ] = "auto"
    workers: Annotated[int, Key("parallel readers; 0: the number of cores", "[0, inf)")] = 0
    max_corrupt: Annotated[float, Key("share of a split that may be unreadable before the run stops", "[0, 1]")] = 0.02


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
    check_choice("loading.loader", kind, LOADERS)
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


def _warped(sample: Sample, layout: Layout) -> dict[str, Any]:
    """The row of a batch that a sample makes."""
    row = _warped_scene(sample.scene, layout)
    if layout.paste:
        # An object covers what lies behind it, and so do the maps, from which all targets are made.
        other = _warped_scene(sample.pasted, layout)
        other["instance"] = sample.numbers.take(other["instance"])
        pasted = other["instance"] > 0
        for key, value in row.items():
            value[pasted] = other[key][pasted]
    row |= {"index": sample.index, "position": sample.position}
    return row | {"content": sample.content} if layout.whole else row


def _warped_scene(scene, layout):
    canvas, margin = layout.canvas, layout.preprocess.context
    height, width = canvas.inputs
    at = geometry.positions(scene.warp, canvas.inputs, margin)
    row = {"image": geometry.sample_image(scene.image, at, layout.preprocess)}
    if canvas.exact:
        at = tuple(a[margin : margin + height, margin : margin + width] for a in at)
    else:
        # The label stays at its own size: scores are of its pixels.
        identity = geometry.Warp(np.eye(2, 3, dtype=np.float32), np.zeros((0, 0, 2), np.float32))
        at = geometry.positions(identity, canvas.labels, 0)
    row["label"] = geometry.sample_label(scene.label, at, layout.spec.ignore)
    if layout.instances:
        row["instance"] = geometry.sample_label(scene.instance, at, 0)
    return row


def _thread_batches(sample, count, rows, layout, workers):
    with ThreadPoolExecutor(workers) as pool:
        rest = iter(range(count))
        # Two batches ahead, so that the consumer never waits for a whole one.
        waiting = collections.deque(
            pool.submit(lambda i: _warped(sample(i), layout), i) for i in itertools.islice(rest, 2 * rows)
        )
        try:
            while waiting:
                ready = []
                for _ in range(rows):
                    ready.append(waiting.popleft().result())
                    for i in itertools.islice(rest, 1):
                        waiting.append(pool.submit(lambda i: _warped(sample(i), layout), i))
                yield {k: np.stack([row[k] for row in ready]) for k in ready[0]}
        finally:
            for future in waiting:
                future.cancel()


def _tf_batches(sample, count, rows, layout, workers):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # read at import, which would print that it is on
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # raised where the caller has already chosen TensorFlow's devices
        tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's
    failures = []
    kinds = {"image": tf.as_dtype(layout.spec.image_dtype), "label": tf.as_dtype(layout.spec.label_dtype)}
    kinds |= {"instance": tf.uint16} if layout.instances else {}
    kinds |= {"index": tf.int32, "position": tf.int32}
    kinds |= {"content": tf.int32} if layout.whole else {}

    def read(i):
        try:
            row = _warped(sample(int(i)), layout)
        except Exception as error:
            failures.append(error)  # tf.data hands on no more than its text
            raise
        return [row[key] for key in kinds]

    def row(i):
        return dict(zip(kinds, tf.numpy_function(read, [i], list(kinds.values()), stateful=False), strict=True))

    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    data = tf.data.Dataset.range(count).map(row, num_parallel_calls=workers, deterministic=True)
    data = data.batch(rows, drop_remainder=True).prefetch(2).with_options(options)
    try:
        yield from data.as_numpy_iterator()
    except tf.errors.OpError as error:
        raise (failures[0] if failures else error) from None
