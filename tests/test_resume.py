"""A run that goes on in a new process, or on several, ends as one that was not interrupted."""

import json
import socket

import jax
import numpy as np
import pytest
from tiny_runs import finish, read_state, script, tiny

from segjax.train.loop import train_and_evaluate
from segjax.train.restore import evaluate_workdir

pytestmark = pytest.mark.slow

RESUME = """
    import sys
    import jax
    from segjax import config as c
    from segjax.train.loop import train_and_evaluate
    config = c.default_config(source="arrays")
    config.source.data, config.source.classes = sys.argv[1], ("r", "g", "b")
    config.data.crop, config.data.batch_size, config.eval.batch_size = (16, 24), 4, 4
    config.data.scale, config.data.rotate, config.augment.noise = (0.7, 1.5), 20.0, 0.1
    config.model.widths, config.model.dropout, config.ema.decay = (4, 8), 0.2, 0.99
    config.loading.loader, config.log.tensorboard = "threads", False
    config.optimizer.accumulate = 2
    config.parallel.transform = sys.argv[3]
    config.run.total, config.run.checkpoint_every, config.checkpoint.evaluate = 20, 10, "last"
    if len(sys.argv) > 4:  # stopped from without after ten steps
        from segjax.data.pipeline import Batches
        batches = Batches.batches
        Batches.batches = lambda self, start, stop: batches(self, start, min(stop, 10))
    train_and_evaluate(config, sys.argv[2])
"""


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_resuming_in_a_new_process_is_bit_exact(tmp_path, mode):
    """20 steps = 10 steps, a new process, 10 steps: every leaf of the state is equal, bit for bit."""
    tiny(tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    straight = script(RESUME, tmp_path / "a.npz", whole, mode)
    finish(script(RESUME, tmp_path / "a.npz", parts, mode, "stop"))
    assert [int(p.name) for p in (parts / "checkpoints").iterdir()] == [10]
    out = finish(script(RESUME, tmp_path / "a.npz", parts, mode))
    assert "resumed at step 10" in out
    finish(straight)
    a, b = read_state(whole, 20), read_state(parts, 20)
    assert jax.tree.structure(a) == jax.tree.structure(b) and len(jax.tree.leaves(a)) > 50
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


HOSTS = """
    import json, sys
    import jax
    jax.distributed.initialize("127.0.0.1:" + sys.argv[2], 2, int(sys.argv[3]))
    from segjax import config as c
    from segjax.train.loop import train_and_evaluate
    config = c.default_config(source="arrays")
    config.source.data, config.source.classes = sys.argv[1], ("r", "g", "b")
    config.data.crop, config.data.batch_size, config.eval.batch_size = (16, 24), 4, 4
    config.model.widths, config.run.total = (4, 8), 4
    config.loading.loader, config.log.tensorboard = "threads", False
    config.parallel.transform = sys.argv[5]
    summary = train_and_evaluate(config, sys.argv[4])
    if jax.process_index() == 0:
        print("SUMMARY " + json.dumps(summary))
"""


def test_two_processes_train_and_score_as_one(tmp_path, mode="pmap"):
    """Under jit: test_hosts.py."""
    config = tiny(tmp_path)
    config.parallel.transform = mode
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pair = [script(HOSTS, tmp_path / "a.npz", port, i, tmp_path / "two", mode, devices=2) for i in (0, 1)]
    outs = [finish(p) for p in pair]
    two = json.loads(next(line for line in outs[0].splitlines() if line.startswith("SUMMARY"))[8:])
    one = train_and_evaluate(config, str(tmp_path / "one"))
    assert two["pixels"] == one["pixels"] and two["images"] == one["images"] == 5
    # The same checkpoint scored by one process: the same counts.
    again = evaluate_workdir(str(tmp_path / "two"))
    assert again["iou_per_class"] == two["iou_per_class"] and again["pixel_accuracy"] == two["pixel_accuracy"]
    a, b = read_state(tmp_path / "one", 4), read_state(tmp_path / "two", 4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4), a.params, b.params)
