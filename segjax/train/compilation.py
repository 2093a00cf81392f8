"""Steps compiled for the devices of a mesh, by jit with explicit shardings or by pmap, and the cache of programs."""

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
from segjax.train.state import State
from segjax.train.step import Scalars, make_predict_step


def compile_train(
    make: Callable, mesh: Mesh, mode: parallel.Mode, shardings: Any = None, donate: bool = True
) -> Callable[[State, dict[str, jax.Array]], tuple[State, Scalars]]:
    """Compiles a train step for the devices of a mesh; batches come from `parallel.put_batch` with the same mode.

    `make` is axis_name -> un-compiled step of (state, batch) -> (state, scalars). `shardings` say where the state lies,
    see `parallel.state_sharding`, None for whole on every device; `donate` gives its memory to the next one.
    """
    donated = (0,) if donate else ()
    if mode == "pmap":
        return _pmap(make, mesh, (None, None), donated)
    everywhere = parallel.replicated(mesh)
    shardings = everywhere if shardings is None else shardings
    return jax.jit(
        _on_mesh(make(None), mesh),
        in_shardings=(shardings if donate else None, None),
        out_shardings=(shardings, everywhere),
        donate_argnums=donated,
    )


def compile_eval(
    make: Callable, mesh: Mesh, mode: parallel.Mode
) -> Callable[[dict[str, Any], dict[str, jax.Array]], tuple[Any, Segments]]:
    """Compiles an evaluation step for the devices of a mesh; `make` is axis_name -> step, as in `compile_train`.

    What is measured is the same on every device. Segments stay where they were made, under pmap as arrays [devices,
    images of a device, ...].
    """
    if mode == "pmap":
        return _pmap(make, mesh, (None, 0), ())
    # Segments lie as XLA leaves them: divided, where their rows divide evenly.
    return jax.jit(_on_mesh(make(None), mesh), out_shardings=(parallel.replicated(mesh), None))


def compile_predict(
    model: nn.Module, task: Task, preprocess: Preprocess, mesh: Mesh | None = None
) -> Callable[[dict[str, Any], jax.Array, Geometry], Segments]:
    """Compiles `make_predict_step`, once for each size; images are divided over the mesh, where there is one."""
    predict = make_predict_step(model, task, preprocess)
    if mesh is None:
        return jax.jit(predict)

    def on_mesh(variables, images, geometry):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return predict(variables, parallel.divided(mesh, {"image": images})["image"], geometry)

    # Whole images go in, since their rows may not divide evenly, and whole maps come out.
    return jax.jit(
        on_mesh,
        in_shardings=(None, parallel.batched(mesh), parallel.batched(mesh)),
        out_shardings=parallel.replicated(mesh),
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
        # What XLA cannot divide looks for the mesh while it is traced, see `segjax.parallel.shards`.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(state, parallel.divided(mesh, batch))

    return on_mesh


class CacheCounts(NamedTuple):
    """Programs that came from the cache, and programs that were compiled and put there."""

    hits: int
    misses: int


def switch_cache(on: bool, workdir: str | None = None) -> None:
    """Switches the cache of compiled programs on or off; comes before anything is compiled.

    Programs are kept in the folder that $JAX_COMPILATION_CACHE_DIR or `jax.config` names, or in the user's cache
    folder, `$XDG_CACHE_HOME/segjax` or `~/.cache/segjax`. Nothing is ever removed from there. Of several hosts the
    first alone writes, so theirs is within the workdir that they share.
    """
    jax.config.update("jax_enable_compilation_cache", on)
    if on and not jax.config.jax_compilation_cache_dir:
        folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "segjax")
        if workdir and jax.process_count() > 1:
            folder = pathlib.Path(workdir, "programs")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # JAX keeps what took a second to compile; the many small programs of a start add up to more.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    cache_counts()  # starts the count


def cache_counts() -> CacheCounts:
    """Counts the cache's hits and misses since the first call in this process."""
    found = _events()
    return CacheCounts(found["/jax/compilation_cache/cache_hits"], found["/jax/compilation_cache/cache_misses"])


@functools.cache
def _events() -> dict[str, int]:
    """Number of JAX's events of this process by name, from the first call on."""
    found = {"/jax/compilation_cache/cache_hits": 0, "/jax/compilation_cache/cache_misses": 0}

    def listen(event: str, **_) -> None:
        if event in found:
            found[event] += 1

    jax.monitoring.register_event_listener(listen)
    return found
