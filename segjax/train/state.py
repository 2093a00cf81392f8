"""The train state: the arrays that a run carries from step to step."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from segjax import parallel
from segjax.checks import Key


class Ema(NamedTuple):
    """The section `ema`: the moving average of parameters and batch statistics."""

    decay: Annotated[float, Key("fraction of the average kept at each step; 0: no average", "[0, 1)")] = 0.0
    evaluate: Annotated[bool, Key("evaluate and predict with the average, if there is one")] = True


@struct.dataclass
class TrainState:
    """Everything that a train step changes."""

    step: Any  # int32, number of finished steps
    params: Any  # parameters of the model, float32
    batch_stats: Any  # running statistics of its batch norms, float32
    opt_state: Any
    ema: Any  # moving averages {"params", "batch_stats"}, or {}

    def variables(self, averaged: bool) -> dict[str, Any]:
        """Returns {"params", "batch_stats"} for `model.apply`; with `averaged`, the moving averages if kept."""
        if averaged and self.ema:
            return dict(self.ema)
        return {"params": self.params, "batch_stats": self.batch_stats}


def abstract_state(
    model: nn.Module, tx: optax.GradientTransformation, shape: tuple[int, ...], averaged: bool
) -> TrainState:
    """Returns the shapes and dtypes of the initial state, without allocating memory; see `init_state`."""
    return jax.eval_shape(lambda: _init(model, tx, (1, *shape[1:]), averaged, 0))


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    shape: tuple[int, ...],
    averaged: bool,
    seed: int,
    mesh: Any,
    fsdp: bool = False,
) -> TrainState:
    """Makes the initial state directly on the devices, for normalised images of shape [b, h, w, c].

    `averaged` tells whether moving averages are kept; see `segjax.parallel.state_shardings` for `fsdp`.
    """
    placed = parallel.state_shardings(mesh, abstract_state(model, tx, shape, averaged), fsdp)
    return jax.jit(lambda: _init(model, tx, (1, *shape[1:]), averaged, seed), out_shardings=placed)()


def _init(model, tx, shape, averaged, seed):
    variables = model.init(jax.random.key(seed), jnp.zeros(shape, jnp.float32), train=False)
    params, stats = variables["params"], variables.get("batch_stats", {})
    # The averages start as copies, because one buffer cannot be donated twice.
    ema = jax.tree.map(lambda x: x + jnp.zeros_like(x), {"params": params, "batch_stats": stats}) if averaged else {}
    return TrainState(jnp.zeros((), jnp.int32), params, stats, tx.init(params), ema)
