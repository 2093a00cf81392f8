"""The train and evaluation steps: one pure function each, compiled by jit over a mesh or by pmap."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from segjax import augment, parallel
from segjax.space import DATA, whole
from segjax.spec import Preprocess
from segjax.tasks import Task
from segjax.train.state import State

Scalars = dict[str, jax.Array]


def normalise(image: UInt8[Array, "b h w c"] | Float[Array, "b h w c"], preprocess: Preprocess) -> jax.Array:
    """Turns pixels into the network's input.

    Args:
        image: grey levels 0..255, uint8 or float32 [b, h, w, c].
        preprocess: mean and standard deviation of each channel.

    Returns:
        (image - mean) / std, float32 [b, h, w, c].

    Example:
        >>> normalise(jnp.full((1, 1, 1, 1), 130, jnp.uint8), Preprocess(mean=(120.0,), std=(10.0,))).item()
        1.0
    """
    mean, std = (jnp.array(v, jnp.float32).reshape(1, 1, 1, -1) for v in (preprocess.mean, preprocess.std))
    return (image.astype(jnp.float32) - mean) / std


def coloured(
    image: UInt8[Array, "b h w c"], position: Int[Array, "b"], seed: int, amplitudes: dict[str, float]
) -> Float[Array, "b h w c"]:
    """Draws and applies the changes of colour of a training batch.

    Args:
        image: grey levels 0..255, uint8 [b, h, w, c].
        position: global sample numbers [b]; an image's changes are a function of (seed, position).
        seed: of the run.
        amplitudes: keyword arguments of `augment.colour`.

    Returns:
        Grey levels 0..255, float32 [b, h, w, c].
    """
    image = image.astype(jnp.float32)
    if not any(amplitudes.values()):
        return image
    # Threefry whatever the default: other generators' draws under vmap depend on the rest of the batch.
    key = jax.random.key(seed, impl="threefry2x32")
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(position)
    return augment.colour(keys, image / 255, **amplitudes) * 255


def make_train_step(
    model: nn.Module,
    task: Task,
    tx: optax.GradientTransformation,
    preprocess: Preprocess,
    amplitudes: dict[str, float],
    seed: int,
    ema_decay: float = 0.0,
    axis_name: str | None = None,
) -> Callable[[State, dict[str, jax.Array]], tuple[State, Scalars]]:
    """Makes the train step, a pure function that is not compiled yet.

    Args:
        model: maps normalised images to outputs.
        task: the loss.
        tx: the optimiser.
        preprocess: how pixels become inputs.
        amplitudes: keyword arguments of `augment.colour`.
        seed: colours are drawn from (seed, position of the sample), dropout from (seed, step) and, under pmap,
            the device.
        ema_decay: share of the moving average that is kept each step, at most (1 + t) / (10 + t); 0 is off.
        axis_name: pmap axis; None where arrays are global (jit).

    Returns:
        (state, batch) -> (state, scalars), scalars float32: loss, its terms, gradient_norm.
    """
    model = model.clone(axis_name=axis_name)
    dropout_key = jax.random.key(seed)

    def train_step(state: State, batch: dict[str, jax.Array]) -> tuple[State, Scalars]:
        image = normalise(coloured(batch["image"], batch["position"], seed, amplitudes), preprocess)
        dropout = jax.random.fold_in(dropout_key, state.step)
        if axis_name:
            dropout = jax.random.fold_in(dropout, jax.lax.axis_index(axis_name))

        def loss_fn(params):
            outputs, updated = model.apply(
                {"params": whole(params), "batch_stats": state.batch_stats},
                image,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout},
            )
            loss, terms = task.loss(outputs, batch, axis_name)
            return loss, (terms, updated.get("batch_stats", {}))

        (loss, (terms, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        scalars = {"loss": loss, **terms}
        if axis_name:
            grads, scalars = jax.lax.psum((grads, scalars), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            t = state.step.astype(jnp.float32)
            keep = jnp.minimum(ema_decay, (1 + t) / (10 + t))
            ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, ema, 1 - keep)
        scalars["gradient_norm"] = optax.tree.norm(grads)
        return State(state.step + 1, params, batch_stats, opt_state, ema), scalars

    return train_step


def make_eval_step(
    model: nn.Module, task: Task, preprocess: Preprocess, axis_name: str | None = None
) -> Callable[[dict[str, Any], dict[str, jax.Array]], Any]:
    """Makes the evaluation step, a pure function that is not compiled yet.

    Args:
        model: maps normalised images to outputs.
        task: the measure.
        preprocess: how pixels become inputs.
        axis_name: pmap axis; None where arrays are global (jit).

    Returns:
        (variables, batch) -> what the task measures of every image of the global batch, arrays [b, ...].
    """

    def eval_step(variables, batch):
        outputs = model.apply(whole(variables), normalise(batch["image"], preprocess), train=False)
        height, width = (n - 2 * preprocess.context for n in batch["image"].shape[1:3])
        measured = task.measure(outputs, batch, (height, width), preprocess.resize is None)
        return jax.lax.all_gather(measured, axis_name, tiled=True) if axis_name else measured

    return eval_step


def compile_predict(
    model: nn.Module, task: Task, preprocess: Preprocess, mesh: Mesh | None = None
) -> Callable[..., dict[str, jax.Array]]:
    """Compiles the prediction of images, once for each size.

    Args:
        model: maps normalised images to outputs.
        task: turns outputs into predictions.
        preprocess: how pixels become inputs.
        mesh: the devices that images are divided over; None for one device.

    Returns:
        (variables, image uint8 [b, h, w, c], content int32 [b, 4], canvas, size) -> maps of `size` and tables; see
        `Task.predict`.
    """

    def predict(variables, image, content, canvas, size):
        outputs = model.apply(whole(variables), normalise(image, preprocess), train=False)
        return task.predict(outputs, content, canvas, size, preprocess.resize is None)

    def on_mesh(variables, image, content, canvas, size):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            batch = parallel.divided(mesh, {"image": image, "content": content})
            return predict(variables, **batch, canvas=canvas, size=size)

    if mesh is None:
        return jax.jit(predict, static_argnums=(3, 4))
    # Whole images go in, for their rows need not come out even, and whole maps come out.
    return jax.jit(
        on_mesh,
        static_argnums=(3, 4),
        in_shardings=(None, parallel.batched(mesh), parallel.batched(mesh)),
        out_shardings=parallel.replicated(mesh),
    )


def compile_step(make: Callable, mesh: Mesh, mode: parallel.Mode, donate: bool, placed: Any = None) -> Callable:
    """Compiles a step for the devices of a mesh.

    Args:
        make: axis_name -> un-compiled step of (state, batch divided over the devices), whose results are the same on
            every device.
        mesh: the devices.
        mode: "jit" with explicit shardings, or "pmap".
        donate: the first result is the next state, and gets the memory of the last one.
        placed: where these lie, see `parallel.state_sharding`; None for whole on every device.

    Returns:
        The compiled step; batches come from `parallel.put_batch` with the same mode.
    """
    donated = (0,) if donate else ()
    if mode == "pmap":
        return jax.pmap(
            make(DATA),
            axis_name=DATA,
            in_axes=(None, 0),
            out_axes=None,
            donate_argnums=donated,
            devices=list(mesh.devices.flat) if jax.process_count() == 1 else None,
        )
    everywhere, step = parallel.replicated(mesh), make(None)
    placed = everywhere if placed is None else placed

    @functools.wraps(step)
    def on_mesh(state, batch):
        # What XLA cannot divide looks for the mesh while it is traced, see `segjax.space`.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(state, parallel.divided(mesh, batch))

    return jax.jit(
        on_mesh,
        in_shardings=(placed if donate else None, None),
        out_shardings=(placed, everywhere) if donate else everywhere,
        donate_argnums=donated,
    )
