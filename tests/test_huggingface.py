"""Data sets that the library `datasets` wrote: images and masks are those that went in, bit for bit."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from segjax.checks import UserError
from segjax.data.audit import audit
from segjax.data.sources.huggingface import huggingface

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
SIZE = (6, 8)
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 255, (*SIZE, 3), dtype=np.uint8) for _ in range(3)]
MASKS = [RNG.integers(0, 2, SIZE, dtype=np.uint8) for _ in range(3)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def rows(masks=MASKS, mask=None, image="image", name="mask"):
    columns = {image: list(map(encoded, IMAGES)), name: [encoded(each) for each in masks] if mask is None else masks}
    features = datasets.Features(
        {image: datasets.Image(), name: mask or datasets.Image(), "id": datasets.Value("int64")}
    )
    return datasets.Dataset.from_dict(columns | {"id": [0, 1, 2]}, features=features)


def assert_as_written(source):
    assert len(source) == 3 and source.size(1) == SIZE
    for i in range(3):
        sample = source.read(i)
        np.testing.assert_array_equal(sample["image"], IMAGES[i])
        np.testing.assert_array_equal(sample["label"], MASKS[i])
    assert not audit(source).errors


def test_saved_to_disk(tmp_path):
    datasets.DatasetDict({"train": rows(), "test": rows().select([0])}).save_to_disk(tmp_path / "all")
    source = huggingface("train", root=str(tmp_path / "all"), classes={"0": "a", "1": "b"})
    assert_as_written(source)
    assert source.spec.classes == ("a", "b") and source.name(2) == "train_2" and len(source.ids(0)) == 2
    assert len(huggingface("test", root=str(tmp_path / "all"), classes=("a", "b"))) == 1
    rows().save_to_disk(tmp_path / "one" / "train")
    assert_as_written(huggingface("train", root=str(tmp_path / "one/{split}"), classes=("a", "b")))
    with pytest.raises(UserError, match=r"source\.root: .*all has the splits train, test, not 'val'"):
        huggingface("val", root=str(tmp_path / "all"), classes=("a", "b"))
    with pytest.raises(UserError, match=r"source\.root: .* holds one data set without splits: write \{split\}"):
        huggingface("train", root=str(tmp_path / "one/train"), classes=("a", "b"))


def test_parquet(tmp_path):
    (tmp_path / "data").mkdir()
    rows().to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
    assert_as_written(huggingface("train", root=str(tmp_path), classes=("a", "b")))
    (tmp_path / "each/train").mkdir(parents=True)
    rows().to_parquet(tmp_path / "each/train/0.parquet")
    assert_as_written(huggingface("train", root=str(tmp_path / "each/{split}"), classes=("a", "b")))


def test_masks_of_arrays_and_mapped_ids(tmp_path):
    masks = [mask.astype(np.int64) * 7 for mask in MASKS]
    column = datasets.Array2D(SIZE, "int64")
    data = rows(masks, column, image="pixel_values", name="label")
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "all")
    names = {"image": "pixel_values", "mask": "label", "classes": ("a", "b"), "ids": {0: "a", 7: "b"}}
    assert_as_written(huggingface("train", root=str(tmp_path / "all"), **names))


def test_faults(tmp_path, monkeypatch):
    root = tmp_path / "all"
    root.mkdir()
    with pytest.raises(UserError, match=r"source\.root: .*all cannot be opened as a data set"):
        huggingface("train", root=str(root), classes=("a", "b"))
    (root / "dataset_dict.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"source\.root: .*all cannot be opened as a data set"):
        huggingface("train", root=str(root), classes=("a", "b"))
    datasets.DatasetDict({"train": rows([mask[:-1] for mask in MASKS])}).save_to_disk(root)
    with pytest.raises(UserError, match=r"source\.mask: .*all has no column 'seg'; it has image, mask, id"):
        huggingface("train", root=str(root), mask="seg", classes=("a", "b"))
    with pytest.raises(UserError, match=r"row 0 of 'train' \(image\) has 6 x 8 .* row 0 of 'train' \(mask\) has 5 x 8"):
        huggingface("train", root=str(root), classes=("a", "b")).read(0)
    masks = [mask.astype(np.int64) + (1 << 32) for mask in MASKS]
    datasets.DatasetDict({"train": rows(masks, datasets.Array2D(SIZE, "int64"))}).save_to_disk(tmp_path / "large")
    with pytest.raises(UserError, match=r"row 0 of 'train' \(mask\) holds ids without a class"):
        huggingface("train", root=str(tmp_path / "large"), classes=("a", "b")).read(0)


def test_paths_must_lie_in_the_data_set(tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "outside.png")
    for number, name in enumerate((str(tmp_path / "outside.png"), "../outside.png", "..\\outside.png")):
        root = tmp_path / str(number)
        root.mkdir()
        cell = [{"bytes": None, "path": name}]
        parquet.write_table(pyarrow.table({"image": cell, "mask": cell}), root / "train.parquet")
        with pytest.raises(UserError, match=r"row 0 of 'train' \(image\) names .*outside\.png', which is outside of"):
            huggingface("train", root=str(root), classes=("a", "b"))


def test_without_the_library(tmp_path, monkeypatch):
    module = sys.modules["segjax.data.sources.huggingface"]
    root = tmp_path
    module._library.cache_clear()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs datasets\. Run `pip install \"segjax\[huggingface\]\"`"):
        huggingface("train", root=str(root), classes=("a", "b"))
    monkeypatch.undo()
    module._library.cache_clear()
