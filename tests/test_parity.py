"""The same weights give the same numbers as in torchvision, timm and segmentation_models.pytorch.

Random weights and random running statistics, float32. `pip install torch`, then `pip install --no-deps torchvision timm
segmentation-models-pytorch` (and safetensors, huggingface_hub, pyyaml, tqdm): PyTorch is never a dependency of segjax.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from parts import make_task
from state_dicts import load

from segjax import models, weights
from segjax.models.fcn import bilinear
from segjax.nn import backbones
from segjax.nn.aspp import ASPP
from segjax.nn.layers import ConvNorm, LayerConfig, UpConv2x2
from segjax.nn.resize import nearest, resize
from segjax.spec import DatasetSpec

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch", reason="parity is checked where PyTorch is installed")

SPEC = DatasetSpec(("sky", "road", "car", "tree", "sign"))
BIG, LITTLE = ((256, 320), (257, 321)), ((64, 96), (65, 97))  # one network of each family is compared at the former

# torchvision registers Python halves of two operators when it is imported, which fails where its compiled ones are
# missing (`pip install --no-deps` beside a PyTorch that they were not built for). Their signatures are enough.
OPERATORS = "nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a, Tensor b, float c) -> Tensor"
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


@pytest.fixture(scope="module", autouse=True)
def torchvision():
    """The package, also without its compiled operators."""
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:
        for operator in OPERATORS:
            LIBRARY.define(operator)
        return importlib.import_module("torchvision")


def segmentation(name, **options):
    module = importlib.import_module("torchvision.models.segmentation")
    return getattr(module, name)(weights=None, weights_backbone=None, num_classes=5, **options)


def classification(name):
    return getattr(importlib.import_module("torchvision.models"), name)(weights=None)


def timm(name):
    return pytest.importorskip("timm").create_model(name)


def smp(name, encoder, **options):
    package = pytest.importorskip("segmentation_models_pytorch")
    return getattr(package, name)(encoder, encoder_weights=None, classes=5, **options)


def randomised(net):
    """Norms, biases and statistics as no initialiser leaves them; kernels stay as they were drawn."""
    draw = torch.Generator().manual_seed(0)
    for name, x in net.state_dict().items():
        if name.endswith("running_var") or (x.ndim == 1 and name.endswith("weight")):
            x.uniform_(0.5, 1.5, generator=draw)
        elif name.endswith(("running_mean", "bias")):
            x.normal_(0, 0.1, generator=draw)
        elif name.endswith("layer_scale"):
            x.uniform_(0.1, 0.5, generator=draw)
    return net.eval()


def loaded(net, peer, layout, images=(64, 64)):
    """Variables of our network with the peer's weights, all of which must be found."""
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, *images, 3)), train=False))
    blank = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), shapes)
    return load(peer.state_dict(), blank, layout)


def pictures(size, count=1):
    return np.random.default_rng(size).normal(size=(count, *size, 3)).astype(np.float32)


def torched(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def channels_last(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def agree(ours, theirs, share=1e-4):
    """At most this share of the values' range lies between ours and theirs, which vary over the image."""
    ours, theirs = np.asarray(ours), channels_last(theirs)
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    assert np.ptp(theirs, axis=(1, 2)).max() > 1e-2 * np.ptp(theirs) > 0
    assert np.abs(ours - theirs).max() <= share * np.ptp(theirs)


TV, SMP = {"variant": "torchvision"}, {"variant": "smp", "atrous_rates": (12, 24, 36), "refine": 1, "fuse": 1}
MOBILE = TV | {"backbone": "mobilenet_v3_large", "output_stride": 16}
NETWORKS = {  # theirs, ours, sizes
    "fcn_resnet50": (lambda: segmentation("fcn_resnet50", aux_loss=True), "torchvision",
                     ("fcn", TV | {"backbone": "resnet50", "aux": "c4"}), BIG),
    "deeplabv3_resnet50": (lambda: segmentation("deeplabv3_resnet50", aux_loss=True), "torchvision",
                           ("deeplabv3", TV | {"output_stride": 8, "aux": "c4"}), LITTLE),
    "deeplabv3_mobilenet_v3_large": (lambda: segmentation("deeplabv3_mobilenet_v3_large", aux_loss=True), "torchvision",
                                     ("deeplabv3", MOBILE | {"atrous_rates": (12, 24, 36), "aux": "c3"}), BIG),
    "lraspp_mobilenet_v3_large": (lambda: segmentation("lraspp_mobilenet_v3_large"), "torchvision",
                                  ("lraspp", {}), BIG),
    "unet_resnet18": (lambda: smp("Unet", "resnet18"), "smp", ("unet", {"backbone": "resnet18"}), BIG),
    "deeplabv3plus_resnet18": (lambda: smp("DeepLabV3Plus", "resnet18"), "smp",
                               ("deeplabv3plus", SMP | {"backbone": "resnet18"}), (BIG[0],)),
    "deeplabv3plus_resnet50": (lambda: smp("DeepLabV3Plus", "resnet50"), "smp",
                               ("deeplabv3plus", SMP | {"backbone": "resnet50"}), LITTLE[:1]),
    "deeplabv3plus_resnet50_stride8": (lambda: smp("DeepLabV3Plus", "resnet50", encoder_output_stride=8), "smp",
                                       ("deeplabv3plus", SMP | {"output_stride": 8, "atrous_rates": (6, 12, 18)}),
                                       LITTLE[:1]),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    """Logits of each published segmentation network, enlarged to the image as its own package does.

    smp's DeepLabV3Plus refuses images whose size is no multiple of 16, so it is compared at even sizes only.
    """
    make, layout, (model, options), sizes = NETWORKS[name]
    torch.manual_seed(0)
    peer = randomised(make())
    net = models.create(model, SPEC, **options)
    variables, report = loaded(net, peer, layout)
    assert not (report.missing or report.unused or report.mismatched or report.reinitialised)
    if name != "deeplabv3plus_resnet50_stride8":  # which no tensor tells from stride 16
        given = {key: value for key, value in options.items() if key in ("backbone", "aux")}
        assert net == models.create(model, SPEC, **given | report.settings), "the report's settings make it theirs"
    corners = report.align_corners
    assert corners == (model == "deeplabv3plus")

    @jax.jit
    def forward(variables, images):
        outputs = net.apply(variables, images, train=False)
        return {key: resize(x, images.shape[1:3], corners) for key, x in outputs.items()}

    for size in sizes:
        images = pictures(size)
        with torch.inference_mode():
            theirs = peer(torched(images))
        theirs = theirs if isinstance(theirs, dict) else {"out": theirs}
        ours = forward(variables, images)
        agree(ours["logits"], theirs["out"])
        assert ("aux" in ours) == ("aux" in theirs)
        if "aux" in ours:
            agree(ours["aux"], theirs["aux"])


CLASSIFIERS = {  # the modules whose results are c1 .. c5, and sizes
    "resnet18": ("relu layer1 layer2 layer3 layer4", BIG),
    "resnet50": ("relu layer1 layer2 layer3 layer4", LITTLE),
    "resnet152": ("relu layer1 layer2 layer3 layer4", LITTLE),
    "vgg16": ("features.4 features.9 features.16 features.23 features.30", LITTLE),
    "vgg16_bn": ("features.6 features.13 features.23 features.33 features.43", LITTLE),
    "mobilenet_v2": ("features.1 features.3 features.6 features.13 features.18", BIG),
    "mobilenet_v3_large": ("features.1 features.3 features.6 features.12 features.16", BIG),
    "mobilenet_v3_small": ("features.0 features.1 features.3 features.8 features.12", LITTLE),
    "convnext_tiny": ("features.1 features.3 features.5 features.7", BIG),
    "convnext_small": ("features.1 features.3 features.5 features.7", LITTLE),
}


def same_features(name, peer, layout, sizes, run):
    net = backbones.create(name, layer_config=LayerConfig())
    variables, report = loaded(net, peer, layout)
    assert not (report.missing or report.mismatched)
    forward = jax.jit(lambda variables, images: net.apply(variables, images, train=False))
    for size in sizes:
        images = pictures(size)
        ours = forward(variables, images)
        with torch.inference_mode():
            theirs = run(torched(images))
        for tap, x in zip(["c1", "c2", "c3", "c4", "c5"][-len(theirs) :], theirs, strict=True):
            agree(ours[tap], x)
    return report


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name):
    """Features of torchvision's image classifiers at every stride; their dense layers are reported as unused."""
    torch.manual_seed(0)
    peer = randomised(classification(name))
    taps, sizes = CLASSIFIERS[name]
    modules = [peer.get_submodule(tap) for tap in taps.split()]
    maps = {}
    for module in modules:
        module.register_forward_hook(lambda module, inputs, result: maps.update({module: result}))

    def run(images):
        # The features alone: VGG's dense layers would cost more than they.
        peer(images) if name.startswith("resnet") else peer.features(images)
        return [maps[module] for module in modules]

    report = same_features(name, peer, "torchvision", sizes, run)
    head = "fc" if name.startswith("resnet") else "classifier"
    assert report.unused and all(unused.startswith(f"{head}.") for unused in report.unused)
    assert report.preprocess == weights.IMAGENET


@pytest.mark.parametrize(
    ("name", "ours", "sizes"),
    [
        ("resnet18", "resnet18", LITTLE),
        ("resnet50", "resnet50", LITTLE),
        ("resnet50s", "resnet50_deep", LITTLE),
        ("mobilenetv3_large_100", "mobilenet_v3_large", BIG),
        ("mobilenetv3_small_100", "mobilenet_v3_small", LITTLE),
    ],
)
def test_timm(name, ours, sizes):
    """Features of timm's networks at every stride."""
    torch.manual_seed(0)
    peer = randomised(timm(name))
    report = same_features(ours, peer, "timm", sizes, lambda x: peer.forward_intermediates(x, intermediates_only=True))
    assert {unused.partition(".")[0] for unused in report.unused} <= {"fc", "conv_head", "classifier"}
    assert report.preprocess is None


def test_dense_layers_of_vgg():
    """The paper's FCN sees at the middle pixel of a 224x224 image what VGG's dense layers see."""
    torch.manual_seed(0)
    peer = randomised(classification("vgg16"))
    net = models.create("fcn", SPEC, backbone="vgg16", head="8s")
    variables, report = loaded(net, peer, "torchvision", (224, 224))
    assert {name.partition("/")[0] for name in report.missing} == {"head", "head_c3", "head_c4", "up_c3", "up_c4"}
    images = pictures((224, 224))

    @jax.jit
    def dense(variables, images):
        kept = net.apply(variables, images, False, capture_intermediates=lambda module, _: module.name == "fc7",
                         mutable="intermediates")  # fmt: skip
        return nn.relu(kept[1]["intermediates"]["fc7"]["__call__"][0][:, 3:4, 3:4])

    with torch.inference_mode():
        features = peer.avgpool(peer.features(torched(images))).flatten(1)
        theirs = peer.classifier[:5](features).numpy()
    ours = np.asarray(dense(variables, images))[:, 0, 0]
    assert np.ptp(theirs) > 0 and np.abs(ours - theirs).max() <= 1e-4 * np.ptp(theirs)


STEPS = {
    "deeplabv3_resnet50": (lambda: segmentation("deeplabv3_resnet50"), "torchvision",
                           ("deeplabv3", TV | {"output_stride": 8, "dropout": 0.0})),
    "unet_resnet18": (lambda: smp("Unet", "resnet18"), "smp", ("unet", {"backbone": "resnet18"})),
}  # fmt: skip


def flat(tree):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def well_conditioned(peer):
    """Norms that leave most values positive, and no dropout, whose draws nobody shares.

    Where a value is within rounding of ReLU's kink, float32 and float64 differ in the gradient by more than a
    thousandth in a network of random weights: PyTorch's own do, by 3 %.
    """
    draw = torch.Generator().manual_seed(0)
    for module in peer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0, generator=draw)
            torch.nn.init.uniform_(module.bias, 2.0, 3.0, generator=draw)
    return peer.train()


@pytest.mark.parametrize("name", STEPS)
def test_training_step(name):
    """Loss, gradients of the first and the last convolution, and running statistics of one step."""
    make, layout, (model, options) = STEPS[name]
    torch.manual_seed(0)
    peer = well_conditioned(randomised(make()))
    net = models.create(model, SPEC, **options)
    variables, _ = loaded(net, peer, layout)
    before = {key: x.clone() for key, x in peer.state_dict().items()}
    # Smooth images and labels in blocks: with noise for both, gradients are small differences of large sums.
    images = np.asarray(resize(jnp.asarray(pictures((7, 9), 4)), (65, 97)))
    blocks = np.add.outer(np.arange(65) * 3 // 65, np.arange(97) * 2 // 97 * 2)
    labels = np.add.outer(np.arange(4), blocks) % len(SPEC.classes)

    outputs = peer(torched(images))
    outputs = outputs["out"] if isinstance(outputs, dict) else outputs
    loss = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(labels))
    loss.backward()

    @jax.jit
    def step(variables, images, labels):
        def mean_loss(params):
            outputs, stats = net.apply(variables | {"params": params}, images, train=True, mutable="batch_stats")
            logits = resize(outputs["logits"], images.shape[1:3])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats["batch_stats"]

        return jax.value_and_grad(mean_loss, has_aux=True)(variables["params"])

    (ours, stats), gradients = step(variables, images, labels.astype(np.int32))
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-3)

    # The loader brings PyTorch's statistics and gradients into our tree.
    expected = flat(load(peer.state_dict(), variables, layout)[0]["batch_stats"])
    old, new = flat(variables["batch_stats"]), flat(stats)
    assert len(expected) == len(new) == 2 * sum(isinstance(m, torch.nn.BatchNorm2d) for m in peer.modules())
    for key, x in expected.items():
        assert np.abs(new[key] - x).max() <= 1e-3 * np.abs(x - old[key]).max() > 0, key

    slopes = before | {key: x.grad for key, x in peer.named_parameters()}
    expected, gradients = flat(load(slopes, variables, layout)[0]["params"]), flat(gradients)
    for key in ("backbone/conv1/conv/kernel", "head/kernel"):
        assert np.abs(gradients[key] - expected[key]).max() <= 1e-3 * np.abs(expected[key]).max() > 0, key


@pytest.mark.parametrize("size", [(9, 13), (7, 29), (20, 11), (1, 1), (14, 26)])
@pytest.mark.parametrize("corners", [False, True])
def test_bilinear_resize(size, corners):
    """Half-pixel centres, or the corners' upon each other; never smoothed, where JAX does so when it shrinks."""
    x = np.random.default_rng(0).normal(size=(2, 7, 13, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torched(x), size, mode="bilinear", align_corners=corners)
    np.testing.assert_allclose(resize(jnp.asarray(x), size, corners), channels_last(theirs), atol=2e-6)


def test_resize_does_not_smooth():
    """The resize of JAX is another one by default: it smooths when it shrinks."""
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype(np.float32)
    ours = resize(jnp.asarray(x), (7, 7))
    assert np.abs(jax.image.resize(x, (1, 7, 7, 1), "bilinear") - ours).max() > 0.1
    np.testing.assert_allclose(jax.image.resize(x, (1, 7, 7, 1), "bilinear", antialias=False), ours, atol=2e-6)


@pytest.mark.parametrize("size", [(14, 26), (15, 27), (13, 25), (5, 8), (7, 13)])
def test_nearest_resize(size):
    """PyTorch's "nearest" rounds down, where JAX's takes the nearest centre."""
    x = np.random.default_rng(0).normal(size=(2, 7, 13, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torched(x), size, mode="nearest")
    np.testing.assert_array_equal(nearest(jnp.asarray(x), size), channels_last(theirs))


@pytest.mark.parametrize("size", [(3, 4), (1, 1)])
def test_batch_norm(size):
    """Momentum is the share that is kept (PyTorch's is the other one), the running variance the unbiased one."""
    x = np.random.default_rng(0).normal(1, 2, size=(2, *size, 5)).astype(np.float32)
    images = jnp.asarray(x)
    kernel = np.eye(5, dtype=np.float32)[None, None]
    layer = ConvNorm(5, LayerConfig(momentum=0.9), 1, activation=None)
    variables = layer.init(jax.random.key(0), images, train=False)
    variables = {"params": variables["params"] | {"conv": {"kernel": kernel}}, "batch_stats": variables["batch_stats"]}
    ours, stats = layer.apply(variables, images, train=True, mutable="batch_stats")
    stats = stats["batch_stats"]["norm"]
    norm = torch.nn.BatchNorm2d(5, eps=1e-5, momentum=0.1)
    np.testing.assert_allclose(ours, channels_last(norm(torched(x))), atol=1e-5)
    np.testing.assert_allclose(stats["mean"], norm.running_mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], norm.running_var, rtol=1e-5)


@pytest.mark.parametrize("weights", [(0.5, 1.0, 3.0), (0.0, 1.0, 3.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["multiclass", "binary"])
def test_class_weights_and_label_smoothing(mode, smoothing, weights):
    """The loss and its gradient are those of CrossEntropyLoss, ignored pixels and a weight of 0 included."""
    classes = 2 if mode == "binary" else 3
    random = np.random.default_rng(0)
    logits, label = random.normal(size=(2, 5, 7, classes)), random.integers(0, classes, (2, 5, 7))
    if mode == "binary":
        logits[..., 0] = 0
    label[:, 1:3] = 255
    weights = weights[:classes]
    theirs = torched(logits.astype(np.float32)).requires_grad_()
    criterion = torch.nn.CrossEntropyLoss(torch.tensor(weights), ignore_index=255, label_smoothing=smoothing)
    expected = criterion(theirs, torch.from_numpy(label))
    expected.backward()
    spec = DatasetSpec(("a", "b", "c")[:classes])
    loss = make_task(spec, mode=mode, class_weights=weights, label_smoothing=smoothing).objective.loss
    own = jnp.asarray(logits[..., -1:] if mode == "binary" else logits, jnp.float32)
    value, slope = jax.value_and_grad(lambda x: loss({"logits": x}, {"label": jnp.asarray(label, jnp.uint8)})[0])(own)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(slope, channels_last(theirs.grad)[..., -own.shape[-1] :], rtol=1e-4, atol=1e-7)


def test_image_pooling():
    """A window of the training crop's size is the whole image at that size, and stays that large on larger images."""
    options = {"backbone": "resnet_micro", "width": 8}
    whole = models.create("deeplabv3", SPEC, **options)
    window = models.create("deeplabv3", SPEC, pooling=(33, 49), **options)
    variables = jax.jit(whole.init, static_argnums=2)(jax.random.key(0), pictures((33, 49)), False)
    one, other = (jax.jit(net.apply, static_argnums=2)(variables, pictures((33, 49)), False) for net in (whole, window))
    np.testing.assert_array_equal(one["logits"], other["logits"])

    x = np.random.default_rng(0).normal(size=(2, 9, 11, 6)).astype(np.float32)
    pyramid = ASPP(4, LayerConfig(), (1, 2, 3), (5, 7), False, 0.0, "atrous")
    variables = pyramid.init(jax.random.key(0), jnp.asarray(x), train=False)
    kept = pyramid.apply(variables, jnp.asarray(x), False, mutable="intermediates",
                         capture_intermediates=lambda module, _: module.name == "pool")[1]  # fmt: skip
    kernel = torch.from_numpy(np.array(variables["params"]["pool"]["conv"]["kernel"][0, 0].T))[..., None, None]
    means = torch.nn.functional.avg_pool2d(torched(x), (5, 7), stride=1)
    theirs = torch.relu(torch.nn.functional.conv2d(means, kernel) / np.sqrt(1 + 1e-5))
    np.testing.assert_allclose(kept["intermediates"]["pool"]["__call__"][0], channels_last(theirs), atol=1e-6)


def transposed_kernel(weight):
    """(I, O, h, w) to (h, w, I, O), reversed: JAX slides the kernel over the dilated maps, PyTorch its mirror image."""
    return weight.detach().numpy().transpose(2, 3, 0, 1)[::-1, ::-1]


def test_transposed_convolution():
    """Kernels of PyTorch's transposed convolutions are reversed in ours: 2x2 of stride 2, and 4x4 with padding 1."""
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    torch.manual_seed(0)
    peer = torch.nn.ConvTranspose2d(3, 4, 2, 2)
    params = {"kernel": transposed_kernel(peer.weight), "bias": peer.bias.detach().numpy()}
    ours = UpConv2x2(4).apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(ours, channels_last(peer(torched(x))), atol=1e-6)

    peer = torch.nn.ConvTranspose2d(3, 4, 4, 2, padding=1, bias=False)
    params = {"kernel": transposed_kernel(peer.weight)}
    up = nn.ConvTranspose(4, (4, 4), (2, 2), use_bias=False)
    np.testing.assert_allclose(up.apply({"params": params}, x), channels_last(peer(torched(x))), atol=1e-6)


def test_bilinear_upsampling():
    """The FCN's upsampling starts as PyTorch's bilinear resize; it differs at the border, where it sees zeros."""
    x = np.random.default_rng(0).normal(size=(1, 5, 7, 3)).astype(np.float32)
    up = nn.ConvTranspose(3, (4, 4), (2, 2), use_bias=False)
    ours = up.apply({"params": {"kernel": bilinear(jax.random.key(0), (4, 4, 3, 3))}}, x)
    theirs = channels_last(torch.nn.functional.interpolate(torched(x), (10, 14), mode="bilinear"))
    np.testing.assert_allclose(ours[:, 1:-1, 1:-1], theirs[:, 1:-1, 1:-1], atol=1e-6)
    assert np.abs(ours - theirs)[:, 0].max() > 1e-3
