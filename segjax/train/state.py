"""What a run carries from step to step: arrays only."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from segjax import parallel
from segjax.checks import Key, UserError
from segjax.spec import Preprocess


class Average(NamedTuple):
    """The moving average of weights and statistics: keys of the section `ema`."""

    decay: Annotated[float, Key("share of the average that is kept each step; 0: no average", "[0, 1)")] = 0.0
    evaluate: Annotated[bool, Key("score and predict with the average, where there is one")] = True


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
    model: nn.Module,
    tx: optax.GradientTransformation,
    shape: tuple[int, ...],
    averaged: bool,
    seed: int,
    mesh: Any,
    fsdp: bool = False,
) -> State:
    """Makes the first state, in place on every device.

    Args:
        model: the model.
        tx: the optimiser.
        shape: shape of a batch of normalised images [b, h, w, c].
        averaged: whether moving averages are kept.
        seed: seed of the parameters.
        mesh: the devices.
        fsdp: see `segjax.parallel.state_sharding`.

    Returns:
        A State whose arrays lie there.
    """
    placed = parallel.state_sharding(mesh, abstract(model, tx, shape, averaged), fsdp)
    return jax.jit(lambda: _init(model, tx, (1, *shape[1:]), averaged, seed), out_shardings=placed)()


def start_from(
    state: State,
    model: nn.Module,
    preprocess: Preprocess,
    *,
    weights: Annotated[
        str | None, Key(".safetensors, .pth or hf://organisation/name to start from; None: from scratch")
    ] = None,
    layout: Annotated[str, Key("whose names the weights have", ("torchvision", "timm", "smp"))] = "torchvision",
    strict: Annotated[bool, Key("a missing or misshapen tensor is an error")] = True,
    check_inputs: Annotated[bool, Key("means and deviations that differ from the weights' are an error")] = True,
    check_settings: Annotated[bool, Key("settings that make the model another function are an error")] = True,
) -> tuple[State, str]:
    """Puts pretrained weights into a first state, as the section `init` says.

    Args:
        state: from `init`.
        model: the model.
        preprocess: how the run's pixels become inputs.

    Returns:
        The state, and where it comes from in words.

    Raises:
        UserError: weights that cannot be read or do not fit.
    """
    if weights is None:
        return state, "from scratch"
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


def _init(model, tx, shape, averaged, seed):
    variables = model.init(jax.random.key(seed), jnp.zeros(shape, jnp.float32), train=False)
    params, stats = variables["params"], variables.get("batch_stats", {})
    # The averages start as copies: one array under two names could not be donated.
    ema = jax.tree.map(lambda x: x + jnp.zeros_like(x), {"params": params, "batch_stats": stats}) if averaged else {}
    return State(jnp.zeros((), jnp.int32), params, stats, tx.init(params), ema)
