"""State dicts in the names of their packages, and networks to put them into."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models, weights
from segjax.nn import backbones
from segjax.nn.layers import LayerConfig
from segjax.spec import DatasetSpec

SPEC = DatasetSpec(("sky", "road", "car"))
COUNTS, WIDTH = (1, 1, 2, 3), 8  # of resnet_micro


def normal(shapes):
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def conv(name, out, inputs, size):
    return {f"{name}.weight": (out, inputs, size, size)}


def norm(name, features):
    return {f"{name}.{leaf}": (features,) for leaf in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": ()
    }


def resnet(counts=COUNTS, prefix=""):
    """Names and shapes of PyTorch's bottleneck ResNets."""
    shapes = conv("conv1", WIDTH, 3, 7) | norm("bn1", WIDTH)
    inputs = WIDTH
    for stage, count in enumerate(counts, 1):
        width = WIDTH * 2 ** (stage - 1)
        for i in range(count):
            block = f"layer{stage}.{i}"
            shapes |= conv(f"{block}.conv1", width, inputs, 1) | norm(f"{block}.bn1", width)
            shapes |= conv(f"{block}.conv2", width, width, 3) | norm(f"{block}.bn2", width)
            shapes |= conv(f"{block}.conv3", 4 * width, width, 1) | norm(f"{block}.bn3", 4 * width)
            if i == 0:
                shapes |= conv(f"{block}.downsample.0", 4 * width, inputs, 1) | norm(f"{block}.downsample.1", 4 * width)
            inputs = 4 * width
    return {prefix + name: shape for name, shape in shapes.items()}


def classifier():
    return normal(resnet() | {"fc.weight": (10, 256), "fc.bias": (10,)})


def fcn(classes=3):
    """torchvision's FCN with its auxiliary head."""
    shapes = resnet(prefix="backbone.")
    for name, width in (("classifier", 256), ("aux_classifier", 128)):
        shapes |= conv(f"{name}.0", width // 4, width, 3) | norm(f"{name}.1", width // 4)
        shapes |= conv(f"{name}.4", classes, width // 4, 1) | {f"{name}.4.bias": (classes,)}
    return normal(shapes)


def unet(classes=3):
    """segmentation_models.pytorch's Unet."""
    shapes = resnet(prefix="encoder.")
    inputs = 256
    for i, (skip, width) in enumerate(((128, 256), (64, 128), (32, 64), (8, 32), (0, 16))):
        for j, size in ((1, inputs + skip), (2, width)):
            shapes |= conv(f"decoder.blocks.{i}.conv{j}.0", width, size, 3) | norm(
                f"decoder.blocks.{i}.conv{j}.1", width
            )
        inputs = width
    return normal(shapes | conv("segmentation_head.0", classes, 16, 3) | {"segmentation_head.0.bias": (classes,)})


def blank(net, size=(64, 64)):
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 7, leaf.dtype), shapes)


def network(name="fcn", **options):
    options = {"backbone": "resnet_micro"} | ({"aux": "c4"} if name == "fcn" else {}) | options
    return blank(models.create(name, SPEC, **options))


def backbone(name="resnet_micro"):
    return blank(backbones.create(name, layer_config=LayerConfig()))


def leaf(variables, path):
    for key in path.split("/"):
        variables = variables[key]
    return variables


def untouched(variables, path):
    return np.all(leaf(variables, path) == 7)


def save(path, tensors):
    pytest.importorskip("safetensors.numpy").save_file(tensors, path)
    return path


def family(params):
    """Family of the backbone that has these parameters."""
    tree = params.get("backbone", params)
    if "block_0" in tree:
        return "mobilenet_v3" if any("squeeze" in block for block in tree.values()) else "mobilenet_v2"
    marks = {"layer1_0": "resnet", "stage1_0": "convnext", "conv5_0": "vgg"}
    return next((name for mark, name in marks.items() if mark in tree), "")


def load(source, variables, *args, **settings):
    """`weights.load` of variables whose network is not at hand."""
    if "model" not in settings and "params" in variables:
        settings["family"] = family(variables["params"])
    return weights.load(source, variables, *args, **settings)
