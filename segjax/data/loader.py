"""Runs the reading and the warp in parallel: as a tf.data pipeline, or in threads where TensorFlow is absent."""

import atexit
import collections
import contextlib
import importlib.util
import itertools
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import numpy as np

from segjax.checks import Key, UserError, check_choice
from segjax.data import copy_paste, geometry
from segjax.spec import DatasetSpec, Preprocess

LOADERS = ("auto", "tf.data", "threads")
Batch = dict[str, np.ndarray]


class Layout(NamedTuple):
    """What batches look like.

    inputs, labels: rows and columns of the padded inputs, without context, and labels.
    whole: evaluation of whole images, whose place on the canvas goes along.
    instances: instance maps go along.
    """

    inputs: tuple[int, int]
    labels: tuple[int, int]
    spec: DatasetSpec
    preprocess: Preprocess
    whole: bool
    instances: bool

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of each array of a row."""
        spec = self.spec
        height, width = (n + 2 * self.preprocess.context for n in self.inputs)
        arrays = {
            "image": ((height, width, len(spec.image_channels)), np.dtype(spec.image_dtype).type),
            "label": ((*self.labels, *spec.layers), spec.label_dtype),
            "index": ((), np.int32),
            "position": ((), np.int32),
        }
        arrays |= {"instance": (self.labels, np.uint16)} if self.instances else {}
        return arrays | ({"content": ((4,), np.int32)} if self.whole else {})


class Scene(NamedTuple):
    """An image as it is read, and the warp that was drawn for it.

    image: as stored [y, x, c]; label: as the source gives it; instance: uint16 [y, x] where it is wanted.
    """

    image: Any
    label: Any
    instance: Any
    warp: geometry.Warp


class Sample(NamedTuple):
    """What is read and drawn for one row, before the warp.

    index: int32, -1 for padding; position: int32 global sample number; content: int32 [4], see segjax.spec.
    pasted: another image, of whose objects some are pasted, under `numbers`, see `copy_paste.draw_numbers`.
    """

    scene: Scene
    index: Any
    position: Any
    content: Any = None
    pasted: Scene | None = None
    numbers: Any = None


class Loading(NamedTuple):
    """How samples are read: the keys of the section `loading`."""

    loader: Annotated[str, Key("auto: tf.data where it is installed, else threads; the same batches", LOADERS)] = "auto"
    workers: Annotated[int, Key("parallel readers; 0: the number of cores", "[0, inf)")] = 0
    max_corrupt: Annotated[float, Key("share of a split that may be unreadable before the run stops", "[0, 1]")] = 0.02


def run(loading: Loading, sample: Callable[[int], Sample], count: int, rows: int, layout: Layout) -> Iterator[Batch]:
    """Yields batches of `rows` of the samples 0 .. count - 1, the same for both loaders, bit for bit.

    `sample` gives sample i and is called from several threads; what it raises is raised here. A UserError says that the
    loader is not known, or tf.data without TensorFlow.
    """
    found = importlib.util.find_spec("tensorflow") is not None
    kind, workers = loading.loader, loading.workers or os.cpu_count() or 1
    if kind == "tf.data" and not found:
        raise UserError(
            "loading.loader='tf.data' needs TensorFlow, which is not installed. Install it with "
            "`pip install tensorflow-cpu`, or use --config.loading.loader=threads: the batches are the same."
        )
    check_choice("loading.loader", kind, LOADERS)
    batches = (_tf_batches if kind != "threads" and found else _thread_batches)(sample, count, rows, layout, workers)
    _unfinished.add(batches)
    return batches


# Closed while Python still runs. A run that fails leaves its pipeline half read: if that is freed with the interpreter,
# TensorFlow waits for a reader thread that waits for the interpreter's lock, and the process never ends.
_unfinished: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close() -> None:
    for batches in list(_unfinished):
        batches.close()


def _warped(sample: Sample, layout: Layout) -> dict[str, Any]:
    """The row of a batch that a sample makes."""
    row = _warped_scene(sample.scene, layout)
    if sample.pasted:
        copy_paste.paste(row, _warped_scene(sample.pasted, layout), sample.numbers)
    row |= {"index": sample.index, "position": sample.position}
    return row | {"content": sample.content} if layout.whole else row


def _warped_scene(scene, layout):
    margin, (height, width) = layout.preprocess.context, layout.inputs
    at = geometry.positions(scene.warp, layout.inputs, margin)
    row = {"image": geometry.sample_image(scene.image, at, layout.preprocess)}
    if layout.whole and layout.preprocess.resize is not None:
        # The label stays at its own size: scores are of its pixels.
        at = geometry.positions(geometry.Warp(np.eye(2, 3, dtype=np.float32)), layout.labels, 0)
    else:
        at = tuple(a[margin : margin + height, margin : margin + width] for a in at)
    row["label"] = geometry.sample_label(scene.label, at, layout.spec.ignore)
    if layout.instances:
        row["instance"] = geometry.sample_label(scene.instance, at, 0)
    return row


def _thread_batches(sample, count, rows, layout, workers):
    with ThreadPoolExecutor(workers) as pool:
        submitted = (pool.submit(lambda i: _warped(sample(i), layout), i) for i in range(count))
        # Two batches ahead, so that the consumer never waits for a whole one.
        waiting = collections.deque(itertools.islice(submitted, 2 * rows))
        try:
            while waiting:
                ready = []
                for _ in range(rows):
                    ready.append(waiting.popleft().result())
                    waiting.extend(itertools.islice(submitted, 1))
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
    kinds = {key: tf.as_dtype(dtype) for key, (_, dtype) in layout.arrays.items()}

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
