"""segjax: image segmentation in JAX and Flax."""

import importlib

_ROOMS = ("augment", "config", "data", "infer", "losses", "metrics", "models", "nn", "report", "spec")
_ROOMS += ("tasks", "train", "weights")


def __getattr__(name: str):
    """Imports a room when it is first used: `segjax.models.create` needs no import of its own."""
    if name in _ROOMS:
        return importlib.import_module(f"segjax.{name}")
    raise AttributeError(f"module 'segjax' has no attribute {name!r}")
