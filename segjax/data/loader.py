"""Loads batches in parallel: with tf.data, or with threads if TensorFlow is not installed."""

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
from segjax.data import copy_paste, warping
from segjax.spec import DatasetSpec, Preprocess

LOADERS = ("auto", "tf.data", "threads")
Batch = dict[str, np.ndarray]


class Layout(NamedTuple):
    """Shapes and contents of batches.

    batch_size: images per step, over all devices and hosts.
    padded_size, output_size: rows and columns of the padded inputs, without context, and labels.
    evaluation: full images, padded; batches include their sizes.
    instances: batches include instance maps.
    """

    batch_size: int
    padded_size: tuple[int, int]
    output_size: tuple[int, int]
    spec: DatasetSpec
    preprocess: Preprocess
    evaluation: bool
    instances: bool

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of each array, without the batch axis."""
        spec = self.spec
        height, width = (n + 2 * self.preprocess.context for n in self.padded_size)
        arrays = {
            "image": ((height, width, len(spec.image_channels)), np.dtype(spec.image_dtype).type),
            "label": ((*self.output_size, *spec.label_axes), spec.label_dtype),
            "index": ((), np.int32),
            "position": ((), np.int32),
        }
        arrays |= {"instance": (self.output_size, np.uint16)} if self.instances else {}
        sizes = {"valid_size": ((2,), np.int32), "native_size": ((2,), np.int32)}
        return arrays | (sizes if self.evaluation else {})


class Scene(NamedTuple):
    """An image as read, and the warp drawn for it.

    image: [y, x, c] as stored; label: as the source returns it; instance: uint16 [y, x], None if not needed.
    """

    image: Any
    label: Any
    instance: Any
    warp: warping.Warp


class Sample(NamedTuple):
    """Everything needed to make one row of a batch, before warping.

    index: int32, -1 for padding; position: int32 global sample number.
    sizes: valid_size and native_size by name, int32 [2] each; None in training.
    pasted: another image, whose objects are pasted under new `numbers`, see `copy_paste.draw_numbers`.
    """

    scene: Scene
    index: Any
    position: Any
    sizes: dict[str, Any] | None = None
    pasted: Scene | None = None
    numbers: Any = None


class Loading(NamedTuple):
    """How samples are read: the keys of the section `loading`."""

    loader: Annotated[str, Key("auto: tf.data if installed, else threads; same batches", LOADERS)] = "auto"
    workers: Annotated[int, Key("parallel readers; 0: one per core", "[0, inf)")] = 0
    max_corrupt: Annotated[float, Key("largest fraction of unreadable samples before the run stops", "[0, 1]")] = 0.02


def load_batches(
    loading: Loading, sample: Callable[[int], Sample], count: int, rows: int, layout: Layout
) -> Iterator[Batch]:
    """Yields samples 0 .. count - 1 in batches of `rows`, bit-identical with both loaders.

    `sample(i)` is called from several threads, and its errors are raised here. Raises a UserError if the loader is
    unknown, or is tf.data without TensorFlow.
    """
    has_tf = importlib.util.find_spec("tensorflow") is not None
    kind, workers = loading.loader, loading.workers or os.cpu_count() or 1
    if kind == "tf.data" and not has_tf:
        raise UserError(
            "loading.loader='tf.data' needs TensorFlow, which is not installed. Install it with "
            "`pip install tensorflow-cpu`, or use --config.loading.loader=threads: the batches are the same."
        )
    check_choice("loading.loader", kind, LOADERS)
    batches = (_tf_batches if kind != "threads" and has_tf else _thread_batches)(sample, count, rows, layout, workers)
    _unfinished.add(batches)
    return batches


# Closed before the interpreter exits. A failed run leaves its pipeline half read; if that is freed by the exit itself,
# TensorFlow waits for a reader thread that waits for the GIL, and the process never ends.
_unfinished: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close() -> None:
    for batches in list(_unfinished):
        batches.close()


def _warped(sample: Sample, layout: Layout) -> dict[str, Any]:
    """Warps a sample to a row of a batch."""
    row = _warped_scene(sample.scene, layout)
    if sample.pasted:
        copy_paste.paste_objects(row, _warped_scene(sample.pasted, layout), sample.numbers)
    return row | {"index": sample.index, "position": sample.position} | (sample.sizes or {})


def _warped_scene(scene, layout):
    margin, (height, width) = layout.preprocess.context, layout.padded_size
    at = warping.source_positions(scene.warp, layout.padded_size, margin)
    row = {"image": warping.sample_image(scene.image, at, layout.preprocess)}
    if layout.evaluation and layout.preprocess.resize is not None:
        # The label keeps its own size, at which metrics are computed.
        at = warping.source_positions(warping.Warp(np.eye(2, 3, dtype=np.float32)), layout.output_size, 0)
    else:
        at = tuple(a[margin : margin + height, margin : margin + width] for a in at)
    row["label"] = warping.sample_label(scene.label, at, layout.spec.ignore)
    if layout.instances:
        row["instance"] = warping.sample_label(scene.instance, at, 0)
    return row


def _thread_batches(sample, count, rows, layout, workers):
    with ThreadPoolExecutor(workers) as pool:
        submitted = (pool.submit(lambda i: _warped(sample(i), layout), i) for i in range(count))
        # Stays two batches ahead: the consumer never waits for a whole one.
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
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # read at import; without it a message is printed
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # the caller has already set TensorFlow's devices
        tf.config.set_visible_devices([], "GPU")  # accelerators are for JAX
    failures = []
    kinds = {key: tf.as_dtype(dtype) for key, (_, dtype) in layout.arrays.items()}

    def read(i):
        try:
            row = _warped(sample(int(i)), layout)
        except Exception as error:
            failures.append(error)  # tf.data keeps only its text
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
