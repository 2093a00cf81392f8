"""Files, wrappers, the hub and what lies beside weights; what becomes of the tensors is in test_weights.py."""

import json
import os
import subprocess
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from state_dicts import classifier, leaf, load, network, save

from segjax import weights
from segjax.checks import UserError
from segjax.spec import Preprocess
from segjax.weights import read


@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
def test_safetensors(tmp_path, prefix):
    path = save(tmp_path / "x.safetensors", {prefix + name: x for name, x in classifier().items()})
    for each in (path, str(path)):
        variables, report = load(each, network())
        assert report.unused == ("fc.bias", "fc.weight") or report.unused == ("fc.weight", "fc.bias")
        kernel = leaf(variables, "params/backbone/conv1/conv/kernel")
        np.testing.assert_array_equal(kernel, classifier()["conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(("dtype", "name"), [(ml_dtypes.bfloat16, "BF16"), (np.float16, "F16")])
def test_half_precision_safetensors(tmp_path, dtype, name):
    """Written by hand: header length, header, data."""
    pytest.importorskip("safetensors")
    x = classifier()["conv1.weight"].astype(dtype)
    entry = {"dtype": name, "shape": x.shape, "data_offsets": [0, x.nbytes]}
    header = json.dumps({"conv1.weight": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + x.tobytes())
    variables, _ = load(tmp_path / "x.safetensors", network(), strict=False)
    kernel = leaf(variables, "params/backbone/conv1/conv/kernel")
    np.testing.assert_array_equal(kernel, x.astype(np.float32).transpose(2, 3, 1, 0))


@pytest.mark.parametrize("content", [b"", b"garbage" * 9, None])
def test_damaged_safetensors(tmp_path, content):
    path = save(tmp_path / "x.safetensors", classifier())
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UserError, match=r"x\.safetensors is not a safetensors file"):
        load(path, network())


@pytest.mark.parametrize(
    ("name", "words"), [("x.pth", "no file"), ("x.h5", r"\.h5 is not one of"), ("x", "without extension")]
)
def test_paths_that_are_no_weights(tmp_path, name, words):
    if name != "x.pth":
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=words):
        load(tmp_path / name, network())


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda x: {"n_averaged": np.zeros(()), **{f"module.{name}": value for name, value in x.items()}},
        lambda x: {"state_dict": {"loss.weight": np.ones(3), **{f"model.{name}": value for name, value in x.items()}}},
        lambda x: {"epoch": 3, "model_ema": x},
    ],
)
def test_what_training_scripts_put_around_the_tensors(wrapped):
    report = load(wrapped(classifier()), network())[1]
    assert len(report.loaded) == len(load(classifier(), network())[1].loaded)
    assert set(report.unused) <= {"fc.weight", "fc.bias", "n_averaged", "loss.weight"}


@pytest.mark.parametrize("source", [{}, {"a": 1}, {"state_dict": {}}, {"model": {"a": "b"}}])
def test_dicts_without_tensors(source):
    with pytest.raises(
        UserError, match=r"the state dict holds no tensors by name(, but \w+)?: save the network's state_dict\(\)"
    ):
        load(source, network())


@pytest.mark.parametrize(
    ("package", "file", "fix"),
    [
        ("safetensors", "x.safetensors", r'pip install "segjax\[weights\]"'),
        ("torch", "x.pth", "pip install torch"),
        ("huggingface_hub", "hf://someone/something", r'pip install "segjax\[weights\]"'),
    ],
)
def test_packages_that_are_missing(tmp_path, monkeypatch, package, file, fix):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / file.rpartition("/")[2]).write_bytes(b"x")
    with pytest.raises(UserError, match=fix):
        load(file if file.startswith("hf:") else tmp_path / file, network())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_torch_files(tmp_path, suffix):
    """State dicts of PyTorch, alone or in what a training script saves, in any dtype; not those with more in them."""
    torch = pytest.importorskip("torch")
    tensors = {f"module.{name}": torch.from_numpy(x).bfloat16() for name, x in classifier().items()}
    for saved in (tensors, {"model": tensors, "epoch": 3, "optimizer": {"state": {}}}, {"state_dict": tensors}):
        torch.save(saved, tmp_path / f"x{suffix}")
        variables, report = load(tmp_path / f"x{suffix}", network())
        kernel = leaf(variables, "params/backbone/conv1/conv/kernel")
        expected = classifier()["conv1.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(kernel, expected.transpose(2, 3, 1, 0))
        assert report.unused == ("fc.weight", "fc.bias")
    parameters = {name: torch.nn.Parameter(torch.from_numpy(x)) for name, x in classifier().items()}
    assert load(parameters, network())[1].loaded


def test_torch_files_that_cannot_be_read(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pth"
    torch.save({"model": {"conv1.weight": torch.zeros(3)}, "args": types.SimpleNamespace(x=1)}, path)
    with pytest.raises(UserError, match=r"x.pth cannot be read as a file of tensors: it holds more than tensors"):
        load(path, network())
    whole = path.read_bytes()
    for content in (b"", b"garbage", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x.pth cannot be read as a file of tensors"):
            load(path, network())
    torch.save(torch.zeros(3), path)
    with pytest.raises(UserError, match="holds no tensors by name"):
        load(path, network())


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hugging Face hub whose one repository is a folder; what is asked for is recorded."""

    class EntryNotFoundError(Exception):
        pass

    class LocalEntryNotFoundError(EntryNotFoundError, FileNotFoundError):
        pass

    asked = []

    def hf_hub_download(repository, file, revision=None):
        asked.append((repository, file, revision))
        if repository == "far/away":
            raise LocalEntryNotFoundError("no connection")
        if repository != "someone/something":
            raise OSError("404 Client Error: repository not found")
        if not (tmp_path / file).exists():
            raise EntryNotFoundError(file)
        return str(tmp_path / file)

    errors = types.ModuleType("huggingface_hub.utils")
    errors.EntryNotFoundError, errors.LocalEntryNotFoundError = EntryNotFoundError, LocalEntryNotFoundError
    package = types.ModuleType("huggingface_hub")
    package.hf_hub_download, package.utils, package.asked = hf_hub_download, errors, asked
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", errors)
    return package


def test_hub(hub, tmp_path):
    """Weights and preprocessing of a repository, safetensors first, at a revision."""
    save(tmp_path / "model.safetensors", classifier())
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25, 0.5, 1]}}))
    report = load("hf://someone/something@v1", network(), "timm")[1]
    assert hub.asked == [("someone/something", file, "v1") for file in ("model.safetensors", "config.json")]
    assert report.preprocess == Preprocess((127.5,) * 3, (63.75, 127.5, 255.0))
    assert report.loaded and "preprocess.mean=(127.5, 127.5, 127.5)" in str(report)


def test_hub_without_safetensors(hub, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(x) for name, x in classifier().items()}, tmp_path / "pytorch_model.bin")
    report = load("hf://someone/something", network(), "timm")[1]
    assert report.loaded and report.preprocess is None
    assert [file for _, file, revision in hub.asked if revision is None] == [*read.FILES, "config.json"]


def test_hub_that_cannot_be_reached(tmp_path):
    """What the cache holds is enough, also where it holds no config.json: the package's own cache, in a new process."""
    pytest.importorskip("huggingface_hub")
    folder, commit = tmp_path / "models--someone--something", "0" * 40
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    save(folder / "snapshots" / commit / "model.safetensors", {"x": np.ones(3, np.float32)})
    code = "from segjax.weights.read import read_state_dict\nprint(*read_state_dict('hf://someone/something').tensors)\nread_state_dict('hf://no/body')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["x"]
    assert "UserError: hf://no/body is not in the cache and the Hub cannot be reached" in done.stderr


def test_hub_faults(hub):
    with pytest.raises(UserError, match=r"something has neither model.safetensors nor pytorch_model.bin"):
        load("hf://someone/something", network())
    with pytest.raises(UserError, match="hf://no/body cannot be fetched: 404"):
        load("hf://no/body", network())
    with pytest.raises(UserError, match="Hub cannot be reached: no connection"):
        load("hf://far/away", network())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pretrained_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, ((0.0,) * 3, (255.0,) * 3)),
        ({"preprocessing": {"mean": [0.5], "std": [0.2]}}, ((127.5,), (51.0,))),
        (
            {"mean": [104, 117, 123], "std": [1, 1, 1], "input_range": [0, 255]},
            ((104.0, 117.0, 123.0), (1.0, 1.0, 1.0)),
        ),
        ({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, (weights.IMAGENET.mean, weights.IMAGENET.std)),
        ({"model": {"name": "unet"}}, None),
        ({"mean": 0.5, "std": 0.5}, None),
        ({"preprocessing": {"mean": ["imagenet"], "std": [1]}}, None),
        ({"mean": [0.5] * 3, "std": [0.5]}, None),
        ({"mean": [0.5], "std": [0.2], "input_range": 1}, ((127.5,), (51.0,))),
        ([1, 2], None),
        ("{", None),
    ],
)
def test_preprocessing_beside_a_file(tmp_path, settings, expected):
    """A config.json beside the weights says what images they expect; that of another program says nothing."""
    path = save(tmp_path / "x.safetensors", classifier())
    (tmp_path / "config.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
    report = load(path, network(), "timm")[1]
    assert report.preprocess == (None if expected is None else Preprocess(*expected))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "tf_mobilenetv3_large_100"}, "tf_ networks have TensorFlow's padding"),
        ({"pretrained_cfg": {"input_space": "BGR"}}, "expects images in BGR: reverse axis 1"),
    ],
)
def test_other_padding_and_other_channels_are_refused(tmp_path, settings, message):
    path = save(tmp_path / "x.safetensors", classifier())
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        load(path, network(), "timm", strict=False)
