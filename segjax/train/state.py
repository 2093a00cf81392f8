"""What a run carries from step to step: arrays only."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from segjax import parallel
from segjax.checks import Key


class Average(NamedTuple):
    """The moving average of weights and statistics: keys of the section `ema`."""

    decay: Annotated[float, Key("share of the average that is kept each step; 0: no average", "[0, 1)")] = 0.0
    evaluate: Annotated[bool, Key("score and predict with the average, where there is one")] = True


@struct.dataclass
class State:
    """Everything that a step changes."""

    step: Any  # int32, number of finished steps
    params: Any  # parameters of the model, float32
    batch_stats: Any  # running statistics of its norms, float32
    opt_state: Any
    ema: Any  # moving averages {"params", "batch_stats"}; {} where there are none

    def variables(self, averaged: bool) -> dict[str, Any]:
        """What `model.apply` takes, {"params", "batch_stats"}: the moving averages, if wanted and there."""
        if averaged and self.ema:
            return dict(self.ema)
        return {"params": self.params, "batch_stats": self.batch_stats}


def abstract(model: nn.Module, tx: optax.GradientTransformation, shape: tuple[int, ...], averaged: bool) -> State:
    """Shapes and dtypes of a run's first state, which costs no memory; see `init`."""
    return jax.eval_shape(lambda: _init(model, tx, (1, *shape[1:]), averaged, 0))


def init(
    model: nn.Module,
    tx: optax.GradientTransformation,
    shape: tuple[int, ...],
    averaged: bool,
    seed: int,
    mesh: Any,
    fsdp: bool = False,
) -> State:
    """Makes the first state, in place on every device, for normalised images of shape [b, h, w, c].

    `averaged` says whether moving averages are kept; `fsdp` is that of `segjax.parallel.state_sharding`.
    """
    placed = parallel.state_sharding(mesh, abstract(model, tx, shape, averaged), fsdp)
    return jax.jit(lambda: _init(model, tx, (1, *shape[1:]), averaged, seed), out_shardings=placed)()


def _init(model, tx, shape, averaged, seed):
    variables = model.init(jax.random.key(seed), jnp.zeros(shape, jnp.float32), train=False)
    params, stats = variables["params"], variables.get("batch_stats", {})
    # The averages start as copies: one array under two names could not be donated.
    ema = jax.tree.map(lambda x: x + jnp.zeros_like(x), {"params": params, "batch_stats": stats}) if averaged else {}
    return State(jnp.zeros((), jnp.int32), params, stats, tx.init(params), ema)
