"""Starts a run from published weights."""

from typing import Annotated

import jax
import numpy as np
from flax import linen as nn

from segjax import parallel
from segjax.checks import Key, UserError
from segjax.spec import Preprocess
from segjax.train.state import TrainState


def start_from(
    state: TrainState,
    model: nn.Module,
    preprocess: Preprocess,
    *,
    weights: Annotated[str, Key(".safetensors, .pth or hf://organisation/name to start from; None: from scratch")],
    layout: Annotated[str, Key("naming scheme of the weights", ("torchvision", "timm", "smp"))] = "torchvision",
    strict: Annotated[bool, Key("raise if a tensor is missing or has another shape")] = True,
    check_inputs: Annotated[bool, Key("raise if preprocess.mean or std differ from the weights'")] = True,
    check_settings: Annotated[bool, Key("raise if settings change the model's function")] = True,
) -> tuple[TrainState, str]:
    """Loads pretrained weights into an initial state, as configured in the section `init`.

    Returns:
        The state, and a description of its origin.

    Raises:
        UserError: the weights cannot be read or do not match the model.
    """
    from segjax import weights as pretrained  # slow to import, and needed only here

    old = parallel.replicate(state.variables(False))
    variables, report = pretrained.load(
        weights, jax.device_get(old), layout, model=model, check_settings=check_settings, strict=strict
    )
    expected = report.preprocess
    if check_inputs and expected:
        pairs = ((expected.mean, preprocess.mean), (expected.std, preprocess.std))
        if any(len(a) != len(b) or not np.allclose(a, b, atol=0.5) for a, b in pairs):
            raise UserError(
                f"init.weights={weights!r} expects other inputs: set preprocess.mean={expected.mean} and "
                f"preprocess.std={expected.std}, or init.check_inputs=False if yours are right."
            )

    def place(new, old):
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: np.asarray(new)[index])

    def put(old):
        return jax.tree.map(place, variables, old)

    placed = put(state.variables(False))
    ema = put(state.ema) if state.ema else state.ema
    return state.replace(params=placed["params"], batch_stats=placed["batch_stats"], ema=ema), f"{weights}: {report}"
