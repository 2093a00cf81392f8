"""The cache of compiled programs on disk, and how often it helped."""

import functools
import os
import pathlib
from typing import NamedTuple

import jax


class Counts(NamedTuple):
    """Programs that came from the cache, and programs that were compiled and put there."""

    hits: int
    misses: int


def switch(on: bool, workdir: str | None = None) -> None:
    """Switches the cache on or off; comes before anything is compiled.

    Programs are kept in the folder that $JAX_COMPILATION_CACHE_DIR or `jax.config` names, or in the user's cache
    folder, `$XDG_CACHE_HOME/segjax` or `~/.cache/segjax`. Nothing is ever removed from there. Of several hosts the
    first alone writes, so theirs is within the workdir that they share.

    Args:
        on: whether programs are kept, and looked up.
        workdir: folder of the run, where there is one.
    """
    jax.config.update("jax_enable_compilation_cache", on)
    if on and not jax.config.jax_compilation_cache_dir:
        folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "segjax")
        if workdir and jax.process_count() > 1:
            folder = pathlib.Path(workdir, "programs")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # JAX keeps what took a second to compile; the many small programs of a start add up to more.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    counts()  # starts the count


def counts() -> Counts:
    """Counts the cache's hits and misses since the first call in this process."""
    found = _events()
    return Counts(found["/jax/compilation_cache/cache_hits"], found["/jax/compilation_cache/cache_misses"])


@functools.cache
def _events() -> dict[str, int]:
    """Number of JAX's events of this process by name, from the first call on."""
    found = {"/jax/compilation_cache/cache_hits": 0, "/jax/compilation_cache/cache_misses": 0}

    def listen(event: str, **_) -> None:
        if event in found:
            found[event] += 1

    jax.monitoring.register_event_listener(listen)
    return found
