"""The contracts between networks, objectives and tasks, by objectives and networks of a test's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from parts import make_task

from segjax import infer, losses, models, objectives, parallel, tasks
from segjax.checks import UserError
from segjax.config import default_config
from segjax.data.sources.shapes import SPEC, shapes
from segjax.models.network import Network
from segjax.nn.layers import Conv, ConvNorm
from segjax.objectives import Decoded, Maps, Objective
from segjax.objectives.averaging import mean, mirror, resize
from segjax.objectives.maps import to_output, to_size
from segjax.report import instances
from segjax.spec import DatasetSpec, Geometry, Preprocess
from segjax.tasks import instance, panoptic
from segjax.train import compilation, optimizer, state, step
from segjax.train.loop import train_and_evaluate
from segjax.train.restore import evaluate_workdir

pytestmark = pytest.mark.core

RGB = Preprocess()
STRIPE = 16  # columns of one object of the toy objective


class Distances(Network):
    """Classes, and how deep a pixel lies in its object."""

    outputs = ("logits", "distance")

    @nn.compact
    def __call__(self, images, train):
        x = ConvNorm(8, self.layer_config, 3, 2, name="conv")(images, train)
        x = Conv(self.num_logits + 1, 1, use_bias=True, name="head")(x)
        return {"logits": x[..., :-1], "distance": x[..., -1]}


def toy_loss(outputs, batch, key, progress, axis_name):
    label, valid = losses.split_ignore(batch["label"], 255)
    scalars = resize(toy_maps(outputs, None), batch["label"].shape[1:3]).scalars
    error = jnp.abs(scalars["distance"] - (batch["instance"] > 0).astype(jnp.float32))
    terms = {
        "cross_entropy": losses.weighted_mean(losses.cross_entropy(scalars["logits"], label), valid, axis_name),
        "distance": losses.weighted_mean(error, valid, axis_name),
    }
    return sum(terms.values()), terms


def toy_maps(outputs, geometry):
    return Maps({"logits": outputs["logits"], "distance": outputs["distance"]})


def toy_decode(maps, geometry):
    """One object a stripe of columns, where the distance is above 0."""
    scalars = to_output(maps, geometry).scalars
    columns = jnp.arange(geometry.output_size[1], dtype=jnp.int32)[None, None] // STRIPE
    numbers = jnp.where(scalars["distance"] > 0, columns + 1, 0)
    count = -(-geometry.output_size[1] // STRIPE)
    return Decoded(scalars["logits"], numbers, jnp.ones((len(numbers), count), jnp.float32))


TOY = Objective(
    outputs=frozenset({"logits", "distance"}), loss=toy_loss, maps=toy_maps, decode=toy_decode, needs_instances=True,
    max_objects=50,
)  # fmt: skip


def whole(shape):
    """Images that fill their label."""
    sizes = jnp.broadcast_to(jnp.array(shape[1:3], jnp.int32), (shape[0], 2))
    return Geometry(sizes, sizes, tuple(shape[1:3]), tuple(shape[1:3]), False)


def test_an_objective_of_ones_own_trains_evaluates_and_predicts(tmp_path):
    config = default_config(source="shapes", task="panoptic", model="panoptic_deeplab")
    config.source.count, config.source.size, config.data.crop = 8, (32, 48), (32, 48)
    config.run.total, config.loading.loader, config.log.tensorboard = 2, "threads", False
    config.data.batch_size = config.eval.batch_size = 4
    config.task.stuff_area = 0
    own = {"model": Distances(num_logits=8), "objective": TOY}
    path = str(tmp_path / "run")
    summary = train_and_evaluate(config, path, **own)
    assert set(summary) > {"PQ", "SQ", "RQ", "PQ_things", "mIoU"}
    again = evaluate_workdir(path, **own)
    assert again["PQ"] == summary["PQ"] and again["iou_per_class"] == summary["iou_per_class"]
    found = infer.load(path, **own)(shapes("test", count=2, size=(32, 48)).read(1)["image"])
    assert found.label.shape == found.instance.shape == (32, 48) and found.score.shape == (3,)
    assert found.probability.shape == (32, 48, len(SPEC.classes)) and found.masks is found.classes is None
    things = np.isin(found.label, SPEC.things)
    assert (found.instance[things] == (np.arange(48) // STRIPE + 1 + np.zeros((32, 1), int))[things]).all()
    with pytest.raises(UserError, match=r"distance, logits, .*centre, logits, offset"):
        train_and_evaluate(config, str(tmp_path / "other"), model=own["model"])


def test_what_learns_no_objects_does_not_fit_a_task_of_objects(tmp_path):
    """It is refused before the first step, though a U-Net gives all that the objective learns."""
    config = default_config(source="shapes", task="panoptic", model="unet", objective="pixels")
    with pytest.raises(UserError, match=r"objective.name='centres'"):
        train_and_evaluate(config, str(tmp_path))


def test_objects_need_a_logit_a_class():
    spec = DatasetSpec(("ground", "cell"), things=(1,)).in_mode("binary")
    for make in (objectives.create, lambda name, spec: tasks.create("panoptic", spec, TOY)):
        with pytest.raises(UserError, match=r"task.mode='multiclass'"):
            make("centres", spec)


def test_a_network_of_ones_own_is_a_network(tmp_path):
    with pytest.raises(UserError, match=r"segjax.models.network.Network.*Dense"):
        train_and_evaluate(default_config(source="shapes"), str(tmp_path), model=nn.Dense(8))


def test_mode_of_task_and_labels_agree():
    spec = DatasetSpec(("a", "b"))
    with pytest.raises(UserError, match=r"task.mode='binary'.*multiclass"):
        tasks.create("semantic", spec, objectives.create("pixels", spec), mode="binary")


def test_maps_of_the_right_size_are_left_alone():
    maps = jnp.ones((1, 2, 3, 1), jnp.bfloat16)
    assert to_size(maps, (2, 3)) is maps and to_size(maps, (4, 3)).dtype == maps.dtype
    with pytest.raises(UserError, match="0x3 pixels"):
        to_size(maps[:, :0], (0, 3))


# Draws and progress ---------------------------------------------------------------------------------------------------


class Annealed(Network):
    """Scores that the share of the run scales."""

    @nn.compact
    def __call__(self, images, train, progress=1.0):
        x = Conv(self.num_logits, 1, use_bias=True, name="head")(images)
        noise = jax.random.uniform(self.make_rng("random")) if train else 0.0
        return {"logits": x * progress + noise}


def one_step(model, objective, mode, devices, at=0, total=10):
    """Scalars of a train step on eight images, from the state after `at` steps."""
    mesh = parallel.make_mesh(transform=mode, devices=devices)
    tx, _ = optimizer.make_optimizer(total, name="sgd", learning_rate=0.1)
    start = state.init_state(model, tx, (8, 16, 16, 3), False, 0, mesh)
    start = start.replace(step=jax.device_put(jnp.int32(at), parallel.replicated_sharding(mesh)))
    random = np.random.default_rng(0)
    index = np.arange(8, dtype=np.int32)
    batch = {
        "image": random.integers(0, 256, (8, 16, 16, 3), np.uint8),
        "label": random.integers(0, 3, (8, 16, 16)).astype(np.uint8),
        "index": index,
        "position": index + 8 * at,
    }
    compiled = compilation.compile_train(
        lambda axis: step.make_train_step(model, objective, tx, RGB, {}, 3, total, 0.0, axis), mesh, mode
    )
    return jax.device_get(compiled(start, parallel.put_batch(mesh, batch, mode))[1])


def drawing(outputs, batch, key, progress, axis_name):
    """Half of the pixels of each image, drawn by its own key."""
    label, valid = losses.split_ignore(batch["label"], 255)
    values = losses.cross_entropy(outputs["logits"], label)
    chosen = jax.vmap(lambda k: jax.random.bernoulli(k, shape=label.shape[1:]))(key)
    loss = losses.weighted_mean(values, valid & chosen, axis_name)
    share = losses.weighted_mean(chosen.astype(jnp.float32), valid, axis_name)
    one = losses.weighted_mean(jnp.ones(1), jnp.ones(1), axis_name)  # this device's share of 1
    return loss, {"drawn": share, "progress": progress * one}


@pytest.mark.slow
def test_a_loss_that_draws_is_the_same_on_any_devices():
    objective = make_task(DatasetSpec(("a", "b", "c"))).objective._replace(loss=drawing)
    model = models.create("unet", classes=3, widths=(4, 8))
    one, four, mapped = (one_step(model, objective, *on) for on in (("jit", 1), ("jit", 4), ("pmap", 4)))
    assert 0.4 < one["drawn"] < 0.6
    for other in (four, mapped):
        for name in one:
            np.testing.assert_allclose(other[name], one[name], rtol=2e-5, err_msg=name)
    later = one_step(model, objective, "jit", 1, at=1)
    assert later["drawn"] != one["drawn"]


def test_progress_follows_the_step_and_reaches_the_model():
    objective = make_task(DatasetSpec(("a", "b", "c"))).objective._replace(loss=drawing)
    model = Annealed(num_logits=3)
    found = [one_step(model, objective, "jit", 1, at=at) for at in (0, 3, 9, 12)]
    np.testing.assert_allclose([each["progress"] for each in found], [0, 3 / 9, 1, 1], rtol=1e-6)
    # At progress 0 all logits are equal, whatever the kernel.
    np.testing.assert_allclose(found[0]["loss"], np.log(3), rtol=1e-5)
    assert abs(found[2]["loss"] - np.log(3)) > 1e-3


# Maps and decisions ---------------------------------------------------------------------------------------------------


def scene_maps(random, stride=2):
    """Maps of two 32x48 images at a stride, as a network with centres gives them, and their geometry."""
    h, w = 32 // stride, 48 // stride
    maps = Maps(
        {"logits": jnp.asarray(random.normal(size=(2, h, w, 8)), jnp.float32),
         "centre": jnp.asarray(random.random((2, h, w)), jnp.float32)},
        {"offset": jnp.asarray(3 * random.normal(size=(2, h, w, 2)), jnp.float32)},
    )  # fmt: skip
    return maps, whole((2, 32, 48))


def flipped(maps, axis):
    """What an equivariant network says of images that are mirrored along an axis, by plain numpy."""
    sign = np.array([-1.0, 1.0] if axis == 1 else [1.0, -1.0], np.float32)
    return Maps(
        {name: jnp.asarray(np.flip(np.asarray(x), axis)) for name, x in maps.scalars.items()},
        {name: jnp.asarray(np.flip(np.asarray(x), axis) * sign) for name, x in maps.vectors.items()},
    )


@pytest.mark.slow
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("name", ["semantic", "panoptic", "instance"])
def test_decisions_on_averages_with_mirrored_maps(name, axis):
    """An equivariant network loses nothing by an average over flips, offsets included."""
    random = np.random.default_rng(0)
    maps, geometry = scene_maps(random)
    settings = {} if name == "semantic" else {"stuff_area": 4, "nms_kernel": 3, "top_k": 9}
    task = make_task(SPEC, name, **settings)
    if name == "semantic":
        maps = Maps({"logits": maps.scalars["logits"]})
    alone = task.decide(maps, geometry, probabilities=True)
    both = task.decide(mean([maps, mirror(flipped(maps, axis), axis)]), geometry, probabilities=True)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(both), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)
    if name != "semantic":
        assert len(np.unique(alone.instance)) > 4
        wrong = Maps({n: jnp.flip(x, axis) for n, x in flipped(maps, axis).scalars.items()},
                     {n: jnp.flip(x, axis) for n, x in flipped(maps, axis).vectors.items()})  # fmt: skip
        assert (task.decide(mean([maps, wrong]), geometry).instance != alone.instance).any()


@pytest.mark.slow
def test_vectors_are_scaled_with_the_maps():
    """A map twice as large has offsets twice as long: each pixel points at the same place."""
    maps, _ = scene_maps(np.random.default_rng(1), stride=1)
    small = Maps(maps.scalars, {"offset": jnp.ones((2, 32, 48, 2), jnp.float32)})
    sizes = jnp.array([[32, 48]] * 2, jnp.int32)
    for geometry, wanted in (
        (Geometry(sizes, 2 * sizes, (32, 48), (64, 96), True), (2.0, 2.0)),
        (Geometry(sizes, sizes * jnp.array([[1, 3]], jnp.int32), (32, 48), (32, 144), True), (1.0, 3.0)),
        (Geometry(sizes // 2, sizes, (32, 48), (32, 48), True), (2.0, 2.0)),  # padded by half
        (Geometry(sizes, sizes, (32, 48), (64, 48), False), (2.0, 1.0)),
    ):
        offset = to_output(small, geometry).vectors["offset"]
        assert offset.shape == (2, *geometry.output_size, 2)
        np.testing.assert_allclose(offset, np.broadcast_to(wanted, offset.shape), rtol=1e-6)


def test_maps_of_several_scales_average_to_those_of_one():
    """A field that is linear in the coordinates is the same at any scale, but near the edges that resizing clamps."""

    def at(h, w):
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        offset = np.stack([(0.5 - y) * h, (0.5 - x) * w], -1)
        return Maps(
            {"centre": jnp.asarray(y + x, jnp.float32)[None]}, {"offset": jnp.asarray(offset, jnp.float32)[None]}
        )

    one = at(32, 48)
    both = mean([one, resize(at(16, 24), (32, 48)), resize(at(64, 96), (32, 48))])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(both), strict=True):
        np.testing.assert_allclose(b[:, 2:-2, 2:-2], a[:, 2:-2, 2:-2], atol=1e-4)


def test_what_may_not_be_averaged_is_refused_by_name():
    maps = Maps({"classes": jnp.zeros((1, 2, 2, 3))}, fixed={"query_masks": jnp.zeros((1, 5, 2, 2))})
    for average in (lambda: mean([maps, maps]), lambda: mirror(maps, 2), lambda: resize(maps, (4, 4))):
        with pytest.raises(UserError, match="query_masks"):
            average()


# Objects that overlap -------------------------------------------------------------------------------------------------


def overlapping():
    """Two objects of class 1 that share columns 4 and 5 of a 6x10 image, and one place that is not taken."""
    masks = np.zeros((1, 3, 6, 10), bool)
    masks[0, 0, 1:5, 1:6] = True
    masks[0, 1, 1:5, 4:9] = True
    return masks


def query_objective():
    def decode(maps, geometry):
        return Decoded(
            jnp.zeros((1, 6, 10, 2)).at[..., 0].set(1.0), masks=jnp.asarray(overlapping()),
            classes=jnp.array([[1, 1, -1]], jnp.int32), score=jnp.array([[0.6, 0.9, 0.0]], jnp.float32),
        )  # fmt: skip

    return Objective(frozenset({"masks"}), None, None, decode, needs_instances=True)


def test_overlapping_masks_reach_scores_and_pictures():
    spec = DatasetSpec(("ground", "cell"), things=(1,))
    masks, geometry = overlapping()[0], whole((1, 6, 10))
    task = instance.create(spec, query_objective())
    segments = jax.jit(functools.partial(task.decide, Maps({})))(geometry)
    np.testing.assert_array_equal(segments.masks[0], masks)
    np.testing.assert_allclose(segments.score, [[0.6, 0.9, 0.0]])
    # The ground truth has both objects; of their common pixels the second has all.
    number = np.where(masks[1], 2, masks[0].astype(int)).astype(np.uint16)
    batch = {"label": (number > 0).astype(np.uint8)[None], "instance": number[None], "index": np.zeros(1, np.int32)}
    batch = {key: jnp.asarray(value) for key, value in batch.items()}
    measured, _ = task.measure(Maps({}), batch, geometry)
    summary = task.summary(task.update(task.new_metric(), jax.device_get(measured)))
    # 12 of 20 pixels of the first mask are its own: IoU 12 / 20, which counts up to the threshold 0.6.
    np.testing.assert_allclose([summary["AP50"], summary["AP75"]], [1.0, 0.5], atol=0.01)
    # A mask of stuff is no object: it does not count against the score.
    measured = jax.tree.map(np.array, measured) | {"classes": np.array([[1, 1, 0]], np.int32)}
    measured["masks"][0, 2, 5, 9] = True
    again = task.summary(task.update(task.new_metric(), measured))
    assert again["bowl_score"] == summary["bowl_score"] and again["AP"] == summary["AP"]
    np.testing.assert_array_equal(
        task.decide(Maps({}), geometry, probabilities=True).probability[0, 2, 5], jax.nn.softmax(jnp.array([1.0, 0.0]))
    )
    flat = panoptic.create(spec, query_objective(), stuff_area=0).decide(Maps({}), geometry)
    assert flat.masks is None
    np.testing.assert_array_equal(flat.instance[0], number)
    np.testing.assert_array_equal(flat.label[0], number > 0)
    image = np.zeros((6, 10, 3), np.uint8)
    found = jax.device_get(segments).crop(0, (6, 10))
    picture = instances.overlay_masks(image, found.masks, found.classes, spec, found.score)
    # Pixels of no object, away from outlines and names, are the image's own.
    assert picture.shape == (6, 10, 3) and (picture[masks.any(0)] > 0).any(-1).mean() > 0.9
