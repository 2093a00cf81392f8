"""The brain of nilearn: labels by hand, splits that do not touch."""

import importlib.util
import sys

import numpy as np
import pytest

from segjax.checks import UserError
from segjax.data.sources.brain import BLOCK, BLOCKS, BOX, FILE, GUARD, MIN_BRAIN, brain

nibabel = pytest.importorskip("nibabel")
room = sys.modules[brain.__module__]  # its own name in the package is that of the function
SIZES = {"axial": (192, 160), "coronal": (160, 160)}


def volume(kind):
    folder = importlib.util.find_spec("nilearn").submodule_search_locations[0]
    return np.asarray(nibabel.load(f"{folder}/{FILE.format(kind)}").dataobj)


@pytest.mark.parametrize("plane", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_contract(plane, channels):
    for split in ("train", "test"):
        source = brain(split, plane=plane, channels=channels)
        assert len({source.name(i) for i in range(len(source))}) == len(source)
        for i in range(0, len(source), 7):
            sample = source.read(i)
            assert sample["image"].shape == (*SIZES[plane], channels) and sample["image"].dtype == np.uint8
            assert sample["label"].shape == source.size(i) == SIZES[plane] and sample["label"].dtype == np.uint8
            assert (sample["image"] == sample["image"][..., :1]).all()


def test_pixels_and_labels_are_those_of_the_files():
    t1, grey, white = (volume(kind).astype(np.int32) for kind in ("t1", "gm", "wm"))
    axial, coronal = brain("test"), brain("test", plane="coronal")
    for source, place in ((axial, axial.slices[9]), (coronal, coronal.slices[9])):
        sample = source.read(9)
        rows, columns = source.size(9)
        for row, column in np.random.default_rng(0).integers(0, (rows, columns), (400, 2)):
            # Row 0 is the front (axial) or the crown (coronal) end of the box; columns go to the right.
            x = 18 + column
            y, z = (212 - row, place) if source is axial else (21 + place, 159 - row)
            assert sample["image"][row, column, 0] == t1[x, y, z]
            shares = [255 - grey[x, y, z] - white[x, y, z], grey[x, y, z], white[x, y, z]]
            assert sample["label"][row, column] == shares.index(max(shares))


def test_the_box_holds_the_whole_brain():
    outside = np.ones((197, 233, 189), bool)
    outside[BOX] = False
    assert not ((volume("gm").astype(int) + volume("wm") >= 128) & outside).any()
    assert not volume("t1")[outside].any()


@pytest.mark.parametrize("plane", SIZES)
def test_splits_keep_their_distance(plane):
    train, test = brain("train", plane=plane).slices, brain("test", plane=plane).slices
    assert len(test) == BLOCKS * BLOCK
    assert (np.diff(test) == 1).sum() == BLOCKS * (BLOCK - 1)
    assert min(abs(a - b) for a in train for b in test) == GUARD + 1
    assert min(train) < min(test) and max(test) < max(train)
    for source in (brain("train", plane=plane), brain("test", plane=plane)):
        shares = [(source.read(i)["label"] > 0).mean() for i in range(len(source))]
        assert min(shares) >= MIN_BRAIN


def test_what_the_docstring_says_of_the_score():
    """Grey levels alone get 0.96; the nearest training slice, copied, gets far less, so the guard does its work."""
    train, test = brain("train"), brain("test")
    seen = [train.read(i) for i in range(len(train))]
    level = np.concatenate([s["image"].ravel() for s in seen]).astype(int)
    table = np.bincount(level * 3 + np.concatenate([s["label"].ravel() for s in seen]), minlength=768).reshape(256, 3)
    truth = [test.read(i) for i in range(len(test))]
    label = np.stack([s["label"] for s in truth])
    guess = table.argmax(1)[np.stack([s["image"][..., 0] for s in truth])]
    nearest = [np.abs(np.array(train.slices) - place).argmin() for place in test.slices]
    copied = np.stack([seen[i]["label"] for i in nearest])
    for k in (1, 2):

        def dice(p, k=k):
            return 2 * ((p == k) & (label == k)).sum() / ((p == k).sum() + (label == k).sum())

        assert dice(guess) == pytest.approx(0.96, abs=0.005)
        assert dice(copied) < 0.6


def test_samples_are_copies():
    source = brain("train")
    before = source.read(20)
    for array in source.read(20).values():
        array[:] = 7
    np.testing.assert_array_equal(source.read(20)["image"], before["image"])
    np.testing.assert_array_equal(source.read(20)["label"], before["label"])


@pytest.mark.parametrize(
    ("split", "kwargs", "message"),
    [
        ("validation", {}, "splits train, test, not 'validation'"),
        ("train", {"channels": 0}, "one channel"),
    ],
)
def test_faults(split, kwargs, message):
    with pytest.raises(UserError, match=message):
        brain(split, **kwargs)


@pytest.mark.parametrize("module", ["nilearn", "nibabel"])
def test_missing_packages(monkeypatch, module):
    room._volumes.cache_clear()
    find = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == module else find(name, *a))
    with pytest.raises(UserError, match=r'pip install "segjax\[brain\]"'):
        brain("train")


def test_missing_files(monkeypatch):
    room._volumes.cache_clear()
    monkeypatch.setattr(room, "FILE", "no_{}.nii.gz")
    with pytest.raises(UserError, match=r"no_t1\.nii\.gz, no_gm\.nii\.gz"):
        brain("train")
