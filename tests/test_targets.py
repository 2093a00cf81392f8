"""Targets of centres and offsets against plain numpy, and under crop, flip and rotation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.checks import UserError
from segjax.data.loader import Loading
from segjax.data.pipeline import train_batches
from segjax.data.sources.shapes import shapes
from segjax.objectives import centre_targets
from segjax.spec import Preprocess

SETTINGS = {"things": (3, 4, 5, 6, 7), "ignore": 255, "count": 20, "sigma": 3.0, "small_area": 60, "small_weight": 3.0}
make = jax.jit(functools.partial(centre_targets.make_targets, **SETTINGS))


def plain(label, instance):
    """The targets of one image, object by object and pixel by pixel."""
    h, w = label.shape
    centre, offset, small = np.zeros((h, w)), np.zeros((h, w, 2)), np.ones((h, w))
    y, x = np.mgrid[:h, :w]
    for number in range(1, SETTINGS["count"]):
        mask = instance == number
        if not mask.any():
            continue
        cy, cx = y[mask].mean(), x[mask].mean()
        offset[mask] = np.stack([cy - y[mask], cx - x[mask]], -1)
        ry, rx = np.round(cy), np.round(cx)
        near = (abs(y - ry) <= 10) & (abs(x - rx) <= 10)
        centre = np.maximum(centre, np.where(near, np.exp(-((y - ry) ** 2 + (x - rx) ** 2) / 18), 0))
        if mask.sum() < 60:
            small[mask] = 3
    crowd = np.isin(label, SETTINGS["things"]) & (instance == 0)
    return centre_targets.Targets(centre, offset, (label != 255) & ~crowd, instance > 0, small)


def scenes(count=6, size=(48, 64)):
    """Label and instance maps of generated scenes, with a region without ground truth and a crowd."""
    source = shapes("train", count=count, size=size, objects=(3, 12))
    read = [source.read(i) for i in range(count)]
    label, instance = (np.stack([scene[key] for scene in read]) for key in ("label", "instance"))
    label[:, :5, :9], instance[:, :5, :9] = 255, 0
    instance[0][instance[0] == 2] = 0
    assert ((label == 255).any((1, 2))).all() and np.isin(label[0][instance[0] == 0], SETTINGS["things"]).any()
    return label, instance


def assert_plain(found, label, instance):
    for i in range(len(label)):
        for name, ours, wanted in zip(found._fields, found, plain(label[i], instance[i]), strict=True):
            np.testing.assert_allclose(ours[i], wanted, atol=1e-4, err_msg=name)


def test_equal_to_plain_numpy():
    label, instance = scenes()
    found = make(label, instance)
    assert_plain(found, label, instance)
    # Every object that is there peaks, and every pixel of it points to one place.
    for i in range(len(label)):
        y, x = np.mgrid[:48, :64]
        for number in np.unique(instance[i])[1:]:
            mask = instance[i] == number
            aims = np.stack([y, x], -1)[mask] + np.asarray(found.offset)[i][mask]
            np.testing.assert_allclose(aims, np.broadcast_to(aims[:1], aims.shape), atol=1e-4)
            at = np.round(aims[0]).astype(int)
            assert found.centre[i, at[0], at[1]] == 1


@pytest.mark.parametrize("loader", ["threads", "tf.data"])
def test_made_after_every_augmentation(loader):
    """What the pipeline crops, turns, mirrors, zooms, bends and pastes has the targets of the map that comes out."""
    source = shapes("train", count=4, size=(64, 80), objects=(3, 8))
    batches = train_batches(
        source, Preprocess(), Loading(loader, workers=2), 0, max_objects=19, batch_size=4, crop=(48, 64),
        scale=(0.7, 1.5), rotate=30.0, flip_vertical=True, elastic=2.0, copy_paste_fraction=0.7,
    )  # fmt: skip
    for batch in batches.batches(0, 3):
        assert batch["instance"].dtype == np.uint16 and (np.isin(batch["label"], SETTINGS["things"]) ==
                                                         (batch["instance"] > 0)).all()  # fmt: skip
        assert_plain(make(batch["label"], batch["instance"]), batch["label"], batch["instance"])


@pytest.mark.parametrize("axis", [1, 2])
def test_mirrored_maps_have_mirrored_offsets(axis):
    label, instance = scenes()
    one, other = make(label, instance), make(np.flip(label, axis), np.flip(instance, axis))
    one, other = jax.device_get((one, other))
    sign = np.where(np.arange(2) == axis - 1, -1, 1)
    np.testing.assert_allclose(np.flip(other.offset, axis), one.offset * sign, atol=1e-4)
    for name in ("centre_weight", "offset_weight", "semantic_weight"):
        np.testing.assert_array_equal(np.flip(getattr(other, name), axis), getattr(one, name))


def test_turned_maps_have_turned_offsets():
    """A quarter turn takes (dy, dx) to (-dx, dy)."""
    label, instance = (np.ascontiguousarray(x[:, :48, :48]) for x in scenes())
    one, other = make(label, instance), make(np.rot90(label, 1, (1, 2)), np.rot90(instance, 1, (1, 2)))
    back = np.rot90(np.asarray(other.offset), -1, (1, 2))
    np.testing.assert_allclose(np.stack([back[..., 1], -back[..., 0]], -1), one.offset, atol=1e-4)


def test_a_crop_has_the_offsets_of_what_is_left():
    label, instance = (x[:, 7:35, 11:59] for x in scenes())
    found = make(label, instance)
    assert_plain(found, label, instance)


def test_large_objects_have_exact_centres():
    """Sums of a million coordinates, which float32 would round."""
    instance = np.ones((1, 1024, 1024), np.uint16)
    instance[0, :3] = 0
    area, centre = centre_targets.centres_of_mass(jnp.asarray(instance), 2)
    assert area[0, 1] == 1021 * 1024 and centre[0, 1].tolist() == [513.0, 511.5]
    assert centre[0, 0].tolist() == [0, 0]
    with pytest.raises(UserError, match=r"use a smaller data\.crop"):
        jax.eval_shape(
            lambda x: centre_targets.centres_of_mass(x, 2), jax.ShapeDtypeStruct((1, 8192, 8192), jnp.uint16)
        )


def test_no_objects_make_empty_maps():
    found = make(np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8), np.uint16))
    assert not np.any(found.centre) and not np.any(found.offset_weight) and np.all(found.centre_weight == 1)


def test_all_numbers_may_be_taken():
    instance = np.arange(20, dtype=np.uint16).reshape(1, 4, 5)
    label = np.full((1, 4, 5), 3, np.uint8)
    assert_plain(make(label, instance), label, instance)
