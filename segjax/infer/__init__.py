"""Inference: predicts masks and objects for images of any size."""

from segjax.infer.predictor import Predictor
from segjax.infer.windows import overlap_tile

__all__ = ["Predictor", "load", "overlap_tile"]

load = Predictor.from_workdir  # its name in version 0.1
