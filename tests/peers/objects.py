"""Prints what finding and scoring objects costs beside the network itself: python tests/peers/objects.py [BACKBONE].

One image of 1024x2048 pixels with 19 classes of which 8 are things, on the devices that are there, medians of five.
The network has random weights; the maps that are post-processed are those of 30 objects, for a network that knows
nothing finds none.
"""

import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from segjax import models, objectives, tasks
from segjax.metrics import panoptic
from segjax.metrics.panoptic import encode_panoptic
from segjax.objectives import Maps, centre_targets
from segjax.spec import DatasetSpec, Geometry, class_names

SPEC = DatasetSpec(class_names(19), things=tuple(range(11, 19)))
SIZE = (1024, 2048)


def seconds(function: Callable, *args) -> float:
    """Median time of a function that has run before, in seconds."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def street(objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Label and instance map [1, y, x] of two kinds of stuff and boxes before them."""
    random = np.random.default_rng(0)
    label, instance = np.zeros((1, *SIZE), np.uint8), np.zeros((1, *SIZE), np.uint16)
    label[:, SIZE[0] // 2 :] = 1
    for number in range(1, objects + 1):
        top, left = (int(random.integers(n - 100)) for n in SIZE)
        box = np.s_[:, top : top + random.integers(30, 300), left : left + random.integers(30, 300)]
        label[box], instance[box] = random.choice(SPEC.things), number
    return label, instance


def report(backbone: str) -> str:
    """Times network, post-processing and metric; a line each, and their shares."""
    model = models.create("panoptic_deeplab", SPEC, backbone=backbone)
    images = jnp.zeros((1, *SIZE, 3))
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images)
    forward = seconds(jax.jit(lambda v, x: model.apply(v, x, train=False)), variables, images)

    label, instance = (jnp.asarray(x) for x in street(30))
    aims = centre_targets.make_targets(label, instance, things=SPEC.things, ignore=SPEC.ignore, count=64, sigma=8.0)
    logits = 9.0 * jax.nn.one_hot(label[:, 2::4, 2::4], 19)
    maps = Maps({"logits": logits, "centre": aims.centre[:, 2::4, 2::4]}, {"offset": aims.offset[:, 2::4, 2::4] / 4})
    task = tasks.create("panoptic", SPEC, objectives.create("centres", SPEC))
    whole = jnp.array([SIZE], jnp.int32)
    geometry = Geometry(whole, whole, SIZE, SIZE, False)

    @jax.jit
    def find(maps):
        found = task.decide(maps, geometry)
        return encode_panoptic(found.label, found.instance, 1000)

    found, truth = (np.asarray(x[0]) for x in (find(maps), encode_panoptic(label, instance, 1000)))
    lines = [f"network ({backbone}) {forward * 1e3:.0f} ms"]
    scoring = seconds(lambda: panoptic.update(panoptic.new(SPEC), truth, found, divisor=1000, ignore=SPEC.ignore))
    for name, value in (("enlarging and post-processing", seconds(find, maps)), ("panoptic quality", scoring)):
        lines.append(f"{name} {value * 1e3:.0f} ms, {value / forward:.1%} of the network's time")
    device = jax.devices()[0]
    return "\n".join([*lines, f"one {device.device_kind}, jax {jax.__version__}"])


if __name__ == "__main__":
    print(report(*sys.argv[1:] or ["resnet50"]))
