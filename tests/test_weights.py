"""State dicts made here, in the names of their packages; the packages themselves are in test_parity.py."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from state_dicts import (
    SPEC,
    backbone,
    blank,
    classifier,
    conv,
    family,
    fcn,
    leaf,
    load,
    network,
    norm,
    normal,
    resnet,
    unet,
    untouched,
)

from segjax import models, parallel, weights
from segjax.checks import UserError
from segjax.config import default_config
from segjax.data.sources.arrays import arrays
from segjax.spec import Preprocess
from segjax.train import loop, optimizer, state, workdir
from segjax.train.pretrained import start_from
from segjax.train.restore import restore
from segjax.weights import names
from segjax.weights.match import match_tensors


def test_every_kind_of_tensor():
    """Kernels are transposed, norms renamed, and nothing but the values changes."""
    theirs, before = fcn(), network()
    variables, report = load(theirs, before)
    assert jax.tree.structure(variables) == jax.tree.structure(before)
    assert all(np.all(x == 7) for x in jax.tree.leaves(before))
    assert not any(np.any(x == 7) for x in jax.tree.leaves(variables))
    assert all(type(x) is np.ndarray and x.dtype == np.float32 for x in jax.tree.leaves(variables))
    for path, name in {
        "params/backbone/layer3_1/conv2/conv/kernel": "backbone.layer3.1.conv2.weight",
        "params/backbone/layer4_0/downsample/conv/kernel": "backbone.layer4.0.downsample.0.weight",
        "params/head/kernel": "classifier.4.weight",
    }.items():
        np.testing.assert_array_equal(leaf(variables, path), theirs[name].transpose(2, 3, 1, 0))
    for path, name in {
        "params/backbone/conv1/norm/scale": "backbone.bn1.weight",
        "params/backbone/conv1/norm/bias": "backbone.bn1.bias",
        "batch_stats/backbone/conv1/norm/mean": "backbone.bn1.running_mean",
        "batch_stats/backbone/conv1/norm/var": "backbone.bn1.running_var",
        "batch_stats/aux_conv/norm/var": "aux_classifier.1.running_var",
        "params/aux_head/bias": "aux_classifier.4.bias",
    }.items():
        np.testing.assert_array_equal(leaf(variables, path), theirs[name])
    assert len(report.loaded) == len(jax.tree.leaves(before))
    assert (report.missing, report.unused, report.mismatched, report.reinitialised, report.classes) == ((),) * 4 + (
        None,
    )
    assert report.preprocess == weights.IMAGENET and np.allclose(
        report.preprocess.mean, 255 * np.array([0.485, 0.456, 0.406])
    )
    assert (report.layout, report.settings, report.align_corners) == (
        "torchvision",
        {"variant": "torchvision", "output_stride": 8, "aux": "c4"},
        False,
    )
    with pytest.raises(AttributeError):
        report.layout = "timm"


def test_leaves_stay_where_they_are():
    """JAX's leaves keep their dtype and their place on the devices, and do not share memory with the source."""
    mesh = Mesh(np.array(jax.devices()), "data")
    shardings = NamedSharding(mesh, PartitionSpec())
    before = jax.tree.map(lambda x: jax.device_put(x.astype(jnp.bfloat16), shardings), backbone())
    theirs = normal(resnet())
    variables, _ = load(theirs, before)
    assert all(x.dtype == jnp.bfloat16 and x.sharding == shardings for x in jax.tree.leaves(variables))
    theirs, before = normal(resnet()), jax.tree.map(jnp.asarray, backbone())
    variables, _ = load(theirs, before)
    expected = np.array(variables["params"]["conv1"]["norm"]["bias"])
    theirs["bn1.bias"] += 1
    np.testing.assert_array_equal(variables["params"]["conv1"]["norm"]["bias"], expected)


def test_classifier_fills_the_backbone():
    variables, report = load(classifier(), network())
    assert untouched(variables, "params/head/kernel") and not untouched(variables, "params/backbone/conv1/conv/kernel")
    assert {name.partition("/")[0] for name in report.missing} == {"conv", "head", "aux_conv", "aux_head"}
    assert report.unused == ("fc.weight", "fc.bias")
    assert not report.settings
    text = str(report)
    assert f"loaded {len(report.loaded)} of {len(jax.tree.leaves(variables))} tensors, layout torchvision" in text
    for count in ("conv (5)", "head (2)", "aux_conv (5)", "aux_head (2)"):
        assert f" {count}" in text
    assert "fc (2)" in text and "preprocess.mean=(123.675, 116.28, 103.53)" in text


@pytest.mark.parametrize("layout", ["torchvision", "timm", "smp"])
def test_encoders_without_prefix(layout):
    """The three packages name a ResNet's modules alike; smp's encoders are published without a prefix."""
    _, report = load(classifier(), network("unet"), layout)
    assert all(name.startswith(("up_", "head/")) for name in report.missing)
    assert report.preprocess == (None if layout == "timm" else weights.IMAGENET)


def test_classifier_fills_the_backbone_of_a_network_that_no_layout_has():
    variables, report = load(classifier(), network("panoptic_deeplab"))
    assert untouched(variables, "params/centre/kernel")
    assert not untouched(variables, "params/backbone/conv1/conv/kernel")
    assert report.missing and not any(name.startswith("backbone") for name in report.missing)


def test_decoder_of_another_kind_is_left_alone():
    """The backbone of a published segmentation network serves a network that the layout does not have."""
    variables, report = load(fcn(), network("unet"))
    assert untouched(variables, "params/up_0/conv1/conv/kernel") and "classifier.0.weight" in report.unused
    assert not report.settings


def test_unet():
    theirs = unet()
    variables, report = load(theirs, network("unet"), "smp")
    assert not (report.missing or report.unused)
    expected = theirs["decoder.blocks.0.conv1.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(variables["params"]["up_4"]["conv1"]["conv"]["kernel"], expected)


def test_another_number_of_classes():
    """Heads alone keep their values, and the report says so."""
    theirs = fcn(21)
    variables, report = load(theirs, network())
    assert set(report.reinitialised) == {"head/kernel", "head/bias", "aux_head/kernel", "aux_head/bias"}
    assert report.classes == (21, 3) and not report.mismatched and not report.missing
    assert all(untouched(variables, f"params/{name}") for name in report.reinitialised)
    assert not untouched(variables, "params/conv/conv/kernel")
    assert "reinitialised for 3 classes instead of 21: " in str(report) and "aux_head/kernel" in str(report)


def test_a_head_of_another_width_is_a_mismatch():
    theirs = fcn(21)
    theirs["classifier.4.weight"] = np.zeros((21, 5, 1, 1), np.float32)
    with pytest.raises(UserError, match=r"head/kernel \(1, 1, 64, 3\) <- classifier.4.weight \(21, 5, 1, 1\)"):
        load(theirs, network())


def test_missing_tensors():
    theirs = fcn()
    for name in ("weight", "bias", "running_mean", "running_var"):
        del theirs[f"backbone.layer2.0.bn1.{name}"]
    with pytest.raises(UserError) as error:
        load(theirs, network())
    text = str(error.value)
    assert "4 of our tensors are missing (backbone/layer2_0/conv1/norm/" in text and ", ...)" in text
    assert "<- backbone.layer2.0.bn1." in text and "layout='torchvision'" in text and "strict=False" in text
    variables, report = load(theirs, network(), strict=False)
    assert len(report.missing) == 4 and untouched(variables, "params/backbone/layer2_0/conv1/norm/scale")
    assert "not among the weights: backbone (4)" in str(report)


def test_missing_part_of_a_decoder():
    """An auxiliary head that the weights do not have is named; the decoder is there, so it is no classifier."""
    theirs = {name: x for name, x in fcn().items() if not name.startswith("aux")}
    with pytest.raises(
        UserError, match=r"7 of our tensors are missing \(aux_conv/norm/mean <- aux_classifier.1.running"
    ):
        load(theirs, network())
    assert load(theirs, network(aux=""))[1].missing == ()


def test_mismatched_tensors():
    theirs = classifier()
    theirs["conv1.weight"] = theirs["conv1.weight"][:, :1]
    with pytest.raises(UserError) as error:
        load(theirs, network())
    assert "1 have another shape (backbone/conv1/conv/kernel (7, 7, 3, 8) <- conv1.weight (8, 1, 7, 7))" in str(
        error.value
    )
    variables, report = load(theirs, network(), strict=False)
    assert report.mismatched == (
        weights.Mismatch("backbone/conv1/conv/kernel", "conv1.weight", (7, 7, 3, 8), (8, 1, 7, 7)),
    )
    assert untouched(variables, "params/backbone/conv1/conv/kernel")
    assert "the shapes differ: backbone/conv1/conv/kernel" in str(report)


@pytest.mark.parametrize(
    ("theirs", "options", "left"),
    [
        (normal(resnet((1, 1, 2, 4))), {}, "layer4.3.conv1.weight"),
        (normal(resnet()), {"norm": "group"}, "bn1.running_mean"),
        (unet() | {"decoder.blocks.0.attention1.attention.cSE.1.weight": np.zeros(3)}, {"name": "unet"}, "attention1"),
    ],
)
def test_tensors_that_are_left_over(theirs, options, left):
    """A deeper network, other norms or more layers: everything of ours is there, and yet it is another network."""
    layout = "smp" if "name" in options else "torchvision"
    with pytest.raises(UserError, match=rf"of its tensors have no place here.*{left}"):
        load(theirs, network(**options), layout)
    report = load(theirs, network(**options), layout, strict=False)[1]
    assert any(left in name for name in report.unused)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "name", "layout", "right"),
    [
        (fcn(), "fcn", "smp", "torchvision"),
        (fcn(), "fcn", "timm", "torchvision"),
        (unet(), "unet", "torchvision", "smp"),
    ],
)
def test_wrong_layout_is_told_from_the_right_one(theirs, name, layout, right):
    for strict in (True, False):
        with pytest.raises(UserError) as error:
            load(theirs, network(name), layout, strict=strict)
        assert f"none of its {len(theirs)} tensors matches" in str(error.value)
        count = len(jax.tree.leaves(network(name)))
        assert f"layout={right!r} would match {count} of {count}." in str(error.value)


def test_layouts_have_names():
    with pytest.raises(UserError, match="layout='keras' is not one of"):
        load(fcn(), network(), "keras")


def test_nothing_fits():
    for strict in (True, False):
        with pytest.raises(UserError, match=r"none of its 1 tensors matches, \S+ is expected\.$"):
            load({"x": np.zeros(3)}, network(), strict=strict)


def test_networks_without_published_weights():
    with pytest.raises(UserError, match=r"set model.backbone"):
        load(classifier(), blank(models.create("unet", SPEC, widths=(4, 8))))
    with pytest.raises(UserError, match="it has no convnext networks"):
        load(classifier(), backbone("convnext_micro"), "timm", strict=False)
    with pytest.raises(UserError, match="another network is expected"):
        load(classifier(), backbone("mobilenet_v3_micro"), "timm")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value):
    theirs = classifier()
    theirs["layer2.0.bn1.weight"][3] = value
    with pytest.raises(UserError, match=r"layer2.0.bn1.weight holds values that are not finite"):
        load(theirs, network(), strict=False)
    theirs = classifier()
    theirs["fc.bias"][0] = value
    assert load(theirs, network())[1].loaded


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_dtypes(dtype):
    theirs = {name: x.astype(dtype) for name, x in classifier().items()}
    kernel = leaf(load(theirs, network())[0], "params/backbone/conv1/conv/kernel")
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, theirs["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0))


NAMES = {  # layout, network: our leaf, their tensor
    ("torchvision", "resnet34"): {"layer2_3/conv2/norm/var": "layer2.3.bn2.running_var"},
    ("torchvision", "vgg16"): {
        "conv1_1/conv/bias": "features.2.bias",
        "conv2_0/conv/kernel": "features.5.weight",
        "conv5_2/conv/kernel": "features.28.weight",
    },
    ("torchvision", "vgg16_bn"): {
        "conv1_0/norm/scale": "features.1.weight",
        "conv3_2/conv/kernel": "features.20.weight",
        "conv5_2/norm/mean": "features.41.running_mean",
    },
    ("torchvision", "mobilenet_v2"): {
        "stem/conv/kernel": "features.0.0.weight",
        "block_0/depthwise/conv/kernel": "features.1.conv.0.0.weight",
        "block_0/project/conv/kernel": "features.1.conv.1.weight",
        "block_1/expand/norm/scale": "features.2.conv.0.1.weight",
        "block_16/project/norm/bias": "features.17.conv.3.bias",
        "last/norm/var": "features.18.1.running_var",
    },
    ("torchvision", "mobilenet_v3_large"): {
        "block_0/project/norm/mean": "features.1.block.1.1.running_mean",
        "block_3/squeeze/reduce/kernel": "features.4.block.2.fc1.weight",
        "block_3/squeeze/expand/bias": "features.4.block.2.fc2.bias",
        "block_3/project/conv/kernel": "features.4.block.3.0.weight",
        "block_6/project/conv/kernel": "features.7.block.2.0.weight",
        "last/conv/kernel": "features.16.0.weight",
    },
    ("torchvision", "mobilenet_v3_small"): {
        "block_0/squeeze/reduce/bias": "features.1.block.1.fc1.bias",
        "last/conv/kernel": "features.12.0.weight",
    },
    ("torchvision", "convnext_small"): {
        "stem/norm/scale": "features.0.1.weight",
        "stage1_2/depthwise/bias": "features.1.2.block.0.bias",
        "stage3_26/expand/kernel": "features.5.26.block.3.weight",
        "stage4_0/scale": "features.7.0.layer_scale",
        "downsample2/norm/bias": "features.2.0.bias",
        "downsample4/conv/kernel": "features.6.1.weight",
    },
    ("timm", "resnet50_deep"): {
        "conv1_0/norm/scale": "conv1.1.weight",
        "conv1_1/conv/kernel": "conv1.3.weight",
        "conv1_2/conv/kernel": "conv1.6.weight",
        "conv1_2/norm/var": "bn1.running_var",
        "layer1_0/downsample/conv/kernel": "layer1.0.downsample.0.weight",
    },
    ("timm", "mobilenet_v3_large"): {
        "stem/norm/bias": "bn1.bias",
        "block_0/project/conv/kernel": "blocks.0.0.conv_pw.weight",
        "block_0/project/norm/scale": "blocks.0.0.bn2.weight",
        "block_5/squeeze/reduce/kernel": "blocks.2.2.se.conv_reduce.weight",
        "block_14/project/conv/kernel": "blocks.5.2.conv_pwl.weight",
        "last/conv/kernel": "blocks.6.0.conv.weight",
    },
    ("timm", "mobilenet_v3_small"): {
        "block_10/depthwise/norm/var": "blocks.4.2.bn2.running_var",
        "last/norm/var": "blocks.5.0.bn1.running_var",
    },
    ("smp", "resnet50"): {"layer4_2/conv3/norm/scale": "encoder.layer4.2.bn3.weight"},
}


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), NAMES)
def test_names(layout, name):
    """Every leaf of a published backbone asks for a tensor of its own, by the name that the package has for it."""
    variables = backbone(name)
    shapes = {
        "/".join(key.key for key in path[1:]): x.shape for path, x in jax.tree_util.tree_leaves_with_path(variables)
    }
    some = next(iter(NAMES[layout, name].values()))
    wanted = match_tensors({some: np.zeros(1)}, shapes, variables["params"], layout, family(variables["params"])).wanted
    assert set(wanted) == set(shapes) and len(set(wanted.values())) == len(wanted)
    assert {ours: wanted[ours] for ours in NAMES[layout, name]} == NAMES[layout, name]


def test_epsilon_of_timm():
    """The sum of variance and epsilon is what a norm sees: timm's MobileNetV3 adds 1e-5, ours 1e-3."""
    before = backbone("mobilenet_v3_small")
    theirs = {"conv_stem.weight": np.zeros((16, 3, 3, 3)), "bn1.running_var": np.array([1e-7, 2.0] * 8)}
    variables, _ = load(theirs, before, "timm", strict=False)
    var = variables["batch_stats"]["stem"]["norm"]["var"]
    np.testing.assert_allclose(var + 1e-3, theirs["bn1.running_var"] + 1e-5, rtol=1e-4)
    theirs = {"features.0.1.running_var": theirs["bn1.running_var"]}
    variables, _ = load(theirs, before, strict=False)
    np.testing.assert_allclose(variables["batch_stats"]["stem"]["norm"]["var"], [1e-7, 2.0] * 8)


def test_bias_before_a_batch_norm():
    """torchvision's VGG has both; a norm takes off its mean what the bias added, so ours has it in the mean."""
    theirs = normal(conv("features.0", 64, 3, 3) | {"features.0.bias": (64,)} | norm("features.1", 64))
    variables, report = load(theirs, backbone("vgg16_bn"), strict=False)
    mean = theirs["features.1.running_mean"] - theirs["features.0.bias"]
    np.testing.assert_allclose(variables["batch_stats"]["conv1_0"]["norm"]["mean"], mean)
    assert report.unused == ()


def test_dense_layers_of_vgg():
    """A dense layer that took all pixels becomes a convolution of their size."""
    theirs = normal(
        {"features.0.weight": (64, 3, 3, 3), "classifier.0.weight": (6, 512 * 49), "classifier.3.weight": (6, 6)}
    )
    variables, report = load(theirs, network(backbone="vgg16", head="8s", width=6, aux=""), strict=False)
    kernel = theirs["classifier.0.weight"].reshape(6, 512, 7, 7).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(variables["params"]["fc6"]["kernel"], kernel)
    np.testing.assert_array_equal(variables["params"]["fc7"]["kernel"][0, 0], theirs["classifier.3.weight"].T)
    assert {"fc6/bias", "fc7/bias", "head/kernel", "up_c4/kernel"} <= set(report.missing)


def test_vgg_without_dense_layers():
    """torchvision's IMAGENET1K_FEATURES: nan for dense layers, Caffe's preprocessing, and the features as they are."""
    dense = {f"classifier.{i}.{leaf}": np.full((2, 2), np.nan) for i in (0, 3, 6) for leaf in ("weight", "bias")}
    shapes = {name: x.shape for name, x in backbone_tensors("vgg16").items()}
    variables, report = load(normal(shapes) | dense, network(backbone="vgg16", head="8s", width=6, aux=""))
    assert {name.partition("/")[0] for name in report.missing} >= {"fc6", "fc7", "head"} and not report.unused
    assert np.allclose(report.preprocess.mean, 255 * np.array([0.48235, 0.45882, 0.40784]))
    assert report.preprocess.std == (1.0, 1.0, 1.0)
    assert not untouched(variables, "params/backbone/conv5_2/conv/kernel")
    assert load(normal(shapes), backbone("vgg16"))[1].preprocess == weights.IMAGENET


def backbone_tensors(name):
    """State dict of torchvision's classifier without its dense layers."""
    ours = backbone(name)
    places = names.FAMILIES["torchvision", family(ours["params"])]
    tensors = {}
    for path, x in jax.tree_util.tree_leaves_with_path(ours["params"]):
        place = names.translate("/".join(key.key for key in path), places.rules(ours["params"]))
        tensors[places.prefixes[0] + place] = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x
    return tensors


def test_settings_of_smp_deeplab():
    """What makes our network theirs is in the report, and in the error where the network is another one."""
    shapes = resnet(prefix="encoder.") | conv("decoder.block1.0", 48, 32, 1)
    ours = network("deeplabv3plus", width=8)
    report = load(normal(shapes), ours, "smp", strict=False)[1]
    assert report.align_corners and report.settings["variant"] == "smp" and "align_corners" in str(report)
    with pytest.raises(
        UserError, match=r"model.variant='smp', .*model.atrous_rates=\(12, 24, 36\), model.refine=1, model.fuse=1"
    ):
        load(normal(shapes), ours, "smp")


def test_settings_that_no_shape_tells():
    """Given the network, another one's weights are refused; the right place of an auxiliary head is told."""
    ours = models.create("fcn", SPEC, backbone="resnet_micro", aux="c4", variant="torchvision")
    assert load(fcn(), blank(ours), model=ours)[1].settings["aux"] == "c4"
    for changes, message in [
        ({"output_stride": 16}, "model.output_stride=8"),
        ({"variant": "atrous"}, "'torchvision'"),
    ]:
        other = ours.clone(**changes)
        assert load(fcn(), blank(other))[1].loaded
        with pytest.raises(UserError, match=f"weights of another network: set .*{message}.*check_settings=False here"):
            load(fcn(), blank(other), model=other)
    with pytest.raises(UserError, match=r"have another shape.*.*model.aux='c4'"):
        load(fcn(), network(aux="c3", variant="torchvision"))


def test_shapes_must_be_filled():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), network())
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(load(fcn(), shapes)[0]))
    with pytest.raises(UserError, match=r"does not have values for .*: initialise the network first"):
        load(classifier(), shapes)


@pytest.mark.slow
def test_a_run_starts_from_weights(tmp_path):
    """Parameters, statistics and averages are the weights'; other inputs or another convention are refused."""
    safetensors = pytest.importorskip("safetensors.numpy")
    path = str(tmp_path / "fcn.safetensors")
    safetensors.save_file(fcn(classes=10), path)
    imagenet = Preprocess((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

    def start(preprocess=imagenet, variant="torchvision", **settings):
        model = models.create("fcn", SPEC, backbone="resnet_micro", aux="c4", variant=variant)
        tx, _ = optimizer.make_optimizer(10, 0)
        first = state.init_state(model, tx, (1, 64, 64, 3), True, 0, parallel.make_mesh())
        return first, *start_from(first, model, preprocess, **settings)

    first, train_state, origin = start(weights=path)
    assert "reinitialised for 3 classes instead of 10: " in origin and path in origin
    kernel = fcn(10)["backbone.conv1.weight"].transpose(2, 3, 1, 0)
    for params in (train_state.params, train_state.ema["params"]):
        np.testing.assert_array_equal(params["backbone"]["conv1"]["conv"]["kernel"], kernel)
        np.testing.assert_array_equal(params["head"]["kernel"], first.params["head"]["kernel"])
    assert not np.allclose(train_state.batch_stats["backbone"]["conv1"]["norm"]["mean"], 0)
    assert jax.tree.map(lambda x: x.sharding, train_state) == jax.tree.map(lambda x: x.sharding, first)
    other = Preprocess((127.5,) * 3, (64.0,) * 3)
    with pytest.raises(UserError, match=r"set preprocess.mean=\(123.675, .*or init.check_inputs=False"):
        start(other, weights=path)
    with pytest.raises(UserError, match=r"init\.check_inputs=False"):
        start(Preprocess((127.5,), (64.0,)), weights=path)
    with pytest.raises(UserError, match=r"set model.variant='torchvision', or .*init.check_settings=False"):
        start(variant="atrous", weights=path)
    assert "loaded" in start(other, "atrous", weights=path, check_settings=False, check_inputs=False)[2]


@pytest.mark.slow
def test_resume_comes_before_weights_and_weights_before_scratch(tmp_path, capsys):
    """A run says where it starts from, and does."""
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "fcn.safetensors"
    safetensors.save_file(fcn(classes=10), str(path))
    image = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    data = {"train": {"image": image, "label": image.argmax(-1).astype(np.uint8)}}
    source = arrays("train", data=data, classes=("a", "b", "c"))

    def run(steps):
        config = default_config(source="arrays", model="fcn")
        config.preprocess.mean, config.preprocess.std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
        config.model.backbone, config.model.aux, config.model.variant = "resnet_micro", "c4", "torchvision"
        config.data.crop, config.data.batch_size, config.eval.batch_size = (32, 32), 4, 4
        config.optimizer.learning_rate, config.optimizer.weight_decay = 0.0, 0.0
        config.init.weights, config.loading.loader, config.log.tensorboard = str(path), "threads", False
        config.run.total = steps
        loop.train_and_evaluate(config, str(tmp_path / "run"), sources={"train": source, "test": source})
        out = capsys.readouterr()
        return out.out + out.err

    assert f"{path}: loaded" in run(1)
    config, spec = workdir.read_config(str(tmp_path / "run"))
    _, train_state, _ = restore(config, spec, str(tmp_path / "run"))
    kernel = fcn(10)["backbone.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(train_state.params["backbone"]["conv1"]["conv"]["kernel"], kernel)
    path.unlink()
    assert "resumed at step 1; init.weights" in run(2)
