"""Compiles steps for a mesh, with jit and explicit shardings or with pmap; also sets up the compilation cache."""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.sharding import Mesh

from segjax import parallel
from segjax.parallel import DATA
from segjax.spec import Geometry, Preprocess, Segments
from segjax.tasks import Task
from segjax.train.state import TrainState
from segjax.train.step import Scalars, make_predict_step


def compile_train(
    make: Callable, mesh: Mesh, transform: str, shardings: Any = None, donate: bool = True
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Scalars]]:
    """Compiles a train step for a mesh; batches must come from `parallel.put_batch` with the same transform.

    `make` maps axis_name to an uncompiled step (state, batch) -> (state, scalars). `shardings` are those of the state
    (see `parallel.state_shardings`); None replicates it. `donate` reuses the old state's memory for the new one.
    """
    donated = (0,) if donate else ()
    if transform == "pmap":
        return _pmap(make, mesh, (None, None), donated)
    everywhere = parallel.replicated_sharding(mesh)
    shardings = everywhere if shardings is None else shardings
    return jax.jit(
        _on_mesh(make(None), mesh),
        in_shardings=(shardings if donate else None, None),
        out_shardings=(shardings, everywhere),
        donate_argnums=donated,
    )


def compile_eval(
    make: Callable, mesh: Mesh, transform: str
) -> Callable[[dict[str, Any], dict[str, jax.Array]], tuple[Any, Segments]]:
    """Compiles an evaluation step for a mesh; `make` maps axis_name to a step, as in `compile_train`.

    Measurements are replicated on every device. Segments stay on the device that made them; under pmap they are
    arrays [devices, images per device, ...].
    """
    if transform == "pmap":
        return _pmap(make, mesh, (None, 0), ())
    # XLA chooses the sharding of the segments: sharded by rows if the rows divide evenly.
    return jax.jit(_on_mesh(make(None), mesh), out_shardings=(parallel.replicated_sharding(mesh), None))


def compile_predict(
    model: nn.Module, task: Task, preprocess: Preprocess, mesh: Mesh | None = None
) -> Callable[[dict[str, Any], jax.Array, Geometry], Segments]:
    """Compiles `make_predict_step`, once per image size; with a mesh, images are sharded over it."""
    predict = make_predict_step(model, task, preprocess)
    if mesh is None:
        return jax.jit(predict)

    def on_mesh(variables, images, geometry):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return predict(variables, parallel.constrain_batch(mesh, {"image": images})["image"], geometry)

    # Inputs and outputs are not sharded by rows, because the rows may not divide evenly.
    return jax.jit(
        on_mesh,
        in_shardings=(None, parallel.batch_sharding(mesh), parallel.batch_sharding(mesh)),
        out_shardings=parallel.replicated_sharding(mesh),
    )


def _pmap(make, mesh, out_axes, donated):
    return jax.pmap(
        make(DATA),
        axis_name=DATA,
        in_axes=(None, 0),
        out_axes=out_axes,
        donate_argnums=donated,
        devices=list(mesh.devices.flat) if jax.process_count() == 1 else None,
    )


def _on_mesh(step, mesh):
    @functools.wraps(step)
    def on_mesh(state, batch):
        # Operations that XLA cannot shard read the mesh at trace time, see `segjax.parallel.num_row_shards`.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(state, parallel.constrain_batch(mesh, batch))

    return on_mesh


class CacheCounts(NamedTuple):
    """Programs read from the cache (hits), and programs compiled and added to it (misses)."""

    hits: int
    misses: int


def enable_compilation_cache(on: bool, workdir: str | None = None) -> None:
    """Turns the compilation cache on or off; call it before anything is compiled.

    Programs are stored in the folder set by $JAX_COMPILATION_CACHE_DIR or `jax.config`, otherwise in the user's cache
    folder, `$XDG_CACHE_HOME/segjax` or `~/.cache/segjax`. Nothing is ever deleted from it. With several hosts only
    the first one writes, so the cache is inside the workdir that they share.
    """
    jax.config.update("jax_enable_compilation_cache", on)
    if on and not jax.config.jax_compilation_cache_dir:
        folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "segjax")
        if workdir and jax.process_count() > 1:
            folder = pathlib.Path(workdir, "programs")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # By default JAX caches only compilations of a second or more; the many small programs of a start take longer.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    cache_counts()  # starts counting


def cache_counts() -> CacheCounts:
    """Counts the cache's hits and misses since the first call in this process."""
    found = _events()
    return CacheCounts(found["/jax/compilation_cache/cache_hits"], found["/jax/compilation_cache/cache_misses"])


@functools.cache
def _events() -> dict[str, int]:
    """Counts JAX's cache events in this process by name, starting with the first call."""
    found = {"/jax/compilation_cache/cache_hits": 0, "/jax/compilation_cache/cache_misses": 0}

    def listen(event: str, **_) -> None:
        if event in found:
            found[event] += 1

    jax.monitoring.register_event_listener(listen)
    return found
