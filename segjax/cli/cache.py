"""The cache of compiled programs: on by default, so that a step is compiled once on a machine."""

import os
import pathlib

import jax
from absl import flags


def define_cache(values: flags.FlagValues) -> None:
    """Defines --cache.

    Args:
        values: where flags are defined.
    """
    text = "Keep compiled programs in $JAX_COMPILATION_CACHE_DIR, or the user's cache folder."
    flags.DEFINE_bool("cache", True, text, flag_values=values)


def use_cache(values: flags.FlagValues) -> None:
    """Switches the cache on or off; comes before anything is compiled.

    Args:
        values: the verb's flags.
    """
    if not values.cache:
        jax.config.update("jax_enable_compilation_cache", False)
    elif not jax.config.jax_compilation_cache_dir:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home, "segjax", "programs")))
        # What takes less is compiled as fast as it is read.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
