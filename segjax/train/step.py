"""The steps of training, evaluation and prediction: pure functions, which `segjax.train.compilation` compiles."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from segjax import augment
from segjax.checks import UserError
from segjax.objectives import Maps, Objective
from segjax.parallel import whole
from segjax.spec import Geometry, Preprocess, Segments
from segjax.tasks import Task
from segjax.train.groups import merge, split
from segjax.train.state import State

Scalars = dict[str, jax.Array]

# Folded into keys, to tell uses apart: what a model draws from its stream "random", and what a loss draws.
RANDOM, LOSS = 2**31 - 1, 2**31 - 2


def normalise(image: Shaped[Array, "b h w c"], preprocess: Preprocess) -> Float[Array, "b h w c"]:
    """Turns pixels into the network's input.

    Args:
        image: as stored [b, h, w, c].
        preprocess: window, mean and standard deviation of each channel.

    Returns:
        (image - mean) / std, of pixels clipped to the window where there is one, float32 [b, h, w, c].

    Example:
        >>> normalise(jnp.full((1, 1, 1, 1), 130, jnp.uint8), Preprocess(mean=(120.0,), std=(10.0,))).item()
        1.0
    """
    mean, std = (jnp.array(v, jnp.float32).reshape(1, 1, 1, -1) for v in (preprocess.mean, preprocess.std))
    image = image.astype(jnp.float32)
    return ((jnp.clip(image, *preprocess.window) if preprocess.window else image) - mean) / std


def coloured(
    image: Shaped[Array, "b h w c"],
    position: Int[Array, "b"],
    seed: int,
    amplitudes: dict[str, float],
    window: tuple[float, float] | None = None,
) -> Float[Array, "b h w c"]:
    """Changes the colours of a training batch, each image by what is drawn from (seed, position); in stored units.

    Args:
        image: as stored.
        position: global sample numbers.
        seed: of the run.
        amplitudes: keyword arguments of `augment.colour`.
        window: values that are 0 and 1 for the changes, to which pixels are clipped; None is 0..255 for uint8.

    Raises:
        UserError: images of another dtype than uint8 without a window.
    """
    used = [name for name, amplitude in amplitudes.items() if amplitude]
    if not used:
        return image.astype(jnp.float32)
    if window is None and image.dtype != jnp.uint8:
        raise UserError(
            f"augment.{used[0]} changes colours within preprocess.window, which {image.dtype} images need: set it to "
            "the (low, high) values of black and white."
        )
    keys = sample_keys(seed, position)
    if window is None:
        return augment.colour(keys, image.astype(jnp.float32) / 255, **amplitudes) * 255
    low, high = window
    share = jnp.clip((image.astype(jnp.float32) - low) / (high - low), 0.0, 1.0)
    return augment.colour(keys, share, **amplitudes) * (high - low) + low


def sample_keys(seed: int, position: Int[Array, "b"], *purpose: int) -> jax.Array:
    """A random key a sample [b]: a function of (seed, purpose, position), whatever device has the sample."""
    # Threefry whatever the default: other generators' draws under vmap depend on the rest of the batch.
    key = jax.random.key(seed, impl="threefry2x32")
    for number in purpose:
        key = jax.random.fold_in(key, number)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(position)


def make_train_step(
    model: nn.Module,
    objective: Objective,
    tx: optax.GradientTransformation,
    preprocess: Preprocess,
    amplitudes: dict[str, float],
    seed: int,
    total_steps: int,
    ema_decay: float = 0.0,
    axis_name: str | None = None,
    frozen: Sequence[str] = (),
) -> Callable[[State, dict[str, jax.Array]], tuple[State, Scalars]]:
    """Makes the train step, a pure function that is not compiled yet.

    What is random is a function of (seed, global position of the sample), for colours and losses, or of (seed, step),
    for what models draw: the stream "random" is the same on all devices, "dropout" differs under pmap.

    Args:
        model: maps normalised images to outputs; one whose `__call__` takes `progress` is given it.
        objective: the loss.
        tx: the optimiser.
        preprocess: how pixels become inputs.
        amplitudes: keyword arguments of `augment.colour`.
        seed: of all draws.
        total_steps: length of the run; progress is 0 in its first step and 1 in its last.
        ema_decay: share of the moving average that is kept each step, at most (1 + t) / (10 + t); 0 is off.
        axis_name: pmap axis; None where arrays are global (jit).
        frozen: paths of the parts that do not learn: no gradient of theirs is computed.

    Returns:
        (state, batch) -> (state, scalars), scalars float32: loss, its terms, gradient_norm.
    """
    model = model.clone(axis_name=axis_name, **({"frozen": tuple(frozen)} if frozen else {}))
    takes_progress = "progress" in inspect.signature(type(model).__call__).parameters
    stream = jax.random.key(seed)

    def train_step(state: State, batch: dict[str, jax.Array]) -> tuple[State, Scalars]:
        image = normalise(coloured(batch["image"], batch["position"], seed, amplitudes, preprocess.window), preprocess)
        dropout = jax.random.fold_in(stream, state.step)
        rngs = {"dropout": dropout, "random": jax.random.fold_in(dropout, RANDOM)}
        if axis_name:
            rngs["dropout"] = jax.random.fold_in(dropout, jax.lax.axis_index(axis_name))
        progress = jnp.minimum(1.0, state.step.astype(jnp.float32) / max(total_steps - 1, 1))
        more = {"progress": progress} if takes_progress else {}
        keys = sample_keys(seed, batch["position"], LOSS)

        trainable, held = split(state.params, frozen) if frozen else (state.params, None)

        def all_of(trainable):
            return merge(trainable, held) if frozen else trainable

        def loss_fn(trainable):
            variables = {"params": whole(all_of(trainable)), "batch_stats": state.batch_stats}
            outputs, updated = model.apply(variables, image, train=True, mutable=["batch_stats"], rngs=rngs, **more)
            loss, terms = objective.loss(outputs, batch, keys, progress, axis_name)
            return loss, (terms, updated.get("batch_stats", {}))

        (loss, (terms, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        scalars = {"loss": loss, **terms}
        if axis_name:
            grads, scalars = jax.lax.psum((grads, scalars), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, trainable)
        params = all_of(optax.apply_updates(trainable, updates))
        ema = state.ema
        if ema_decay:
            t = state.step.astype(jnp.float32)
            keep = jnp.minimum(ema_decay, (1 + t) / (10 + t))
            ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, ema, 1 - keep)
        scalars["gradient_norm"] = optax.tree.norm(grads)
        return State(state.step + 1, params, batch_stats, opt_state, ema), scalars

    return train_step


def make_maps_step(
    model: nn.Module, objective: Objective, preprocess: Preprocess
) -> Callable[[dict[str, Any], jax.Array, Geometry], Maps]:
    """Makes the function from images to the maps that predictions are made of; it is not compiled yet.

    Returns:
        (variables, images [b, h, w, c] as stored, geometry) -> maps, which may be averaged before they are decided.
    """

    def maps_step(variables, images, geometry):
        outputs = model.apply(whole(variables), normalise(images, preprocess), train=False)
        return objective.maps(outputs, geometry)

    return maps_step


def make_predict_step(
    model: nn.Module, task: Task, preprocess: Preprocess
) -> Callable[[dict[str, Any], jax.Array, Geometry], Segments]:
    """Makes the prediction of images, a pure function that is not compiled yet.

    Returns:
        (variables, images [b, h, w, c] as stored, geometry) -> segments with probabilities.
    """
    maps_step = make_maps_step(model, task.objective, preprocess)
    return lambda variables, images, geometry: task.decide(maps_step(variables, images, geometry), geometry, True)


def make_eval_step(
    model: nn.Module, task: Task, preprocess: Preprocess, axis_name: str | None = None
) -> Callable[[dict[str, Any], dict[str, jax.Array]], tuple[Any, Segments]]:
    """Makes the evaluation step, a pure function that is not compiled yet; `axis_name` as in `make_train_step`.

    Returns:
        (variables, batch) -> what the task measures of every image of the global batch, arrays [b, ...], and this
        device's segments, in the smallest dtypes.
    """
    maps_step = make_maps_step(model, task.objective, preprocess)

    def eval_step(variables, batch):
        height, width = (n - 2 * preprocess.context for n in batch["image"].shape[1:3])
        geometry = Geometry(
            valid_size=batch["content"][:, :2],
            native_size=batch["content"][:, 2:],
            padded_size=(height, width),
            output_size=batch["label"].shape[1:3],
            resized=preprocess.resize is not None,
        )
        measured, segments = task.measure(maps_step(variables, batch["image"], geometry), batch, geometry)
        if segments.label.dtype != bool:
            segments = segments.replace(label=segments.label.astype(task.spec.label_dtype))
        if segments.instance is not None:
            segments = segments.replace(instance=segments.instance.astype(jnp.uint16))
        return (jax.lax.all_gather(measured, axis_name, tiled=True) if axis_name else measured), segments

    return eval_step
