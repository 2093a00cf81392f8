"""Images of any number of channels and any depth, from a source to a prediction."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segjax import augment, infer
from segjax.checks import UserError
from segjax.config import default_config, to_dict
from segjax.data.loader import Loading
from segjax.data.pipeline import eval_batches, train_batches
from segjax.data.sources.arrays import arrays
from segjax.data.sources.folder import folder
from segjax.spec import DatasetSpec, Preprocess, channel_names
from segjax.train.config_json import from_dict
from segjax.train.loop import train_and_evaluate
from segjax.train.restore import evaluate_workdir
from segjax.train.step import augment_colour, normalise

KINDS = {
    "five": (5, np.uint16, 60000),
    "float": (1, np.float32, 3.0),
    "grey": (1, np.uint8, 255),
    "rgb": (3, np.uint8, 255),
}


def held(kind, count=8, size=(24, 32)):
    channels, dtype, top = KINDS[kind]
    random = np.random.default_rng(0)
    image = (random.random((count, *size, channels)) * top).astype(dtype)
    label = (image[..., 0] > top / 2).astype(np.uint8)
    return {split: {"image": image, "label": label} for split in ("train", "test")}


def configured(kind):
    channels, _, top = KINDS[kind]
    config = default_config(source="arrays")
    config.preprocess.mean, config.preprocess.std = (top / 2,) * channels, (top / 4,) * channels
    config.data.crop, config.data.batch_size, config.eval.batch_size = (16, 16), 4, 4
    config.source.classes, config.model.widths, config.run.total = ("low", "high"), (4, 8), 3
    config.augment.brightness, config.augment.noise = 0.1, 0.05
    config.loading.loader, config.log.tensorboard = "threads", False
    return config


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["five", "float"])
def test_images_of_any_kind_train_evaluate_and_predict(kind, tmp_path):
    channels, dtype, top = KINDS[kind]
    data, config = held(kind), configured(kind)
    sources = {s: arrays(s, channels=channels, data=data, classes=("low", "high")) for s in data}
    with pytest.raises(UserError, match=r"augment.brightness .*preprocess.window"):
        train_and_evaluate(config, str(tmp_path / "a"), sources=sources)
    config.preprocess.window = (0.0, float(top))
    path = str(tmp_path / "run")
    summary = train_and_evaluate(config, path, sources=sources)
    assert evaluate_workdir(path, sources=sources)["mIoU"] == summary["mIoU"]
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["spec"]["image_dtype"] == np.dtype(dtype).name
    assert saved["spec"]["image_channels"] == list(channel_names(channels))
    predict = infer.load(path)
    assert predict(data["test"]["image"][0]).label.shape == (24, 32)
    with pytest.raises(UserError, match=rf"\[y, x, {channels}\] of {np.dtype(dtype).name}"):
        predict(np.zeros((24, 32, channels), np.uint8))
    config.preprocess.mean = config.preprocess.std = (1.0, 1.0)
    with pytest.raises(UserError, match=rf"preprocess.mean=\(1.0, 1.0\) has 2 values.*{channels} channel"):
        train_and_evaluate(config, str(tmp_path / "b"), sources=sources)


@pytest.mark.parametrize("loader", ["threads", "tf.data"])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_travel_as_stored(kind, loader):
    """Whole images that need no resampling come out as they went in, and the warp keeps the dtype."""
    channels, dtype, top = KINDS[kind]
    data = held(kind)
    source = arrays("test", channels=channels, data=data, classes=("low", "high"))
    preprocess = Preprocess(mean=(top / 2,) * channels, std=(top / 4,) * channels)
    batches = eval_batches(source, preprocess, Loading(loader), batch_size=4)
    found = [image for batch in batches.batches(0, int(batches.count)) for image in batch["image"]]
    np.testing.assert_array_equal(np.stack(found), data["test"]["image"])
    assert found[0].dtype == dtype and batches.shapes["image"] == ((4, 24, 32, channels), dtype)
    batches = train_batches(
        source, preprocess, Loading(loader), crop=(16, 16), scale=(0.7, 1.5), rotate=30.0, batch_size=4
    )
    (batch,) = batches.batches(0, 1)
    assert batch["image"].dtype == dtype and 0 <= batch["image"].min() < batch["image"].max() <= top


def test_deep_pixels_are_rounded_and_floats_are_not():
    """Bilinear samples of a ramp: to the nearest whole number in 16 bits, exact in float32."""
    ramp = np.tile(np.arange(0, 3200, 100), (24, 1))
    preprocess = Preprocess(mean=(0.0,), std=(1.0,), resize=2.0, outside="mirror")
    for dtype in (np.uint16, np.float32):
        data = {"test": {"image": [ramp.astype(dtype)[..., None]], "label": [np.zeros((24, 32), np.uint8)]}}
        source = arrays("test", channels=1, data=data, classes=("low", "high"))
        (batch,) = eval_batches(source, preprocess, Loading("threads"), batch_size=1).batches(0, 1)
        row = batch["image"][0, 3, 2:-2, 0].astype(np.float64)
        np.testing.assert_array_equal(row, np.arange(75, 75 + 50 * 60, 50))


def test_sixteen_bit_files_in_a_window_move_less_than_a_grey_level(tmp_path):
    """What version 0.1 mapped to 0..255 now keeps its bits: the input of the network is nearly the same."""
    random = np.random.default_rng(0)
    deep = random.integers(0, 5000, (20, 30)).astype(np.uint16)
    for kind, picture in (("images", deep), ("masks", np.zeros((20, 30), np.uint8))):
        (tmp_path / kind).mkdir()
        Image.fromarray(picture).save(tmp_path / kind / "1.png")
    older = to_dict(default_config(source="folder"))
    del older["objective"]
    older["task"] |= {"dice": 0.5}
    older["source"]["window"], older["preprocess"]["mean"], older["preprocess"]["std"] = [100, 4000], [90.0], [50.0]
    del older["preprocess"]["window"]
    config = from_dict(older)
    assert config.objective.dice == 0.5 and config.preprocess.window == (100.0, 4000.0)
    source = folder("all", channels=1, root=str(tmp_path), images="images", masks="masks", classes=("a", "b", "c"),
                    fractions={"all": (0.0, 1.0)})  # fmt: skip
    assert source.spec.image_dtype == "uint16"
    image = source.read(0)["image"]
    grey = np.rint(np.clip((deep.astype(np.float64) - 100) * 255 / 3900, 0, 255))
    expected = (grey[None, ..., None] - 90) / 50
    found = normalise(jnp.asarray(image[None]), Preprocess(**config.preprocess))
    assert np.abs(found - expected).max() < 0.51 / 50


def test_changes_of_colour_work_within_the_window():
    """The same draws on the same shares of the window: 8 bits as before, 16 bits in their own units."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    amplitudes = {"brightness": 0.3, "contrast": 0.3, "noise": 0.05}
    position = np.arange(4, dtype=np.int32)
    plain = augment_colour(jnp.asarray(image), jnp.asarray(position), 0, amplitudes)
    deep = jnp.asarray(image.astype(np.uint16) * 16 + 1000)
    windowed = augment_colour(deep, jnp.asarray(position), 0, amplitudes, (1000.0, 1000.0 + 255 * 16))
    np.testing.assert_allclose((windowed - 1000) / 16, plain, atol=2e-3)


def test_splits_of_different_depth_are_refused(tmp_path):
    data = held("rgb")
    deep = {"test": {**data["test"], "image": data["test"]["image"].astype(np.uint16) * 257}}
    sources = {"train": arrays("train", data=data, classes=("low", "high")),
              "test": arrays("test", data=deep, classes=("low", "high"))}  # fmt: skip
    with pytest.raises(UserError, match=r"pixels uint16.*uint8"):
        train_and_evaluate(configured("rgb"), str(tmp_path), sources=sources)


class Wide:
    """A source of one's own that says uint8, and reads something else."""

    spec = DatasetSpec(("low", "high"))

    def __len__(self):
        return 4

    def name(self, i):
        return f"wide {i}"

    def size(self, i):
        return (16, 16)

    def read(self, i):
        return {"image": np.zeros((16, 16, 3), np.int64), "label": np.zeros((16, 16), np.uint8)}


@pytest.mark.parametrize("loader", ["threads", "tf.data"])
def test_images_of_another_dtype_than_the_spec_says_are_named(loader):
    batches = train_batches(Wide(), Preprocess(), Loading(loader), batch_size=2, crop=(8, 8))
    with pytest.raises(UserError, match=r"wide \d has .*\(3, 'int64'\), but .*\(3, 'uint8'\)"):
        next(batches.batches(0, 1))


def test_values_that_are_not_finite_are_named():
    data = held("float")
    data["train"]["image"][3, 2, 1] = np.nan
    with pytest.raises(UserError, match=r"train_00003|3.*not finite"):
        arrays("train", channels=1, data=data, classes=("low", "high"))


@pytest.mark.parametrize("compiled", [False, True])
def test_colours_of_8_bits_are_as_they_were(compiled):
    """Without a window changes are of pixel / 255, and times 255: the same bits as `augment.colour` makes so."""
    image = jnp.asarray(held("rgb", 2)["train"]["image"])
    position, amplitudes = jnp.arange(2, dtype=jnp.int32), {"brightness": 0.1, "contrast": 0.2, "hue": 0.05}
    ours = functools.partial(augment_colour, seed=3, amplitudes=amplitudes)

    def plain(image, position):
        key = jax.random.key(3, impl="threefry2x32")
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(position)
        return augment.colour(keys, image.astype(jnp.float32) / 255, **amplitudes) * 255

    wrap = jax.jit if compiled else lambda function: function
    np.testing.assert_array_equal(wrap(ours)(image, position), wrap(plain)(image, position))
