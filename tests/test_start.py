"""What a run opens before its first step: as much of a large set as of a small one."""

import builtins
import os
import threading

import numpy as np
import pytest
from PIL import Image

from segjax.data import sources
from segjax.data.loader import Loading
from segjax.data.pipeline import eval_batches, train_batches
from segjax.spec import Preprocess


@pytest.fixture
def opened(monkeypatch):
    """Paths of image files that were opened, and the threads that did it."""
    found, real = [], builtins.open

    def spy(path, *args, **kwargs):
        if str(path).endswith(".png"):
            found.append((str(path), threading.current_thread()))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", spy)
    return found


def folder_of(root, count):
    """A data set of as many names of one image."""
    for kind, value in (("images", 90), ("masks", 1)):
        (root / kind).mkdir(parents=True)
        Image.fromarray(np.full((16, 16), value, np.uint8)).save(root / kind / "0.png")
        for i in range(1, count):
            os.link(root / kind / "0.png", root / kind / f"{i}.png")
    return {"name": "folder", "root": str(root), "images": "images", "masks": "masks", "classes": ("a", "b", "c"),
            "fractions": {"all": (0.0, 1.0)}, "channels": 1}  # fmt: skip


@pytest.mark.slow
def test_a_large_set_starts_with_as_few_files_as_a_small_one(tmp_path, opened):
    counts = {}
    for count in (200, 20000):
        settings = folder_of(tmp_path / str(count), count)
        opened.clear()
        source = sources.create(split="all", **settings)
        preprocess, loading = Preprocess(mean=(90.0,), std=(9.0,)), Loading("threads", workers=2)
        train = train_batches(source, preprocess, loading, batch_size=4, crop=(8, 8))
        test = eval_batches(source, preprocess, loading, batch_size=4)
        before = len(opened)
        next(train.batches(0, 1))
        counts[count] = before, len(opened)
        assert before <= 3 * 64 and not any(path.endswith("/19999.png") for path, _ in opened[before:])
    assert counts[20000][0] <= counts[200][0] + 64 and counts[20000][1] - counts[20000][0] <= 16
    # The sizes of the test split are read when they are first needed: each file once, in the readers' threads.
    opened.clear()
    small = eval_batches(
        sources.create(split="all", **(settings | {"root": str(tmp_path / "200")})), preprocess, loading
    )
    opened.clear()
    assert small.count == 25 and small.count == 25
    assert len(opened) == 400 and len({thread for _, thread in opened}) == 2
    assert threading.main_thread() not in {thread for _, thread in opened}
    assert test.source is source
