"""The switch of the formulations: without them every network is plain `lax`, and says the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models
from segjax.nn import backbones, kernels

FAMILIES = ("resnet_micro", "vgg_micro", "mobilenet_v2_micro", "mobilenet_v3_micro", "convnext_micro")
CASES = [
    ("unet", {"widths": (4, 8, 8)}),
    ("unet", {"widths": (4, 8, 8), "pair_columns": True}),
    ("unet", {"widths": (4, 8), "upsampling": "resize", "norm": "group"}),
    ("unet", {"backbone": "resnet_micro"}),
    *(("deeplabv3plus", {"backbone": name, "width": 8}) for name in FAMILIES),
    ("deeplabv3", {"backbone": "resnet_micro", "width": 8, "pooling": (33, 33), "output_stride": 8}),
    ("fcn", {"backbone": "vgg_micro", "head": "8s", "width": 8}),
    ("fcn", {"backbone": "vgg_micro", "output_stride": 8}),
    ("lraspp", {"backbone": "mobilenet_v3_micro", "width": 8}),
    ("panoptic_deeplab", {"backbone": "resnet_micro", "width": 16}),
]
FORBIDDEN = ("custom_vjp", "optimization_barrier", "platform_index")


def primitives(jaxpr):
    """Names of all operations of a program, nested ones included."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


@pytest.mark.parametrize(
    "name, settings",
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])],
    ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values())),
)
def test_without_kernels_a_network_is_plain_lax(name, settings):
    model = models.create(name, classes=3, **settings)
    images = jax.random.normal(jax.random.key(0), (2, 64, 96, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(1), images, train=False))()
    # Some heads start at zero.
    variables = jax.tree.map(
        lambda x: x + 0.01 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), variables
    )

    def forward(variables, images):
        return model.apply(variables, images, train=False)

    def gradient(variables, images):
        def loss(params):
            rngs = {"dropout": jax.random.key(2)}
            outputs, _ = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"], rngs=rngs
            )
            return sum(jnp.square(x).mean() for x in outputs.values())

        return jax.grad(loss)(variables["params"])

    on = jax.jit(forward)(variables, images)
    names = set(primitives(jax.make_jaxpr(forward)(variables, images).jaxpr))
    assert any(word in each for word in FORBIDDEN for each in names), "the kernels are on by default"
    with kernels.disabled():
        off = jax.jit(lambda *args: forward(*args))(variables, images)
        programs = (jax.make_jaxpr(lambda *args: f(*args))(variables, images) for f in (forward, gradient))  # noqa: B023
        found = {name for program in programs for name in primitives(program.jaxpr)}
        assert not [each for word in FORBIDDEN for each in found if word in each]
    for key, value in on.items():
        scale = np.ptp(np.asarray(value))
        assert scale > 1e-3
        np.testing.assert_allclose(off[key], value, rtol=0, atol=1e-5 * scale, err_msg=key)


def test_the_switch_ends_with_its_context():
    with pytest.raises(ZeroDivisionError), kernels.disabled():
        assert not kernels.enabled()
        _ = 1 / 0
    assert kernels.enabled()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in backbones.BACKBONES if name.endswith("micro")])
@pytest.mark.parametrize("model", ["unet", "deeplabv3plus", "panoptic_deeplab", "lraspp", "fcn", "deeplabv3"])
def test_every_backbone_in_every_model_without_empty_maps(name, model, monkeypatch):
    """Features that do not exist are left out of the dict, and no layer is fed a map without channels."""
    net = models.create(model, classes=3, backbone=name)
    images = jax.ShapeDtypeStruct((1, 61, 79, 3), jnp.float32)
    outputs, _ = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, train=False), images)
    assert set(outputs) == set(net.outputs)
    jaxpr = jax.make_jaxpr(lambda x: net.init_with_output(jax.random.key(0), x, train=False))(images)
    assert not [v for e in jaxpr.jaxpr.eqns for v in e.outvars if v.aval.ndim == 4 and 0 in v.aval.shape]
    backbone = backbones.create(name)
    features, _ = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x, train=False), images)
    assert all(0 not in each.shape for each in features.values())
    assert ("c1" in features) == (backbones.BACKBONES[name].family != "convnext")


@pytest.mark.slow
@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_layers_cover_every_parameter_once(name):
    net = backbones.create(name)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    layers = backbones.layer_names(name)
    assert set(layers) == set(shapes["params"]) and len(set(layers)) == len(layers)
