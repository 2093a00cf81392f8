import io
import itertools
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
from parts import quick
from PIL import Image

from segjax.checks import UserError
from segjax.data import elastic, size_groups, warping
from segjax.data.loader import Loading
from segjax.data.pipeline import eval_batches, shuffled_index, train_batches
from segjax.data.sources.arrays import arrays
from segjax.data.sources.folder import folder
from segjax.spec import Preprocess

GREY = Preprocess(mean=(100.0,), std=(50.0,))
THREADS, TF = Loading("threads", workers=2), Loading("tf.data", workers=2)
EVERYTHING = {
    "scale": (0.7, 1.6),
    "rotate": 30.0,
    "flip_vertical": True,
    "elastic": 4.0,
    "rare_class_fraction": 0.5,
}


def source(count=7, sizes=((40, 52),), layers=0, classes=("a", "b", "c")):
    random = np.random.default_rng(0)
    images, labels = [], []
    for size in itertools.islice(itertools.cycle(sizes), count):
        images.append(random.integers(0, 256, (*size, 1), np.uint8))
        label = random.integers(0, 2 if layers else len(classes), (*size, *(layers,) * bool(layers)), np.uint8)
        label[:2] = 255
        labels.append(label)
    return arrays("train", channels=1, data={"train": {"image": images, "label": labels}}, classes=classes)


def collect(batches, start, stop):
    return list(batches.batches(start, stop))


def assert_equal(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            assert x[key].dtype == y[key].dtype
            np.testing.assert_array_equal(x[key], y[key], err_msg=key)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17, 64, 1000])
def test_order_is_a_permutation_of_each_epoch(count):
    epochs = [[shuffled_index(e * count + i, count, seed=5) for i in range(count)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    if count > 5:
        assert epochs[0] != epochs[1] != epochs[2]
        assert epochs[0] != [shuffled_index(i, count, seed=6) for i in range(count)]


def test_order_is_even():
    """Each sample stands at each place about equally often: chi-squared below its 99.99 % point."""
    count, epochs = 10, 2000
    table = np.zeros((count, count))
    for e in range(epochs):
        for i in range(count):
            table[i, shuffled_index(e * count + i, count, seed=1)] += 1
    expected = epochs / count
    assert ((table - expected) ** 2 / expected).sum() < 140  # 81 degrees of freedom


@pytest.mark.parametrize("loading", [THREADS, TF], ids=["threads", "tf.data"])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_one_batch_pixel_for_pixel(loading, hosts):
    def make(process):
        return train_batches(source(), GREY, loading, 3, process, batch_size=4, crop=(24, 32), **EVERYTHING)

    whole = collect(make((0, 1)), 2, 5)
    parts = [collect(make((h, hosts)), 2, 5) for h in range(hosts)]
    for step, batch in enumerate(whole):
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([p[step][key] for p in parts]))


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("preprocess", [GREY, replace(GREY, context=5, outside="mirror"), replace(GREY, resize=0.7)])
def test_loaders_agree_bit_for_bit(layers, preprocess):
    data = source(layers=layers, classes=("a", "b"))
    pair = [
        collect(train_batches(data, preprocess, x, 3, batch_size=3, crop=(24, 30), **EVERYTHING), 0, 4)
        for x in (THREADS, TF)
    ]
    assert_equal(*pair)
    data = source(sizes=[(20, 30), (33, 17)], layers=layers, classes=("a", "b"))
    pair = [eval_batches(data, preprocess, x, batch_size=3, buckets=2) for x in (THREADS, TF)]
    assert_equal(*(collect(batches, 0, batches.count) for batches in pair))


@pytest.mark.parametrize("loading", [THREADS, TF], ids=["threads", "tf.data"])
def test_opening_is_a_function_of_seed_and_step(loading):
    def make(seed):
        return train_batches(source(), GREY, loading, seed, batch_size=4, crop=(24, 32), **EVERYTHING)

    assert_equal(collect(make(1), 0, 6)[4:], collect(make(1), 4, 6))
    assert any(
        not np.array_equal(a["image"], b["image"])
        for a, b in zip(collect(make(1), 0, 1), collect(make(2), 0, 1), strict=True)
    )


def test_opening_far_ahead_reads_nothing_before(monkeypatch):
    data = source()
    read, opened = type(data).read, []
    monkeypatch.setattr(type(data), "read", lambda self, i: opened.append(i) or read(self, i))
    batches = train_batches(data, GREY, THREADS, 0, batch_size=2, crop=(8, 8))
    next(batches.batches(1_000_000, 1_000_001))
    assert len(opened) == 2


def test_plain_crop_copies_pixels():
    """Without zoom and rotation a crop is a copy: nothing is interpolated, labels stay with their pixels."""
    data = source()
    batches = train_batches(data, GREY, THREADS, 0, batch_size=7, crop=(24, 32), flip_horizontal=False)
    seen = set()
    for batch in batches.batches(0, 4):
        for image, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
            sample = data.read(int(index))
            places = [
                (y, x)
                for y in range(40 - 24 + 1)
                for x in range(52 - 32 + 1)
                if np.array_equal(sample["image"][y : y + 24, x : x + 32], image)
            ]
            assert len(places) == 1
            (y, x) = places[0]
            np.testing.assert_array_equal(sample["label"][y : y + 24, x : x + 32], label)
            seen.add(places[0])
    assert len(seen) > 15


def test_flips_mirror_image_and_label():
    data = source(count=1)
    kinds = set()
    for batch in train_batches(data, GREY, THREADS, 0, batch_size=8, crop=(40, 52), flip_vertical=True).batches(0, 3):
        sample = data.read(0)
        for image, label in zip(batch["image"], batch["label"], strict=True):
            for kind in itertools.product((1, -1), (1, -1)):
                if np.array_equal(image, sample["image"][:: kind[0], :: kind[1]]):
                    np.testing.assert_array_equal(label, sample["label"][:: kind[0], :: kind[1]])
                    kinds.add(kind)
    assert len(kinds) == 4


def test_quarter_turn_and_zoom_against_numpy():
    image = np.arange(48, dtype=np.uint8).reshape(6, 8, 1)
    label = (np.arange(48) % 3).astype(np.uint8).reshape(6, 8)

    def warped(matrix, size):
        warp = warping.Warp(np.array(matrix, np.float32), np.zeros((0, 0, 2), np.float32))
        at = warping.source_positions(warp, size, 0)
        return warping.sample_image(image, at, GREY), warping.sample_label(label, at, 255)

    turned = warped([[0, 1, 0], [-1, 0, 7]], (8, 6))
    np.testing.assert_array_equal(turned[0], np.rot90(image))
    np.testing.assert_array_equal(turned[1], np.rot90(label))
    doubled = warped([[0.5, 0, -0.25], [0, 0.5, -0.25]], (12, 16))
    np.testing.assert_array_equal(doubled[1], label.repeat(2, 0).repeat(2, 1))
    pil = Image.fromarray(image[..., 0]).resize((16, 12), Image.Resampling.BILINEAR)
    assert np.abs(doubled[0][..., 0].astype(int) - np.asarray(pil)).max() <= 1  # Pillow rounds its weights


def test_outside_is_mean_and_ignored_or_mirrored():
    image = np.random.default_rng(0).integers(0, 255, (5, 6, 1), np.uint8)
    label = np.ones((5, 6), np.uint8)
    warp = warping.evaluation_warp((5, 6), GREY)
    at = warping.source_positions(warp, (5, 6), 3)
    out = warping.sample_image(image, at, GREY)
    np.testing.assert_array_equal(out[3:-3, 3:-3], image)
    assert (out[:3] == 100).all() and (out[-3:] == 100).all() and (out[:, :3] == 100).all()
    assert (warping.sample_label(label, at, 255)[:3] == 255).all()
    mirrored = warping.sample_image(image, at, replace(GREY, outside="mirror"))
    np.testing.assert_array_equal(mirrored, np.pad(image, ((3, 3), (3, 3), (0, 0)), "symmetric"))


def test_elastic_grid_is_interpolated_bicubically():
    """Weights sum to one, and away from the ends, where values are repeated, Keys' cubic reproduces a parabola."""
    weights = elastic._bicubic(9, 64, 4)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    at = np.clip((np.arange(-4, 68) + 0.5) / 64 * 8, 0, 8)
    inside = (at > 1) & (at < 7)
    np.testing.assert_allclose((weights @ np.arange(9.0) ** 2)[inside], at[inside] ** 2, atol=1e-4)


def test_elastic_moves_image_and_label_together():
    """A grid of equal displacements is a shift; a drawn one takes the label along with the image."""
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 1), np.uint8)
    label = (image[..., 0] > 128).astype(np.uint8)
    grid = np.broadcast_to(np.array([2.0, -3.0], np.float32), (3, 3, 2))
    shifted = warping.evaluation_warp((20, 30), GREY)._replace(grid=grid)
    at = warping.source_positions(shifted, (20, 30), 0)
    moved = warping.sample_image(image, at, GREY)
    np.testing.assert_array_equal(moved[:-2, 3:], image[2:, :-3])
    np.testing.assert_array_equal(warping.sample_label(label, at, 255)[:-2, 3:], label[2:, :-3])
    steps = np.zeros((64, 64, 1), np.uint8)
    steps[20:45, 15:50] = 200
    drawing = warping.CropSettings((64, 64), elastic=6.0)
    warp = warping.draw_warp(drawing, steps[..., 0], 255, GREY, (0, 1))
    at = warping.source_positions(warp, (64, 64), 0)
    bent = warping.sample_image(steps, at, GREY)[..., 0]
    mask = warping.sample_label((steps[..., 0] > 0).astype(np.uint8), at, 255)
    assert not np.array_equal(bent, steps[..., 0])
    assert (mask[bent == 200] == 1).all() and (mask[bent == 0] == 0).all()


def test_elastic_displacements_have_the_asked_size():
    drawing = warping.CropSettings((64, 64), elastic=10.0)
    grids = [warping.draw_warp(drawing, np.zeros((64, 64), np.uint8), 255, GREY, (0, i)).grid for i in range(300)]
    assert 9 < np.std(grids) < 11 and grids[0].shape == (3, 3, 2)


def test_rotation_and_zoom_stay_in_their_ranges():
    drawing = warping.CropSettings((20, 20), scale=(0.5, 2.0), rotate=15.0)
    label = np.zeros((50, 50), np.uint8)
    matrices = np.stack([warping.draw_warp(drawing, label, 255, GREY, (0, i)).matrix[:, :2] for i in range(500)])
    zoom = 1 / np.sqrt(np.linalg.det(matrices))
    angle = np.degrees(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    assert 0.5 <= zoom.min() < 0.53 and 1.9 < zoom.max() <= 2.0
    assert abs(np.median(zoom) - 1) < 0.1  # log-uniform
    assert -15 <= angle.min() < -14 and 14 < angle.max() <= 15


def test_rare_crops_hold_the_rare_class():
    label = np.zeros((64, 64), np.uint8)
    label[5, 60] = 1
    data = {"train": {"image": np.zeros((1, 64, 64, 1), np.uint8), "label": label[None]}}
    shares = {}
    for fraction in (0.0, 1.0):
        data_source = arrays("train", channels=1, data=data, classes=("common", "rare"))
        batches = train_batches(
            data_source, GREY, THREADS, 0, batch_size=50, crop=(16, 16), rare_class_fraction=fraction
        )
        shares[fraction] = np.mean([(x == 1).any() for batch in batches.batches(0, 4) for x in batch["label"]])
    # Half of the sought crops aim at the rare class, whose pixel they always hold.
    assert shares[0.0] < 0.2 < 0.4 < shares[1.0] < 0.7


@pytest.mark.parametrize("buckets", [1, 2, 3])
def test_evaluation_sees_each_pixel_once(buckets):
    data = source(count=11, sizes=[(20, 30), (33, 17), (8, 8)])
    batches = eval_batches(data, GREY, THREADS, batch_size=4, buckets=buckets)
    indices, pixels = [], 0
    for batch in batches.batches(0, int(batches.count)):
        for index, image, label in zip(batch["index"], batch["image"], batch["label"], strict=True):
            if index < 0:
                assert (label == 255).all()
                continue
            sample = data.read(int(index))
            y, x = sample["label"].shape
            np.testing.assert_array_equal(label[:y, :x], sample["label"])
            np.testing.assert_array_equal(image[:y, :x], sample["image"])
            assert (label[y:] == 255).all() and (label[:, x:] == 255).all()
            pixels += (label != 255).sum()
            indices.append(int(index))
    assert sorted(indices) == list(range(11))
    assert pixels == sum((data.read(i)["label"] != 255).sum() for i in range(11))


def test_resized_evaluation_keeps_native_labels():
    data = source(count=3, sizes=[(20, 30), (33, 17)])
    batches = eval_batches(data, replace(GREY, resize=(16, 16)), THREADS, batch_size=3, buckets=1)
    (batch,) = batches.batches(0, 1)
    assert batch["image"].shape == (3, 16, 16, 1) and batch["label"].shape == (3, 33, 30)
    for index, valid, native in zip(batch["index"], batch["valid_size"], batch["native_size"], strict=True):
        size = data.size(int(index))
        assert tuple(valid) == warping.resized_size(size, (16, 16)) and tuple(native) == size


def test_corrupt_image_becomes_unlabelled_and_is_named(tmp_path, caplog):
    for i in range(10):
        data = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)).save(data, "PNG")
        for kind, mode in (("images", None), ("masks", "L")):
            (tmp_path / kind).mkdir(exist_ok=True)
            if mode:
                Image.fromarray(np.full((32, 32), i % 2, np.uint8)).save(tmp_path / kind / f"{i}.png")
            else:
                (tmp_path / kind / f"{i}.png").write_bytes(data.getvalue()[: 400 if i == 4 else None])

    def make(loading):
        data = folder(
            "all", channels=1, root=str(tmp_path), images="images", masks="masks/{stem}.png",
            classes=("a", "b"), fractions={"all": (0.0, 1.0)},
        )  # fmt: skip
        return train_batches(data, GREY, loading, 0, batch_size=5, crop=(16, 16))

    both = []
    for loading in (THREADS, TF):
        batches = make(loading._replace(max_corrupt=0.1))
        both.append(collect(batches, 0, 2))
        rows = [(int(i), label) for b in both[-1] for i, label in zip(b["index"], b["label"], strict=True)]
        assert sorted(i for i, _ in rows) == list(range(10))
        assert all((label == 255).all() == (i == 4) for i, label in rows)
        assert list(batches.corrupt) == ["4"] and "4.png" in batches.corrupt["4"]
        assert "4.png" in caplog.text
    assert_equal(*both)
    with pytest.raises(UserError, match=r"(?s)1 of 10 .*max_corrupt=0.05.*4\.png"):
        collect(make(THREADS._replace(max_corrupt=0.05)), 0, 2)


def test_corrupt_mask_is_counted_in_training_and_evaluation(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(10):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    (tmp_path / "masks" / "3.png").write_bytes(b"")
    data = folder(
        "all", channels=1, root=str(tmp_path), images="images", masks="masks/{stem}.png",
        classes=("a", "b", "c"), fractions={"all": (0.0, 1.0)},
    )  # fmt: skip
    loading = THREADS._replace(max_corrupt=0.1)
    evaluation = eval_batches(data, GREY, loading, batch_size=5)
    for batches in (train_batches(data, GREY, loading, 0, batch_size=5, crop=(16, 16)), evaluation):
        rows = [(i, x) for b in collect(batches, 0, 2) for i, x in zip(b["index"], b["label"], strict=True)]
        assert sorted(i for i, _ in rows) == list(range(10))
        assert all((label == 255).all() == (i == 3) for i, label in rows)
        assert list(batches.corrupt) == ["3"]


@pytest.mark.parametrize("loading", [THREADS, TF], ids=["threads", "tf.data"])
def test_errors_of_samples_reach_the_caller_as_they_are(loading, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(4):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(np.full((16, 16), 7 if i == 2 else 0, np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    data = folder(
        "all", channels=1, root=str(tmp_path), images="images", masks="masks/{stem}.png",
        classes=("a", "b"), fractions={"all": (0.0, 1.0)},
    )  # fmt: skip
    batches = train_batches(data, GREY, loading, 0, batch_size=4, crop=(16, 16))
    with pytest.raises(UserError, match=r"2\.png.*7"):
        collect(batches, 0, 2)


def test_a_mask_of_another_size_is_found_before_the_first_batch(tmp_path):
    for i in range(3):
        for kind, size in (("images", (16, 20, 3)), ("masks", (16, 19) if i == 1 else (16, 20))):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / kind / f"{i}.png")
    data = folder(
        "all", channels=1, root=str(tmp_path), images="images", masks="masks/{stem}.png",
        classes=("a", "b", "c"), fractions={"all": (0.0, 1.0)},
    )  # fmt: skip
    for make in (
        lambda: train_batches(data, GREY, THREADS, batch_size=1, crop=(8, 8)),
        lambda: eval_batches(data, GREY, THREADS).count,  # the sizes are read when they are first needed
    ):
        with pytest.raises(UserError, match=r"images/1.png has 16 x 20 .*masks/1.png has 16 x 19"):
            make()


@pytest.mark.parametrize("loader", quick("threads", of=["threads", "tf.data"]))
def test_a_failed_run_ends_its_process(loader):
    """An error in the middle of an epoch leaves the pipeline half read: the process still ends, at once."""
    code = f"""
        from segjax.data import pipeline, sources
        from segjax.data.loader import Loading
        from segjax.spec import Preprocess
        source = sources.create("shapes", "train", count=64)
        batches = pipeline.train_batches(source, Preprocess(), Loading("{loader}"), batch_size=4, crop=(64, 64))
        for _ in batches.batches(0, 1000):
            raise ValueError("in the middle")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.endswith("ValueError: in the middle\n")


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match=r"data.crop=\(64, 64\).*40x52"):
        train_batches(source(), GREY, THREADS, batch_size=2, crop=(64, 64))
    train_batches(source(), GREY, THREADS, batch_size=2, crop=(64, 64), scale=(1.0, 1.6))
    with pytest.raises(UserError, match=r"data.batch_size=3 .* 2 hosts"):
        train_batches(source(), GREY, THREADS, process=(0, 2), batch_size=3, crop=(8, 8))
    with pytest.raises(UserError, match=r"data.scale=\(2.0, 1.0\)"):
        train_batches(source(), GREY, THREADS, batch_size=2, crop=(8, 8), scale=(2.0, 1.0))
    with pytest.raises(UserError, match=r"loading.loader='tfdata'"):
        collect(train_batches(source(), GREY, Loading("tfdata"), batch_size=2, crop=(8, 8)), 0, 1)


def test_tf_data_is_refused_where_tensorflow_is_absent(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorflow-cpu"):
        collect(train_batches(source(), GREY, TF, batch_size=2, crop=(8, 8)), 0, 1)
    assert len(collect(train_batches(source(), GREY, Loading("auto"), batch_size=2, crop=(8, 8)), 0, 1)) == 1


def test_one_large_image_costs_little_and_every_image_is_seen_once():
    """The kind of set whose cost grew with its worst sample; in few programs, and for any number of devices."""
    sizes = np.array([(64, 64)] * 32 + [(1500, 1500)])
    for count in (1, 2, 4, 8):
        groups, padding = size_groups.group_sizes(sizes, count, 8)
        assert padding < 1.01 and len(groups) == 2
    random = np.random.default_rng(0)
    sizes = np.concatenate([random.integers(200, 640, (300, 2)), [(640, 480)] * 100, [(480, 640)] * 101])
    for count, divisor in ((1, 1), (4, 4), (8, 2)):
        groups, padding = size_groups.group_sizes(sizes, count, 16, divisor)
        assert sorted(i for group in groups for i in group.members) == list(range(501)) and len(groups) == count
        assert all(group.batch_size % divisor == 0 and 8 <= group.batch_size <= 16 for group in groups)
        assert all(tuple(sizes[group.members].max(0)) == group.size for group in groups)
        assert padding == sum(group.pixels for group in groups) / sizes.prod(1).sum()
    assert padding < 1.3


def test_batches_of_fewer_rows_hold_each_sample_once(tmp_path):
    data = source(count=11, sizes=[(20, 30)] * 9 + [(60, 70), (30, 20)])
    batches = eval_batches(data, GREY, THREADS, batch_size=4, buckets=3)
    found = list(batches.batches(0, batches.count))
    assert sorted(i for batch in found for i in batch["index"] if i >= 0) == list(range(11))
    assert len({batch["image"].shape for batch in found}) == 3 and found[-1]["image"].shape[0] == 1
    for number, batch in enumerate(found):
        for index in batch["index"][batch["index"] >= 0]:
            assert batches.arrange().batch_of(int(index)) == number
    halves = [eval_batches(data, GREY, THREADS, (host, 2), batch_size=4, buckets=3) for host in (0, 1)]
    halves = [list(each.batches(0, each.count)) for each in halves]
    rows = [i for batches in halves for batch in batches for i in batch["index"] if i >= 0]
    assert sorted(rows) == list(range(11))
