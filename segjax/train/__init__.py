"""State, steps, evaluation, checkpoints and the loop that ties them together."""

from segjax.train import loop as loop
