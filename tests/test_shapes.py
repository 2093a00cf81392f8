"""Generated scenes: reproducible, disjoint, labelled to the pixel."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from segjax.checks import UserError
from segjax.data.sources.shapes import STUFF, THINGS, _distance, shapes


def same(a, b):
    return all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (64, 48), (33, 97)])
def test_contract(channels, size):
    source = shapes("train", channels=channels, count=12, size=size)
    assert len(source) == 12 and len({source.name(i) for i in range(12)}) == 12
    for i in range(len(source)):
        sample = source.read(i)
        assert sample["image"].dtype == np.uint8 and sample["image"].shape == (*size, channels)
        assert sample["label"].dtype == source.spec.label_dtype and sample["label"].shape == source.size(i) == size
        assert sample["instance"].dtype == np.uint16 and sample["instance"].shape == size


def test_instances_are_contiguous_and_of_one_class():
    source, seen = shapes("train", size=(64, 64), objects=(0, 12)), set()
    for i in range(60):
        sample = source.read(i)
        label, instance = sample["label"], sample["instance"]
        count = int(instance.max())
        assert count <= 12
        assert np.unique(np.append(instance, 0)).tolist() == list(range(count + 1))
        np.testing.assert_array_equal(instance > 0, np.isin(label, source.spec.things))
        for number in range(1, count + 1):
            assert len(set(label[instance == number].tolist())) == 1
        seen |= set(label.ravel().tolist())
    assert seen == set(range(len(source.spec.classes)))
    assert [source.spec.classes[t] for t in source.spec.things] == list(THINGS)


def test_no_objects_no_things():
    sample = shapes("test", size=(32, 32), objects=(0, 0)).read(3)
    assert not sample["instance"].any() and set(np.unique(sample["label"])) <= set(range(len(STUFF)))


def test_scene_is_a_function_of_seed_split_and_index():
    make = [
        lambda: shapes("train", size=(32, 32)),
        lambda: shapes("validation", size=(32, 32)),
        lambda: shapes("test", size=(32, 32)),
        lambda: shapes("train", size=(32, 32), seed=1),
    ]
    scenes = [[source.read(i) for i in range(8)] for source in (m() for m in make)]
    for m, expected in zip(make, scenes, strict=True):
        source = m()
        assert all(same(source.read(i), expected[i]) for i in reversed(range(8)))  # nor does the order matter
    drawn = list(itertools.chain(*scenes))
    assert not any(same(a, b) for a, b in itertools.combinations(drawn, 2))


def test_more_scenes_or_channels_change_no_label():
    one, many = shapes("train", count=3, channels=1), shapes("train", count=9)
    for i in range(3):
        grey, colour = one.read(i), many.read(i)
        np.testing.assert_array_equal(grey["label"], colour["label"])
        luma = colour["image"] @ np.array([0.299, 0.587, 0.114])
        np.testing.assert_allclose(grey["image"][..., 0], luma, atol=1.01)  # each is rounded once


def test_threads_agree():
    source = shapes("train", count=16, size=(64, 64))
    with ThreadPoolExecutor(4) as pool:
        assert all(same(a, source.read(i)) for i, a in enumerate(pool.map(source.read, range(16))))


@pytest.mark.parametrize(
    ("kind", "area"),
    [
        ("disc", lambda u: np.pi),
        ("box", lambda u: 4 * (0.35 + 0.55 * u)),
        ("triangle", lambda u: 3 * np.sqrt(3) / 4),
        ("star", lambda u: 5 * (0.4 + 0.15 * u) * np.sin(np.pi / 5)),
        ("ring", lambda u: np.pi * (1 - (1 - 2 * (0.15 + 0.15 * u)) ** 2)),
    ],
)
@pytest.mark.parametrize("turn", [0.0, 0.7, 4.0])
def test_shapes_have_the_area_of_their_formula(kind, area, turn):
    radius = np.float32(100)
    y, x = np.ogrid[-160:161, -160:161]
    rng = np.random.default_rng(5)
    share = np.random.default_rng(5).random()
    inside = _distance(rng, kind, y.astype(np.float32), x.astype(np.float32), float(radius), turn) < 0
    assert inside.sum() == pytest.approx(area(share) * radius**2, rel=0.01)
    assert inside[160, 160] == (kind != "ring")


def test_colour_alone_does_not_tell_the_classes():
    """The best lookup table from colour (512 bins) of 200 scenes is poor on others, on stuff and on things."""

    def pixels(split):
        scenes = [shapes(split, size=(64, 64)).read(i) for i in range(200)]
        colours = np.concatenate([(s["image"] >> 5).reshape(-1, 3) for s in scenes]) @ np.array([64, 8, 1])
        return colours, np.concatenate([s["label"].ravel() for s in scenes])

    colour, label = pixels("train")
    table = np.bincount(colour * 8 + label, minlength=512 * 8).reshape(512, 8).argmax(1)
    colour, label = pixels("test")
    ious = [((table[colour] == k) & (label == k)).sum() / ((table[colour] == k) | (label == k)).sum() for k in range(8)]
    assert np.mean(ious[:3]) < 0.4 and np.mean(ious[3:]) < 0.1


@pytest.mark.parametrize(
    ("split", "kwargs", "message"),
    [
        ("dev", {}, "splits train, validation, test, not 'dev'"),
        ("train", {"channels": 4}, "channels, not 4"),
        ("train", {"size": (8, 64)}, r"source.size=\(8, 64\) .*\[16, inf\)"),
        ("train", {"objects": (5, 2)}, r"source.objects=\(5, 2\)"),
        ("train", {"objects": (0, 70000)}, "source.objects"),
        ("train", {"count": 0}, "source.count"),
        ("train", {"seed": -1}, "source.seed"),
    ],
)
def test_faults(split, kwargs, message):
    with pytest.raises(UserError, match=message):
        shapes(split, **kwargs)


def test_beyond_the_end():
    source = shapes("test", count=2)
    for i in (-1, 2):
        with pytest.raises(IndexError):
            source.read(i)
