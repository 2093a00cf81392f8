"""The halves of the comparisons with PyTorch that need no GPU and nothing of the peers but torch."""

import jax
import numpy as np
import pytest
from peers import input as inputs
from peers import steps

from segjax.profile import aot


def test_input_is_what_it_says(tmp_path):
    inputs.synthesise(tmp_path / "data", count=8)
    batch = next(stream := inputs.ours(tmp_path / "data", "threads"))
    stream.close()
    assert batch["image"].shape == (8, 360, 360, 3) and batch["image"].std() > 20
    assert set(np.unique(batch["label"])) == {*range(inputs.CLASSES), inputs.IGNORE}


def test_steps_compare_networks_of_one_size():
    pytest.importorskip("torch")
    widths = (4, 8, 16)
    (program,) = aot.step_programs(steps.configuration("unet", 1, (16, 24), "bfloat16", widths), ("train",))
    ours = sum(x.size for x in jax.tree.leaves(program.variables["params"]))
    assert ours == sum(p.numel() for p in steps.plain_unet(widths).parameters())
