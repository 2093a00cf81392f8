"""The panoptic and instance tasks: loss, scores, devices, and mistakes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parts import make_task, quick

from segjax import losses, models, parallel
from segjax.checks import UserError
from segjax.config import default_config
from segjax.data.loader import Loading
from segjax.data.pipeline import eval_batches, train_batches
from segjax.data.sources.arrays import arrays
from segjax.data.sources.shapes import SPEC, shapes
from segjax.metrics import instance, panoptic
from segjax.metrics.panoptic import encode_panoptic
from segjax.spec import DatasetSpec, Geometry, Preprocess
from segjax.train import compilation, step
from segjax.train.evaluate import Evaluator
from segjax.train.loop import train_and_evaluate

RGB = Preprocess()
SIZES = [(40, 56), (48, 48), (32, 64), (48, 64), (40, 40)]


def scenes(sizes=SIZES):
    """Scenes of several sizes, with a crowd and pixels without ground truth."""
    read = [shapes("test", count=9, size=size, objects=(3, 7)).read(i) for i, size in enumerate(sizes)]
    for scene in read:
        scene["label"][:6, :9], scene["instance"][:6, :9] = 255, 0
        scene["instance"] = np.unique(scene["instance"], return_inverse=True)[1].reshape(scene["label"].shape)
    last = read[0]["instance"].max()
    read[0]["instance"][read[0]["instance"] == last] = 0
    data = {key: [scene[key].astype(np.uint8) for scene in read] for key in read[0]}
    return arrays("test", data={"test": data}, classes=SPEC.classes, things=SPEC.things)


@pytest.mark.slow
def test_loss_is_the_sum_of_its_parts():
    """Each term by plain numpy, the targets' weights and the hardest pixels included."""
    source = scenes()
    task = make_task(source.spec, name="panoptic", sigma=4.0, ohem_fraction=0.3, small_area=100)
    (batch,) = train_batches(source, RGB, Loading("threads"), 0, max_objects=49, batch_size=4, crop=(32, 40)).batches(
        0, 1
    )
    random = np.random.default_rng(0)
    outputs = {
        "logits": random.normal(size=(4, 32, 40, 8)).astype(np.float32),
        "centre": random.normal(size=(4, 32, 40)).astype(np.float32),
        "offset": random.normal(size=(4, 32, 40, 2)).astype(np.float32),
    }
    total, terms = task.objective.loss(jax.tree.map(jnp.asarray, outputs), jax.tree.map(jnp.asarray, batch))
    label, instances = batch["label"], batch["instance"].astype(int)
    log_p = outputs["logits"] - np.log(np.exp(outputs["logits"]).sum(-1, keepdims=True))
    valid = label != 255
    entropy = -np.take_along_axis(log_p, np.where(valid, label, 0)[..., None].astype(int), -1)[..., 0]
    wanted, heat, offset = [], [], []
    y, x = np.mgrid[:32, :40]
    for i in range(4):
        weights, peak, aims = np.ones((32, 40)), np.zeros((32, 40)), np.zeros((32, 40, 2))
        for number in np.unique(instances[i])[1:]:
            mask = instances[i] == number
            cy, cx = y[mask].mean(), x[mask].mean()
            aims[mask] = np.stack([cy - y[mask], cx - x[mask]], -1)
            dy, dx = y - np.round(cy), x - np.round(cx)
            near = (abs(dy) <= 13) & (abs(dx) <= 13)
            peak = np.maximum(peak, np.where(near, np.exp(-(dy**2 + dx**2) / 32), 0))
            weights[mask] = 3 if mask.sum() < 100 else 1
        values = np.sort((entropy[i] * weights)[valid[i]])[::-1]
        wanted.append(values[: int(np.ceil(0.3 * len(values)))])
        seen = valid[i] & ~(np.isin(label[i], SPEC.things) & (instances[i] == 0))
        heat.append(((outputs["centre"][i] - peak) ** 2)[seen])
        offset.append(abs(outputs["offset"][i] - aims).sum(-1)[instances[i] > 0])
    means = {"cross_entropy": wanted, "centre": heat, "offset": offset}
    for name, parts in means.items():
        np.testing.assert_allclose(terms[name], np.concatenate(parts).mean(), rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(
        total, terms["cross_entropy"] + 200 * terms["centre"] + 0.01 * terms["offset"], rtol=1e-6
    )


@pytest.mark.slow
def test_offsets_are_learnt_at_the_size_of_the_label():
    """Outputs at stride 4 whose offsets are right in their own pixels have no offset loss at the label's size."""
    instances = np.zeros((1, 32, 48), np.uint16)
    instances[0, 8:24, 12:36] = 1
    batch = {"label": jnp.asarray(3 * (instances > 0).astype(np.uint8)), "instance": jnp.asarray(instances)}
    y, x = (np.arange(n) * 4 + 1.5 for n in (8, 12))
    aims = np.stack(np.broadcast_arrays(15.5 - y[:, None], 23.5 - x), -1)[None] / 4
    outputs = {"logits": jnp.zeros((1, 8, 12, 8)), "centre": jnp.zeros((1, 8, 12))}
    task = make_task(SPEC, name="panoptic")
    _, terms = task.objective.loss(outputs | {"offset": jnp.asarray(aims, jnp.float32)}, batch)
    assert terms["offset"] < 1e-5
    _, terms = task.objective.loss(outputs | {"offset": jnp.asarray(4 * aims, jnp.float32)}, batch)
    assert terms["offset"] > 10


def oracle(task, resized):
    """An evaluation step whose network knows the ground truth, at half the resolution of its input."""

    def run(variables, batch):
        label, numbers = batch["label"], batch["instance"]
        valid, native = batch["valid_size"], batch["native_size"]
        h, w = (n // 2 for n in batch["image"].shape[1:3])
        maps = []
        for i in range(len(label)):
            pitch = 2 * native[i] / valid[i]
            maps.append(truthful(label[i], numbers[i], (h, w), pitch, task.spec))
        outputs = {key: jnp.asarray(np.stack([m[key] for m in maps])) for key in maps[0]}
        geometry = Geometry(valid, native, batch["image"].shape[1:3], label.shape[1:3], resized)
        return task.measure(task.objective.maps(outputs, geometry), jax.tree.map(jnp.asarray, batch), geometry)

    return run


def truthful(label, numbers, size, pitch, spec):
    """Maps of `size` of one image whose pixels lie `pitch` pixels of the label apart."""
    h, w = size
    y = np.clip(np.floor((np.arange(h) + 0.5) * pitch[0]).astype(int), 0, label.shape[0] - 1)
    x = np.clip(np.floor((np.arange(w) + 0.5) * pitch[1]).astype(int), 0, label.shape[1] - 1)
    ids, found = numbers[y][:, x], label[y][:, x]
    centre, offset = np.zeros((h, w), np.float32), np.zeros((h, w, 2), np.float32)
    for number in np.unique(ids)[1:]:
        where = np.argwhere(ids == number)
        middle = where.mean(0) + np.array([0.11, 0.07])  # no two pixels are equally near
        distance = np.square(np.indices((h, w)) - middle[:, None, None]).sum(0)
        centre = np.maximum(centre, np.exp(-distance / 2).astype(np.float32))
        offset[tuple(where.T)] = middle - where
    logits = 20.0 * np.eye(len(spec.classes), dtype=np.float32)[np.where(found < len(spec.classes), found, 0)]
    return {"logits": logits, "centre": centre, "offset": offset}


@pytest.mark.parametrize("name", quick("panoptic", of=["panoptic", "instance"]))
@pytest.mark.parametrize("resize", quick(None, of=[None, (64, 64), 2.0]))
def test_a_network_that_knows_the_ground_truth_scores_high(name, resize):
    """Whole images of several sizes, padded and resized: nothing is lost but what half the resolution costs."""
    source = scenes()
    task = make_task(source.spec, name=name, divisor=50, top_k=20, stuff_area=0, nms_kernel=3)
    batches = eval_batches(
        source, dataclasses.replace(RGB, resize=resize), Loading("threads"), instances=True, batch_size=3
    )
    mesh = parallel.make_mesh(devices=1)
    run = oracle(task, resize is not None)
    summary = Evaluator(lambda _, batch: run(_, jax.device_get(batch)), task, batches, mesh, "jit")({})
    best = summary["PQ"] if name == "panoptic" else summary["AP50"]
    assert best > 0.75 and summary["mIoU"] > 0.8
    assert summary["pixels"] == sum((source.read(i)["label"] != 255).sum() for i in range(len(source)))


def test_summaries_are_those_of_the_metrics():
    """What the task counts batch by batch is what the metrics say of the maps; padded rows count for nothing."""
    source = scenes()
    random = np.random.default_rng(1)
    truths, founds, scores = [], [], []
    for i in range(len(source)):
        scene = source.read(i)
        found = np.where(random.random(scene["label"].shape) < 0.15, 3, scene["label"])
        number = np.where(np.isin(found, SPEC.things), np.maximum(scene["instance"], 1), 0)
        truths.append(encode_panoptic(scene["label"], scene["instance"], 50))
        founds.append(encode_panoptic(found, number, 50))
        scores.append(random.random(20).astype(np.float32))
    crowd = [thing * 50 for thing in SPEC.things]
    wanted = panoptic.panoptic_quality(truths, founds, source.spec, divisor=50, ignore=255, crowd=crowd)
    tasks_of = {name: make_task(source.spec, name=name, divisor=50, top_k=20) for name in ("panoptic", "instance")}
    score = {name: task.new_metric() for name, task in tasks_of.items()}
    for i in range(len(truths)):
        padding = np.full(truths[i].shape, 255, np.uint8)
        measured = {
            "index": np.array([i, -1]),
            "label": np.stack([truths[i] // 50, padding]).astype(np.uint8),
            "instance": np.stack([truths[i] % 50] * 2).astype(np.uint16),
            "found_label": np.stack([founds[i] // 50] * 2).astype(np.uint8),
            "found_instance": np.stack([founds[i] % 50] * 2).astype(np.uint16),
            "scores": np.stack([scores[i]] * 2),
            "confusion": np.zeros((2, 8, 8), np.int32),
        }
        for name, task in tasks_of.items():
            score[name] = task.update(score[name], measured)
    summary = tasks_of["panoptic"].summary(score["panoptic"])
    assert [summary[k] for k in ("PQ", "SQ", "RQ")] == [wanted[k] for k in ("pq", "sq", "rq")]
    assert 0 < summary["PQ"] < 1 and summary["PQ_things"] == wanted["things"]["pq"]
    assert summary["pq_per_class"]["disc"] == wanted["per_class"]["disc"]["pq"]
    each = instance.new(source.spec)
    for truth, found, score_of in zip(truths, founds, scores, strict=True):
        pair = (instance.objects_of_maps(truth // 50, truth % 50, source.spec),
                instance.objects_of_maps(found // 50, found % 50, source.spec, scores=score_of))  # fmt: skip
        each = instance.update(each, *pair)
    summary, wanted = tasks_of["instance"].summary(score["instance"]), instance.summary(each)
    assert 0 < summary["AP50"] < 1 and {key: summary[key] for key in wanted} == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["panoptic", "instance"])
def test_jit_and_pmap_score_alike(name):
    """On one device, four, and four under pmap, with a batch that does not divide the set; and so they predict."""
    source = scenes([(32, 48)] * 5)
    task = make_task(source.spec, name=name, divisor=50, top_k=8, threshold=0.0, stuff_area=20)
    model = models.create("panoptic_deeplab", task.spec, backbone="resnet_micro", width=16)
    summaries, predicted = [], []
    for mode, devices in (("jit", 1), ("jit", 4), ("pmap", 4)):
        mesh = parallel.make_mesh(transform=mode, devices=devices)
        batches = eval_batches(source, RGB, Loading("threads"), instances=True, divisor=4, batch_size=4)
        variables = jax.jit(lambda: model.init(jax.random.key(1), jnp.zeros((1, 32, 48, 3)), train=False))()
        variables = jax.device_put(variables, parallel.replicated_sharding(mesh))
        compiled = compilation.compile_eval(lambda axis: step.make_eval_step(model, task, RGB, axis), mesh, mode)
        evaluator = Evaluator(compiled, task, batches, mesh, mode)
        summaries.append(evaluator(variables))
        predicted.append(dict(evaluator.segments(variables, [4, 0, 2])))
    assert summaries[0] == summaries[1] == summaries[2] and summaries[0]["mIoU"] > 0
    predict = step.make_predict_step(model, task, RGB)
    sizes = np.array([[32, 48]], np.int32)
    geometry = Geometry(sizes, sizes, (32, 48), (32, 48), False)
    variables = jax.device_get(variables)
    for i in (0, 2, 4):
        wanted = jax.device_get(predict(variables, jnp.asarray(source.read(i)["image"][None]), geometry))
        for found in predicted:
            assert sorted(found) == [0, 2, 4] and found[i].label.dtype == np.uint8
            np.testing.assert_array_equal(found[i].label, wanted.label[0])
            np.testing.assert_array_equal(found[i].instance, wanted.instance[0])
            np.testing.assert_allclose(found[i].score, wanted.score[0], rtol=1e-4, atol=1e-6)


def test_panoptic_quality_holds_any_label_and_number():
    """Unlabelled pixels as 65535, objects numbered up to 65535: ids of a class are never another's."""
    spec = DatasetSpec(("road", "car", "dog"), things=(1, 2), ignore=65535)
    task = make_task(spec, name="panoptic", divisor=2)
    label = np.array([[[0, 0, 1, 1, 2, 2, 65535, 2]]], np.uint16)
    number = np.array([[[0, 0, 1, 40000, 65535, 65534, 0, 0]]], np.uint16)
    measured = {"label": label, "instance": number, "found_label": label}
    measured["found_instance"] = np.where((label > 0) & (label < 3), np.array([0, 0, 3, 7, 1, 2, 0, 4]), 0)
    more = {"index": np.zeros(1, int), "scores": np.ones((1, 9)), "confusion": np.zeros((1, 3, 3), np.int32)}
    figures = task.summary(task.update(task.new_metric(), measured | more))
    assert figures["SQ"] == 1 and figures["pq_per_class"] == {"road": 1, "car": 1, "dog": 1}


def test_hardest_is_a_sort():
    random = np.random.default_rng(0)
    values = random.exponential(size=(4, 9, 11)).astype(np.float32)
    values[1] = np.round(values[1])  # many equal ones
    values[2] = 0
    valid = random.random(values.shape) < 0.7
    valid[3] = False
    for share in (0.01, 0.2, 0.5, 1.0):
        found = np.asarray(jax.jit(losses.ohem_mask, static_argnums=2)(values, valid, share))
        for i in range(4):
            kept = np.sort(values[i][valid[i]])[::-1]
            least = kept[int(np.ceil(share * len(kept))) - 1] if len(kept) else np.inf
            np.testing.assert_array_equal(found[i], valid[i] & (values[i] >= least))


def test_hardest_pixels_need_no_gather():
    """The threshold of each image is found by sums alone, whatever devices hold."""
    mesh = parallel.make_mesh()
    shape = jax.ShapeDtypeStruct((4, 32, 32), jnp.float32, sharding=parallel.batch_sharding(mesh))
    valid = jax.ShapeDtypeStruct((4, 32, 32), bool, sharding=parallel.batch_sharding(mesh))

    def mean(values, valid):
        return losses.weighted_mean(values, losses.ohem_mask(values, valid, 0.2))

    text = jax.jit(jax.grad(mean)).lower(shape, valid).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text and "collective-permute" not in text


def test_pasted_objects_cover_and_keep_their_numbers():
    """Each pasted object is one of another image's, whole but for its crop, before what was there."""
    source = shapes("train", count=6, size=(48, 64), objects=(2, 5))
    settings = {"batch_size": 6, "crop": (48, 64), "flip_horizontal": False}
    plain, pasted = (
        next(
            train_batches(
                source, RGB, Loading("threads"), 3, max_objects=29, copy_paste_fraction=fraction, **settings
            ).batches(0, 1)
        )
        for fraction in (0.0, 1.0)
    )
    added = 0
    for i in range(6):
        before, after = plain["instance"][i].astype(int), pasted["instance"][i].astype(int)
        new = after > before.max()
        np.testing.assert_array_equal(after[~new], before[~new])
        np.testing.assert_array_equal(pasted["image"][i][~new], plain["image"][i][~new])
        np.testing.assert_array_equal(pasted["label"][i][~new], plain["label"][i][~new])
        numbers = np.unique(after[new])
        added += len(numbers)
        assert np.isin(pasted["label"][i][new], SPEC.things).all()
        others = [source.read(k) for k in range(6)]
        for number in numbers:
            mask = after == number
            wholes = [(other, other["instance"] == n) for other in others for n in np.unique(other["instance"])[1:]]
            seen = [
                (other, whole) for other, whole in wholes
                if not (mask & ~whole).any() and np.array_equal(pasted["image"][i][mask], other["image"][mask])
            ]  # fmt: skip
            assert len(seen) == 1
    assert added > 5
    same = next(
        train_batches(source, RGB, Loading("tf.data"), 3, max_objects=29, copy_paste_fraction=1.0, **settings).batches(
            0, 1
        )
    )
    for key in same:
        np.testing.assert_array_equal(same[key], pasted[key])
    few = next(
        train_batches(source, RGB, Loading("threads"), 3, max_objects=5, copy_paste_fraction=1.0, **settings).batches(
            0, 1
        )
    )
    assert few["instance"].max() <= 5


def config(**changes):
    made = default_config(source="shapes", model="panoptic_deeplab", task="panoptic")
    made.source.count, made.source.size, made.data.crop = 8, (32, 32), (32, 32)
    made.model.backbone, made.model.width, made.run.total = "resnet_micro", 16, 1
    made.loading.loader, made.log.tensorboard = "threads", False
    made.update_from_flattened_dict(changes)
    return made


def test_mistakes_name_the_fix(tmp_path):
    flat = DatasetSpec(("road", "car"))
    with pytest.raises(UserError, match=r"road, car.*source.things"):
        make_task(flat, name="panoptic")
    with pytest.raises(UserError, match=r"\{class\}.*source.masks"):
        make_task(DatasetSpec(("road", "car"), things=(1,), mode="multilabel"), name="panoptic")
    with pytest.raises(UserError, match=r"task.divisor=40000 must be at most 32767"):
        many = DatasetSpec(tuple(map(str, range(300))), things=(1,), ignore=65535)
        make_task(many, name="panoptic", divisor=40000)
    for settings, message in [
        ({"nms_kernel": 4}, "objective.nms_kernel=4 must be odd"),
        ({"ohem_fraction": 0.0}, r"objective.ohem_fraction=0.0 .*\(0, 1\]"),
        ({"sigma": 0.0}, r"objective.sigma=0.0 .*\(0, inf\)"),
        ({"small_weight": -3.0}, r"objective.small_weight=-3.0 .*\[0, inf\)"),
        ({"cross_entropy": 0.0, "centre": 0.0}, "objective.cross_entropy and objective.centre are both 0"),
        ({"sigmma": 3}, "objective.sigmma.*objective.sigma"),
    ]:
        with pytest.raises(UserError, match=message):
            make_task(SPEC, name="panoptic", **settings)
    with pytest.raises(UserError, match=r"'unet'.* logits, .*objective.name='centres'.* centre, logits, offset"):
        train_and_evaluate(default_config(source="shapes", task="panoptic"), str(tmp_path / "a"))
    with pytest.raises(UserError, match=r" centre, logits, offset, .*objective.name='pixels'.* logits"):
        train_and_evaluate(default_config(source="shapes", model="panoptic_deeplab"), str(tmp_path / "a"))
    data = {"image": np.zeros((4, 32, 32, 3), np.uint8), "label": np.ones((4, 32, 32), np.uint8)}
    bare = arrays("train", data={"train": data}, classes=("road", "car"), things=(1,))
    with pytest.raises(UserError, match=r"train_\d has no instance map.*source.instances"):
        train_and_evaluate(config(), str(tmp_path / "b"), sources={"train": bare, "test": bare})
    with pytest.raises(UserError, match=r"train_0000\d holds \d objects, more than objective.max_objects=1"):
        train_and_evaluate(config(**{"objective.max_objects": 1}), str(tmp_path / "c"))
    with pytest.raises(UserError, match=r"data.copy_paste_fraction=0.5 .*needs task.name='panoptic'"):
        train_batches(bare, RGB, Loading("threads"), copy_paste_fraction=0.5, crop=(32, 32))


@pytest.mark.slow
def test_crops_without_objects_train():
    """Neither the loss nor its gradient is anything but finite where there is nothing to learn."""
    task = make_task(SPEC, name="panoptic")
    outputs = {"logits": jnp.ones((2, 4, 4, 8)), "centre": jnp.ones((2, 4, 4)), "offset": jnp.ones((2, 4, 4, 2))}
    for value in (0, 255):
        batch = {"label": jnp.full((2, 16, 16), value, jnp.uint8), "instance": jnp.zeros((2, 16, 16), jnp.uint16)}
        loss, grads = jax.value_and_grad(lambda o, b=batch: task.objective.loss(o, b)[0])(outputs)
        assert np.isfinite(loss) and all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
