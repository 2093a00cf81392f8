"""Published weights as the start of a run."""

from typing import Annotated

import jax
import numpy as np
from flax import linen as nn

from segjax import parallel
from segjax.checks import Key, UserError
from segjax.spec import Preprocess
from segjax.train.state import State


def start_from(
    state: State,
    model: nn.Module,
    preprocess: Preprocess,
    *,
    weights: Annotated[str, Key(".safetensors, .pth or hf://organisation/name to start from; None: from scratch")],
    layout: Annotated[str, Key("whose names the weights have", ("torchvision", "timm", "smp"))] = "torchvision",
    strict: Annotated[bool, Key("a missing or misshapen tensor is an error")] = True,
    check_inputs: Annotated[bool, Key("means and deviations that differ from the weights' are an error")] = True,
    check_settings: Annotated[bool, Key("settings that make the model another function are an error")] = True,
) -> tuple[State, str]:
    """Puts pretrained weights into a first state, as the section `init` says.

    Returns:
        The state, and where it comes from in words.

    Raises:
        UserError: weights that cannot be read or do not fit.
    """
    from segjax import weights as pretrained  # the tables of names are for runs that start from weights

    old = parallel.gathered(state.variables(False))
    variables, report = pretrained.load(
        weights, jax.device_get(old), layout, model=model, check_settings=check_settings, strict=strict
    )
    wanted = report.preprocess
    if check_inputs and wanted:
        pairs = ((wanted.mean, preprocess.mean), (wanted.std, preprocess.std))
        if any(len(a) != len(b) or not np.allclose(a, b, atol=0.5) for a, b in pairs):
            raise UserError(
                f"init.weights={weights!r} expect other inputs: set preprocess.mean={wanted.mean} and "
                f"preprocess.std={wanted.std}, or init.check_inputs=False if yours are right."
            )

    def place(new, old):
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: np.asarray(new)[index])

    def put(old):
        return jax.tree.map(place, variables, old)

    placed = put(state.variables(False))
    ema = put(state.ema) if state.ema else state.ema
    return state.replace(params=placed["params"], batch_stats=placed["batch_stats"], ema=ema), f"{weights}: {report}"
