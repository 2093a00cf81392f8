"""The train, evaluation and prediction steps: pure functions that `segjax.train.compilation` compiles."""

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
from segjax.parallel import replicate_params
from segjax.spec import Geometry, Preprocess, Segments
from segjax.tasks import Task
from segjax.train.accumulation import Accumulation, check_loss
from segjax.train.groups import join_frozen, split_frozen
from segjax.train.state import TrainState

Scalars = dict[str, jax.Array]

# Folded into keys to make them independent: one for the model's stream "random", one for the loss.
RANDOM, LOSS = 2**31 - 1, 2**31 - 2


def normalise(image: Shaped[Array, "b h w c"], preprocess: Preprocess) -> Float[Array, "b h w c"]:
    """Normalises pixels to network input.

    Args:
        image: as stored [b, h, w, c].
        preprocess: window, and mean and standard deviation of each channel.

    Returns:
        (image - mean) / std, float32 [b, h, w, c]; pixels are first clipped to the window, if there is one.

    Example:
        >>> normalise(jnp.full((1, 1, 1, 1), 130, jnp.uint8), Preprocess(mean=(120.0,), std=(10.0,))).item()
        1.0
    """
    mean, std = (jnp.array(v, jnp.float32).reshape(1, 1, 1, -1) for v in (preprocess.mean, preprocess.std))
    image = image.astype(jnp.float32)
    return ((jnp.clip(image, *preprocess.window) if preprocess.window else image) - mean) / std


def augment_colour(
    image: Shaped[Array, "b h w c"],
    position: Int[Array, "b"],
    seed: int,
    amplitudes: dict[str, float],
    window: tuple[float, float] | None = None,
) -> Float[Array, "b h w c"]:
    """Changes the colours of a training batch in stored units; each image's draws depend only on (seed, position).

    Args:
        image: as stored.
        position: global sample numbers.
        seed: seed of the run.
        amplitudes: keyword arguments of `augment.colour`.
        window: the (low, high) values that map to 0 and 1; pixels are clipped to them. None is 0..255 for uint8.

    Raises:
        UserError: the images are not uint8 and there is no window.
    """
    used = [name for name, amplitude in amplitudes.items() if amplitude]
    if not used:
        return image.astype(jnp.float32)
    if window is None and image.dtype != jnp.uint8:
        raise UserError(
            f"augment.{used[0]} needs preprocess.window for {image.dtype} images: set it to the (low, high) values of "
            "black and white."
        )
    keys = sample_keys(seed, position)
    if window is None:
        return augment.colour(keys, image.astype(jnp.float32) / 255, **amplitudes) * 255
    low, high = window
    share = jnp.clip((image.astype(jnp.float32) - low) / (high - low), 0.0, 1.0)
    return augment.colour(keys, share, **amplitudes) * (high - low) + low


def sample_keys(seed: int, position: Int[Array, "b"], *purpose: int) -> jax.Array:
    """Makes a random key for each sample [b], a function of (seed, purpose, position) on any device."""
    # Always threefry: under vmap, the draws of other generators depend on the rest of the batch.
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
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Scalars]]:
    """Makes the train step, a pure function that is not compiled yet.

    Random draws for colours and losses are a function of (seed, global position of the sample). Those of the model are
    a function of (seed, step): the stream "random" is the same on all devices; "dropout" differs under pmap.

    Args:
        model: maps normalised images to outputs; receives `progress` if its `__call__` takes it.
        objective: the loss.
        tx: the optimiser.
        preprocess: how pixels become inputs.
        amplitudes: keyword arguments of `augment.colour`.
        seed: seed of all random draws.
        total_steps: length of the run; progress is 0 in the first step and 1 in the last.
        ema_decay: fraction of the moving average kept at each step, at most (1 + t) / (10 + t); 0 turns it off.
        axis_name: pmap axis; None if arrays are global (jit).
        frozen: paths of the frozen modules; their gradients are not computed.

    Returns:
        (state, batch) -> (state, scalars); scalars are float32: loss, its terms, gradient_norm, all of this batch.

    Raises:
        UserError: the optimiser accumulates gradients, and the loss is not a sum of means over pixels or images.
    """
    accumulates = isinstance(tx, Accumulation)
    if accumulates:
        check_loss(objective)
    model = model.clone(axis_name=axis_name, **({"frozen": tuple(frozen)} if frozen else {}))
    takes_progress = "progress" in inspect.signature(type(model).__call__).parameters
    stream = jax.random.key(seed)

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Scalars]:
        image = normalise(
            augment_colour(batch["image"], batch["position"], seed, amplitudes, preprocess.window), preprocess
        )
        dropout = jax.random.fold_in(stream, state.step)
        rngs = {"dropout": dropout, "random": jax.random.fold_in(dropout, RANDOM)}
        if axis_name:
            rngs["dropout"] = jax.random.fold_in(dropout, jax.lax.axis_index(axis_name))
        progress = jnp.minimum(1.0, state.step.astype(jnp.float32) / max(total_steps - 1, 1))
        more = {"progress": progress} if takes_progress else {}
        keys = sample_keys(seed, batch["position"], LOSS)

        trainable, held = split_frozen(state.params, frozen) if frozen else (state.params, None)

        def all_of(trainable):
            return join_frozen(trainable, held) if frozen else trainable

        def apply_model(trainable):
            variables = {"params": replicate_params(all_of(trainable)), "batch_stats": state.batch_stats}
            outputs, updated = model.apply(variables, image, train=True, mutable=["batch_stats"], rngs=rngs, **more)
            return outputs, updated.get("batch_stats", {})

        def loss_fn(trainable):
            outputs, batch_stats = apply_model(trainable)
            loss, terms = objective.loss(outputs, batch, keys, progress, axis_name)
            return loss, (terms, batch_stats)

        def parts_fn(trainable):
            outputs, batch_stats = apply_model(trainable)
            loss, terms, parts = objective.loss.compute(outputs, batch, keys, progress, axis_name)
            values, divisors = zip(*(parts[name] for name in objective.loss.parts), strict=True)
            return values, (loss, terms, batch_stats, {"divisors": jnp.stack(divisors)})

        if accumulates:  # a gradient for each part of the loss
            (loss, terms, batch_stats, extra), grads = gradient_of_each(parts_fn, trainable)
        else:
            (loss, (terms, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
            extra = {}
        scalars = {"loss": loss, **terms}
        if axis_name:
            grads, scalars = jax.lax.psum((grads, scalars), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, trainable, **extra)
        params = all_of(optax.apply_updates(trainable, updates))
        ema = state.ema
        if ema_decay:
            t = state.step.astype(jnp.float32)
            keep = jnp.minimum(ema_decay, (1 + t) / (10 + t))
            ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, ema, 1 - keep)
        total = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *grads) if accumulates else grads
        scalars["gradient_norm"] = optax.tree.norm(total)
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), scalars

    return train_step


def gradient_of_each(function: Callable[[Any], tuple[tuple[jax.Array, ...], Any]], params: Any) -> tuple[Any, tuple]:
    """Differentiates several scalars, with one forward pass and a backward pass for each.

    Args:
        function: params -> (scalars, aux).
        params: where to differentiate.

    Returns:
        aux, and the gradient of each scalar.

    Example:
        >>> gradient_of_each(lambda x: ((x**2, 5 * x), "aux"), jnp.float32(3.0))[1]
        (Array(6., dtype=float32), Array(5., dtype=float32))
    """
    scalars, pull, aux = jax.vjp(function, params, has_aux=True)
    units = [tuple(jnp.full_like(x, i == j) for j, x in enumerate(scalars)) for i in range(len(scalars))]
    return aux, tuple(pull(unit)[0] for unit in units)


def make_maps_step(
    model: nn.Module, objective: Objective, preprocess: Preprocess
) -> Callable[[dict[str, Any], jax.Array, Geometry], Maps]:
    """Makes the function from images to maps, which predictions are decoded from; it is not compiled yet.

    Returns:
        (variables, images [b, h, w, c] as stored, geometry) -> maps, which may be averaged before decoding.
    """

    def maps_step(variables, images, geometry):
        outputs = model.apply(replicate_params(variables), normalise(images, preprocess), train=False)
        return objective.maps(outputs, geometry)

    return maps_step


def make_predict_step(
    model: nn.Module, task: Task, preprocess: Preprocess
) -> Callable[[dict[str, Any], jax.Array, Geometry], Segments]:
    """Makes the prediction step, a pure function that is not compiled yet.

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
        (variables, batch) -> the task's measurements of every image of the global batch, arrays [b, ...], and this
        device's segments, in the smallest dtypes.
    """
    maps_step = make_maps_step(model, task.objective, preprocess)

    def eval_step(variables, batch):
        height, width = (n - 2 * preprocess.context for n in batch["image"].shape[1:3])
        geometry = Geometry(
            valid_size=batch["valid_size"],
            native_size=batch["native_size"],
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
