"""What a run carries from step to step: arrays only."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from segjax import parallel


@struct.dataclass
class State:
    """Everything that a step changes.

    Attributes:
        step: int32, number of finished steps.
        params: parameters of the model, float32.
        batch_stats: running statistics of its norms, float32.
        opt_state: state of the optimiser.
        ema: moving averages {"params", "batch_stats"}; {} where there are none.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    def variables(self, averaged: bool) -> dict[str, Any]:
        """Variables for `model.apply`.

        Args:
            averaged: the moving averages, where there are any.

        Returns:
            {"params", "batch_stats"}.
        """
        if averaged and self.ema:
            return dict(self.ema)
        return {"params": self.params, "batch_stats": self.batch_stats}


def abstract(model: nn.Module, tx: optax.GradientTransformation, shape: tuple[int, ...], averaged: bool) -> State:
    """Shapes and dtypes of a run's state; costs no memory.

    Args:
        model: the model.
        tx: the optimiser.
        shape: shape of a batch of normalised images [b, h, w, c].
        averaged: whether moving averages are kept.

    Returns:
        A State of ShapeDtypeStructs.
    """
    return jax.eval_shape(lambda: _init(model, tx, (1, *shape[1:]), averaged, 0))


def init(
    model: nn.Module, tx: optax.GradientTransformation, shape: tuple[int, ...], averaged: bool, seed: int, mesh: Any
) -> State:
    """Makes the first state, in place on every device.

    Args:
        model: the model.
        tx: the optimiser.
        shape: shape of a batch of normalised images [b, h, w, c].
        averaged: whether moving averages are kept.
        seed: seed of the parameters.
        mesh: the devices.

    Returns:
        A State whose arrays every device holds.
    """
    make = jax.jit(lambda: _init(model, tx, (1, *shape[1:]), averaged, seed), out_shardings=parallel.replicated(mesh))
    return make()


def _init(model, tx, shape, averaged, seed):
    variables = model.init(jax.random.key(seed), jnp.zeros(shape, jnp.float32), train=False)
    params, stats = variables["params"], variables.get("batch_stats", {})
    # The averages start as copies: one array under two names could not be donated.
    ema = jax.tree.map(lambda x: x + jnp.zeros_like(x), {"params": params, "batch_stats": stats}) if averaged else {}
    return State(jnp.zeros((), jnp.int32), params, stats, tx.init(params), ema)
