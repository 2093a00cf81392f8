"""Small runs on arrays, in this process and in others."""

import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import numpy as np

from segjax.config import default_config
from segjax.train import workdir
from segjax.train.restore import restore

ROOT = pathlib.Path(__file__).parent.parent


def data(mode="multiclass", count=8, size=(24, 32)):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (count, *size, 3), np.uint8)
    if mode == "multilabel":
        label = (image > 128).astype(np.uint8)
    else:
        label = image.argmax(-1).astype(np.uint8) if mode == "multiclass" else (image[..., 0] > 128).astype(np.uint8)
    # Ground truth is spread unevenly over the rows of the batch, so that a mean of means would show.
    for i in range(count):
        label[i, : 3 * i] = 255
    return image, label


def tiny(tmp_path, **changes):
    """A configuration on arrays in an .npz file."""
    image, label = data()
    np.savez(tmp_path / "a.npz", train_image=image, train_label=label, test_image=image[:5], test_label=label[:5])
    config = default_config(source="arrays")
    config.source.data, config.source.classes = str(tmp_path / "a.npz"), ("r", "g", "b")
    config.data.crop, config.data.batch_size, config.eval.batch_size = (16, 24), 4, 4
    config.model.widths = (4, 8)
    config.loading.loader = "threads"
    config.log.tensorboard = False
    config.run.total = 4
    config.update_from_flattened_dict(changes)
    return config


def environment(devices=4):
    """Of a process that a user starts, with devices, and the tests' cache of programs."""
    return {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
    } | {key: value for key, value in os.environ.items() if key.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}


def script(code, *args, devices=4):
    """Starts a script in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(
        command, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    """What a script printed."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def read_state(folder, at):
    """The last state of a run, which is that after some steps."""
    config, spec = workdir.read_config(str(folder))
    config.checkpoint.evaluate = "last"
    _, train_state, step_read = restore(config, spec, str(folder))
    assert step_read == at
    return jax.device_get(train_state)
