"""State, steps, evaluation, checkpoints and the loop that ties them together."""
