import functools
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tifffile
from parts import quick
from PIL import Image

from segjax import infer
from segjax.cli import main
from segjax.config import default_config
from segjax.data import reading
from segjax.data.sources.arrays import arrays
from segjax.infer import memory
from segjax.train import loop
from segjax.train.evaluate_predictions import evaluate_predictions
from segjax.train.restore import restore
from segjax.train.workdir import read_config

pytestmark = pytest.mark.core

CLASSES = {"multiclass": ("r", "g", "b"), "binary": ("no", "yes"), "multilabel": ("a/b", "c", "d")}
SIZES = [(24, 32), (17, 40), (31, 20), (24, 33)]


def label_of(image, mode):
    if mode == "multilabel":
        return (image > 128).astype(np.uint8)
    return image.argmax(-1).astype(np.uint8) if mode == "multiclass" else (image[..., 0] > 128).astype(np.uint8)


class Run:
    """A trained model, its images as files, and their ground truth."""

    def __init__(self, mode, folder):
        random = np.random.default_rng(0)
        image = random.integers(0, 256, (8, 24, 32, 3), np.uint8)
        tests = [random.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
        labels = [label_of(each, mode) for each in tests]
        for each in labels:
            each[:2] = 255
        data = {"train": {"image": image, "label": label_of(image, mode)}, "test": {"image": tests, "label": labels}}
        config = default_config("arrays")
        config.source.classes, config.task.mode = CLASSES[mode], mode
        config.data.crop, config.data.batch_size, config.eval.batch_size = (16, 24), 4, 4
        config.model.widths, config.loading.loader, config.log.tensorboard = (4, 8), "threads", False
        config.optimizer.learning_rate, config.run.total = 1e-2, 6
        config.eval.buckets = len(SIZES)  # no image is padded to the size of another
        sources = {split: arrays(split, data=data, classes=CLASSES[mode]) for split in data}
        self.summary = loop.train_and_evaluate(config, str(folder / "run"), sources=sources)
        self.mode, self.workdir, self.tests, self.labels = mode, str(folder / "run"), tests, labels
        self.config, self.sources = config, sources
        self.images = folder / "images"
        self.images.mkdir()
        for i, each in enumerate(tests):
            Image.fromarray(each).save(self.images / f"test {i}.png")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Trains a model in a mode, once."""
    return functools.cache(lambda mode: Run(mode, tmp_path_factory.mktemp(mode)))


@pytest.fixture(scope="module", params=quick("multiclass", of=CLASSES))
def run(request, run_of):
    return run_of(request.param)


@pytest.fixture(scope="module")
def multiclass(run_of):
    return run_of("multiclass")


def predict(capsys, *argv):
    code = main(["predict", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def read_back(run, output, i):
    """The mask files of a test image, as a label."""
    if run.mode != "multilabel":
        return reading.read_mask(output / f"test {i}.png").ids
    names = [name.replace("/", "_") for name in run.summary["iou_per_class"]]
    return np.stack([reading.read_mask(output / f"test {i}.{name}.png").ids for name in names], -1)


def test_masks_hold_class_indices_and_score_as_evaluated(run, tmp_path, capsys):
    """Files that `predict` writes, counted in numpy, give the IoU of the run's evaluation (on four devices)."""
    code, result, err = predict(
        capsys, "--workdir", run.workdir, "--input", run.images, "--output", tmp_path, "--probabilities"
    )
    assert code == 0 and err == ""
    assert result["images"] == 4 and result["unreadable"] == 0 and result["output"] == str(tmp_path)
    predictor = infer.load(run.workdir)
    inter, union = np.zeros((2, len(CLASSES[run.mode])), int)
    for i, (image, truth) in enumerate(zip(run.tests, run.labels, strict=True)):
        mask, found = read_back(run, tmp_path, i), predictor(image)
        np.testing.assert_array_equal(mask, found.label)
        probability = np.load(tmp_path / f"test {i}.npy")
        np.testing.assert_array_equal(probability, found.probability)
        assert probability.dtype == np.float32
        assert probability.shape == (*image.shape[:2], 1 if run.mode == "binary" else len(inter))
        with Image.open(tmp_path / "overlays" / f"test {i}.png") as overlay:
            assert overlay.mode == "RGB" and overlay.size == image.shape[1::-1]
        for k in range(len(inter)):
            if run.mode == "multilabel":
                t, p, valid = truth[..., k] == 1, mask[..., k] == 1, truth[..., k] != 255
            else:
                t, p, valid = truth == k, mask == k, truth != 255
            inter[k] += (t & p & valid).sum()
            union[k] += ((t | p) & valid).sum()
    np.testing.assert_allclose(list(run.summary["iou_per_class"].values()), inter / union, atol=1e-12)
    # So does the score of the files, in every figure; the samples of arrays are called test_0 ...
    for path in tmp_path.glob("*.png"):
        path.rename(path.with_name(path.name.replace(" ", "_")))
    scored = evaluate_predictions(tmp_path, run.config, sources=run.sources)
    assert scored["mean_image_IoU"] == pytest.approx(run.summary["mean_image_IoU"], rel=1e-12)  # another order
    same = scored.keys() & run.summary.keys() - {"seconds", "mean_image_IoU"}
    assert {"mIoU", "dice_per_class", "pixels"} < same
    assert {key: scored[key] for key in same} == {key: run.summary[key] for key in same}


def test_label_follows_from_probability(run):
    found = infer.load(run.workdir)(run.tests[0])
    p, label = found.probability, found.label
    if run.mode == "multiclass":
        np.testing.assert_array_equal(label, p.argmax(-1))
        np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    else:
        np.testing.assert_array_equal(label, p > 0.5 if run.mode == "multilabel" else p[..., 0] > 0.5)


def test_masks_carry_the_colours_of_the_classes(multiclass, tmp_path, capsys):
    image = multiclass.images / "test 0.png"
    code, result, _ = predict(
        capsys, "--workdir", multiclass.workdir, "--input", image, "--output", tmp_path / "new" / "out", "--nooverlays"
    )
    assert code == 0 and result["images"] == 1
    assert [path.name for path in (tmp_path / "new" / "out").iterdir()] == ["test 0.png"]
    with Image.open(tmp_path / "new" / "out" / "test 0.png") as mask:
        assert mask.mode == "P"
        colours = np.array(mask.convert("RGB"))
    predictor = infer.load(multiclass.workdir)
    expected = np.array(predictor.spec.colours)[predictor(multiclass.tests[0]).label]
    np.testing.assert_array_equal(colours, expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (33, 17)])
@pytest.mark.parametrize("resize", [None, 0.5, (40, 40)])
def test_any_size(multiclass, size, resize):
    config, spec = read_config(multiclass.workdir)
    config.preprocess.resize, config.parallel.devices = resize, 1
    plan, state, _ = restore(config, spec, multiclass.workdir)
    predictor = infer.Predictor(plan.model, state.variables(True), plan.task, plan.preprocess)
    found = predictor(np.full((*size, 3), 90, np.uint8))
    assert found.label.shape == size and found.probability.shape == (*size, 3)
    assert np.isfinite(found.probability).all()


def test_grid_shares_programs_and_leaves_fitting_sizes_alone(multiclass):
    exact, padded = infer.load(multiclass.workdir), infer.load(multiclass.workdir, size_multiple=8)
    image = multiclass.tests[0]  # 24 x 32
    np.testing.assert_allclose(padded(image).probability, exact(image).probability, atol=1e-6)
    for size in [(17, 25), (20, 31), (24, 32)]:
        assert padded(image[: size[0], : size[1]]).label.shape == size
    assert padded._predict._cache_size() == 1


def test_a_run_on_four_devices_loads_on_one(multiclass):
    assert len(jax.devices()) == 4
    predictor = infer.load(multiclass.workdir)
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(predictor._variables)} == {1}


def test_inputs_of_every_kind(multiclass, tmp_path, capsys):
    """Grey, RGBA, palette, 16-bit, JPEG; what cannot be read is named and left out."""
    folder, grey = tmp_path / "in", np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
    folder.mkdir()
    eight = (grey % 256).astype(np.uint8)
    Image.fromarray(eight).save(folder / "grey.png")
    Image.fromarray(np.stack([*[eight] * 3, np.full_like(eight, 255)], -1)).save(folder / "rgba.png")
    Image.fromarray(eight).convert("P").save(folder / "palette.gif")
    Image.fromarray(eight).save(folder / "photo.JPG")
    Image.fromarray(grey).save(folder / "deep.png")
    data = (folder / "photo.JPG").read_bytes()
    (folder / "torn.jpg").write_bytes(data[: len(data) // 2])
    (folder / "notes.txt").write_text("no image")
    flags = ("--workdir", multiclass.workdir, "--input", folder, "--output", tmp_path / "out")
    code, result, err = predict(capsys, *flags, "--window=0,599")
    assert code == 0 and result["images"] == 5 and result["unreadable"] == 1
    assert err.startswith("Skipped: ") and "torn.jpg" in err and err.count("\n") == 1
    stems = ("grey", "rgba", "palette", "photo", "deep")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {f"{stem}.png" for stem in stems}
    assert all(reading.read_mask(tmp_path / "out" / f"{stem}.png").ids.shape == (20, 30) for stem in stems)
    np.testing.assert_array_equal(
        reading.read_mask(tmp_path / "out" / "grey.png").ids, reading.read_mask(tmp_path / "out" / "rgba.png").ids
    )
    code, result, err = predict(capsys, *flags)
    assert code == 0 and result["images"] == 4 and result["unreadable"] == 2
    assert "deep.png holds uint16 pixels" in err and "--window" in err
    code, result, err = predict(capsys, *flags, "--window=0,a")
    assert code == 1 and "must be two numbers, as in --window=0,4095" in err


def test_faults_are_named_before_anything_is_written(multiclass, tmp_path, capsys):
    workdir, image = multiclass.workdir, multiclass.images / "test 0.png"
    (tmp_path / "in").mkdir()
    Image.fromarray(multiclass.tests[0]).save(tmp_path / "in" / "test 0.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    torn = tmp_path / "torn.png"
    torn.write_bytes(image.read_bytes()[:100])
    out = tmp_path / "out"
    cases = [
        ((workdir, [image, tmp_path / "in" / "test 0.png"], out), "2 images are called test 0"),
        ((workdir, [multiclass.images], multiclass.images), "would overwrite the images"),
        ((workdir, [tmp_path / "empty"], out), f"There is no image in {tmp_path / 'empty'}"),
        ((workdir, [tmp_path / "absent"], out), f"There is no file or folder {tmp_path / 'absent'}"),
        ((tmp_path, [image], out), "There is no run in"),
        ((workdir, [image], tmp_path / "file" / "out"), "cannot be written: Not a directory"),
    ]
    for (where, inputs, output), message in cases:
        given = [word for path in inputs for word in ("--input", path)]
        code, result, err = predict(capsys, "--workdir", where, *given, "--output", output)
        assert code == 1 and result is None
        assert err.startswith("segjax: ") and message in err and err.count("\n") == 1
        assert not pathlib.Path(out).exists()
    code, result, err = predict(capsys, "--workdir", workdir, "--input", torn, "--output", out)
    assert code == 1 and "None of the 1 images could be predicted." in err and "Skipped: " in err


def test_truth_is_not_overwritten_and_predictions_are(capsys, tmp_path, multiclass):
    """A folder of masks given as output by mistake keeps its masks; predicting again replaces predictions."""
    name = next(multiclass.images.glob("*.png")).name
    truth = tmp_path / "masks" / name
    truth.parent.mkdir()
    Image.fromarray(np.ones((4, 4), np.uint8)).save(truth)
    before = truth.read_bytes()
    arguments = ("--workdir", multiclass.workdir, "--input", multiclass.images)
    code, _, err = predict(capsys, *arguments, "--output", truth.parent)
    assert code == 1 and f"{truth} " in err and "--output" in err
    assert truth.read_bytes() == before
    for _ in range(2):
        assert predict(capsys, *arguments, "--output", tmp_path / "out")[0] == 0


def test_a_folder_is_predicted_whatever_lies_in_it(multiclass, tmp_path, capsys, monkeypatch):
    """Dead links, pipes, folders with the ending of an image, large pictures: skipped, named and counted."""
    folder = tmp_path / "in"
    pixels = multiclass.tests[0]
    for name in ("a.png", "a.bmp", "x/1.png", "y/1.png", "line\nbreak.png", "large.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels if name != "large.png" else np.zeros((1100, 1000, 3), np.uint8)).save(folder / name)
    (folder / "dead.png").symlink_to("/nowhere.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "x" / "loop").symlink_to(folder)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    first, *more = [Image.fromarray(each) for each in (pixels, 255 - pixels)]
    first.save(folder / "stack.tif", save_all=True, append_images=more)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**7)
    flags = ("--workdir", multiclass.workdir, "--input", folder, "--output", folder / "out")
    code, result, err = predict(capsys, *flags)
    assert code == 0 and result["images"] == 4 and result["unreadable"] == 4
    assert "3 folders" in err and "--recursive" in err
    for name in ("dead.png", "itself.png", "pipe.png", "large.png has 1100 x 1000"):
        assert name in err
    masks = {"a.png", "a.bmp", "line\nbreak", "stack_page1", "stack_page2"}
    assert {path.name.removesuffix(".png") for path in (folder / "out").glob("*.png")} == masks
    code, result, err = predict(capsys, *flags, "--recursive", "--nooverlays")
    assert code == 0 and result["images"] == 6 and "folders" not in err
    for name in ("x/1.png", "y/1.png"):
        np.testing.assert_array_equal(
            reading.read_mask(folder / "out" / name).ids, infer.load(multiclass.workdir)(pixels).label
        )


def test_pixels_without_data_are_unlabelled(multiclass, tmp_path, capsys):
    tags = [(42113, "s", 4, "200", True)]
    pixels = multiclass.tests[0].copy()
    pixels[:3] = 200
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in/a.tif", pixels, photometric="rgb", extratags=tags)
    flags = ("--workdir", multiclass.workdir, "--input", tmp_path / "in/a.tif", "--output", tmp_path / "out")
    assert predict(capsys, *flags)[0] == 0
    found = reading.read_mask(tmp_path / "out/a.png").ids
    assert (found[:3] == 255).all() and (found[3:] < 255).all()


def test_masks_in_the_ids_and_colours_of_the_data_set(multiclass, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(multiclass.workdir, workdir)
    config = json.loads((workdir / "config.json").read_text())
    names = config["spec"]["classes"]
    label = infer.load(str(workdir))(multiclass.tests[0]).label
    source = {"name": "folder", "root": "/nowhere", "images": "i", "masks": "m", "classes": names}

    def written(**keys):
        (workdir / "config.json").write_text(json.dumps(config | {"source": source | keys}))
        image = multiclass.images / "test 0.png"
        flags = ("--workdir", workdir, "--input", image, "--output", tmp_path / "out", "--ids=source")
        code, _, err = predict(capsys, *flags)
        return (np.asarray(Image.open(tmp_path / "out/test 0.png")), err) if code == 0 else (None, err)

    for raw in ([7, 26, 3], [7, 26000, 3]):
        found, _ = written(ids={str(k): name for k, name in zip(raw, names, strict=True)}, ignore_ids=[1])
        np.testing.assert_array_equal(found, np.array(raw)[label])
    found, _ = written()
    np.testing.assert_array_equal(found, label)
    found, err = written(ids={"1": names[0], "2": names[0], "3": names[1], "4": names[2]})
    assert found is None and f"class {names[0]!r}" in err and "1, 2" in err
    config["spec"]["colours"] = [[9, 8, 7], [1, 2, 3], [4, 5, 6]]
    found, _ = written(colours=dict(zip(names, config["spec"]["colours"], strict=True)))
    np.testing.assert_array_equal(found, np.array(config["spec"]["colours"])[label])
