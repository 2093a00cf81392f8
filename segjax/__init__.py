"""segjax: image segmentation in JAX and Flax."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "augment",
        "config",
        "data",
        "infer",
        "losses",
        "metrics",
        "models",
        "nn",
        "objectives",
        "parallel",
        "report",
        "spec",
        "tasks",
        "train",
        "weights",
    ],
)
