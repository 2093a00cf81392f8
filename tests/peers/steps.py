"""Times the train step and the forward pass beside PyTorch's, on one machine, in turns.

    python tests/peers/steps.py [--device cpu|gpu] [--dtype float32|bfloat16] [--models unet deeplabv3plus]
                                [--size 512] [--batch 0] [--seconds 5] [--rounds 3]

segjax runs the steps that a configuration trains and evaluates with: from uint8 images, and the forward pass ends in
confusion counts. PyTorch starts from normalised float32 images and ends in the classes, channels-last; on a GPU under
autocast and torch.compile. Both have SGD with momentum and the cross-entropy of 19 classes. `unet` has 32 .. 256
channels on a CPU and 64 .. 1024 on a GPU, with the same number of parameters in both; `deeplabv3plus` has a ResNet-50
and is that of segmentation_models.pytorch.

On a CPU each has a process of 2 threads, and they take turns. On a GPU --batch 0 doubles the batch until one of them
runs out of memory, each batch in a process of its own, and compares at the largest that both could run. Ratios are
PyTorch's median time over segjax's: above 1, segjax is faster; on a busy machine those of the least times say more. The
last line is JSON.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

CLASSES, THREADS, MOMENTUM, RATE = 19, 2, 0.9, 0.01
WIDTHS = {"cpu": (32, 64, 128, 256), "gpu": (64, 128, 256, 512, 1024)}
DEFAULTS = {"cpu": ("float32", (192, 256), 4), "gpu": ("bfloat16", (512, 512), 4)}


def configuration(model, batch, size, dtype, widths):
    """segjax's configuration of a model."""
    from segjax.config import default_config

    config = default_config(source="noise", model=model)
    config.source.size = config.data.crop = size
    config.source.count = config.data.batch_size = config.eval.batch_size = batch
    config.model.dtype, config.parallel.devices, config.loading.loader = dtype, 1, "threads"
    config.optimizer.name, config.optimizer.momentum, config.optimizer.learning_rate = "sgd", MOMENTUM, RATE
    config.optimizer.schedule, config.optimizer.weight_decay = "constant", 0.0
    if model == "unet":
        config.model.widths = widths
    else:
        config.model.variant = "smp"
    return config


def ours(config):
    """Calls of segjax's compiled steps and of its metric, and the number of parameters."""
    import jax
    import numpy as np

    from segjax.metrics import confusion
    from segjax.profile import aot, timing
    from segjax.spec import DatasetSpec
    from segjax.train import components

    source = components.open_source(config, config.splits.train)
    parts = components.build_components(config, source.spec)
    train = components.train_batches(config, parts, source)
    state = components.make_training(config, parts, train).init_state()
    calls = {}
    for program, name in zip(aot.step_programs(config, ("train", "eval")), ("train", "forward"), strict=True):
        calls[name] = timing.step_call(program, aot.compile_program(program)[0], config, parts, state)
    label = np.random.default_rng(0).integers(0, CLASSES, (config.data.batch_size, *config.data.crop), np.int32)
    label, valid = jax.device_put(label), jax.device_put(label >= 0)
    count = jax.jit(lambda a, b, valid: confusion.confusion_matrix(a, b, valid, CLASSES))
    calls["metric"] = lambda: confusion.update(
        confusion.new(DatasetSpec(tuple(map(str, range(CLASSES))))), count(label[::-1], label, valid)
    )
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    return {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()}, parameters


def plain_unet(widths):
    """The U-Net that segjax's plain one is, in PyTorch."""
    import torch
    from torch import nn

    def block(given, features):
        layers = []
        for channels in (given, features):
            layers += [nn.Conv2d(channels, features, 3, padding=1, bias=False), nn.BatchNorm2d(features), nn.ReLU(True)]
        return nn.Sequential(*layers)

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.ModuleList(block(*pair) for pair in zip((3, *widths), widths, strict=False))
            pairs = list(itertools.pairwise(widths))
            self.enlarge = nn.ModuleList(nn.ConvTranspose2d(below, features, 2, 2) for features, below in pairs)
            self.up = nn.ModuleList(block(2 * features, features) for features in widths[:-1])
            self.head = nn.Conv2d(widths[0], CLASSES, 1)

        def forward(self, x):
            skips = []
            for level, down in enumerate(self.down):
                x = down(nn.functional.max_pool2d(x, 2) if level else x)
                skips.append(x)
            x = skips.pop()
            for level in reversed(range(len(skips))):
                x = self.up[level](torch.cat([self.enlarge[level](x), skips[level]], 1))
            return self.head(x)

    return UNet()


def smp_deeplab():
    """DeepLabV3+ of segmentation_models.pytorch."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # Its compiled operators, which these models do not use, are of another PyTorch: declared, it can be imported.
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        names = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
        declared = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms", "qroi_align", *names, *(f"_{name}_backward" for name in names)):
            declared.define(f"{name}() -> ()")
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=CLASSES)


def theirs(model, batch, size, dtype, widths, device):
    """Calls of PyTorch's steps, and the number of parameters."""
    import torch

    torch.set_num_threads(THREADS)
    kind = {"cpu": "cpu", "gpu": "cuda"}[device]
    net = plain_unet(widths) if model == "unet" else smp_deeplab()
    net = net.to(kind, memory_format=torch.channels_last)
    parameters = sum(p.numel() for p in net.parameters())
    run = torch.compile(net) if device == "gpu" else net
    x = torch.randn(batch, 3, *size).to(kind, memory_format=torch.channels_last)
    y = torch.randint(0, CLASSES, (batch, *size)).to(kind)
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=MOMENTUM)
    cast = torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16")
    wait = torch.cuda.synchronize if device == "gpu" else lambda: None

    def train():
        net.train()
        optimizer.zero_grad()
        with cast:
            loss = torch.nn.functional.cross_entropy(run(x), y)
        loss.backward()
        optimizer.step()
        wait()

    def forward():
        net.eval()
        with torch.inference_mode(), cast:
            run(x).argmax(1)
        wait()

    return {"train": train, "forward": forward}, parameters


def work(who, given, size, widths):
    """The life of a process: compiles, and times each call for as many seconds as each line of its input says."""
    try:
        if who == "segjax":
            calls, parameters = ours(configuration(given.models[0], given.batch, size, given.dtype, widths))
        else:
            calls, parameters = theirs(given.models[0], given.batch, size, given.dtype, widths, given.device)
        for call in [*calls.values()] * 2:
            call()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and type(error).__name__ != "OutOfMemoryError":
            raise
        return print("full", flush=True)
    print(parameters, flush=True)
    for line in sys.stdin:
        print(json.dumps({name: timed(call, float(line)) for name, call in calls.items()}), flush=True)


def timed(call, seconds):
    """Seconds of each of three calls, or more."""
    times = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times


@contextlib.contextmanager
def worker(who, model, batch, given, size):
    """A process that waits for turns; None where it ran out of memory."""
    command = [sys.executable, __file__, "--worker", who, "--models", model, "--batch", str(batch)]
    command += ["--device", given.device, "--dtype", given.dtype, "--size", "x".join(map(str, size))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        answer = process.stdout.readline().strip()
        if not answer:
            sys.exit(f"{who} failed.")

        def turn(seconds):
            print(seconds, file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield None if answer == "full" else (turn, int(answer))
        process.stdin.close()


def in_turns(model, batch, given, size):
    """Times of both, which live side by side."""
    times = {}
    with worker("segjax", model, batch, given, size) as a, worker("torch", model, batch, given, size) as b:
        found = {"segjax": a, "torch": b}
        for _ in range(given.rounds):
            for who, (turn, _) in found.items():
                for name, each in turn(given.seconds / given.rounds).items():
                    times.setdefault(who, {}).setdefault(name, []).extend(each)
    return batch, times, {who: parameters for who, (_, parameters) in found.items()}


def largest(model, given, size):
    """Times of both at the largest batch that both can run, by doubling."""
    batch, best = DEFAULTS["gpu"][2], None
    while True:
        times, parameters = {}, {}
        for who in ("segjax", "torch"):
            with worker(who, model, batch, given, size) as found:
                if found is None:
                    return best or sys.exit(f"{model}: {who} cannot run {batch} images.")
                turn, parameters[who] = found
                times[who] = turn(given.seconds)
        batch, best = 2 * batch, (batch, times, parameters)


def compare(model, given, size):
    """Times a model in both; prints a line and returns its figures."""
    if given.device == "gpu" and not given.batch:
        batch, times, parameters = largest(model, given, size)
    else:
        batch, times, parameters = in_turns(model, given.batch or DEFAULTS[given.device][2], given, size)
    assert parameters["segjax"] == parameters["torch"], f"{model} is not the same network: {parameters}"
    ms = {who: {name: 1e3 * statistics.median(each) for name, each in times[who].items()} for who in times}
    facts = {"batch": batch, "parameters": parameters["segjax"]}
    for name in ("train", "forward"):
        mine, peer = ms["segjax"][name], ms["torch"][name]
        least = min(times["torch"][name]) / min(times["segjax"][name])
        facts |= {f"{name}_ms": round(mine, 1), f"torch_{name}_ms": round(peer, 1)}
        facts |= {f"{name}_ratio": round(peer / mine, 2), f"{name}_ratio_of_least": round(least, 2)}
        print(
            f"{model:14} {name:8} batch {batch}: segjax {mine:8.1f} ms {1e3 * batch / mine:8.1f} images/s, "
            f"PyTorch {peer:8.1f} ms {1e3 * batch / peer:8.1f} images/s, ratio {peer / mine:.2f}, of the least times "
            f"{least:.2f}",
            flush=True,
        )
    share = ms["segjax"]["metric"] / ms["segjax"]["train"]
    print(f"{model:14} metric   {ms['segjax']['metric']:.2f} ms, {share:.1%} of the train step", flush=True)
    return facts | {"metric_ms": round(ms["segjax"]["metric"], 2), "metric_share": round(share, 4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--models", nargs="+", choices=("unet", "deeplabv3plus"), default=["unet", "deeplabv3plus"])
    parser.add_argument("--size", help="512 or 192x256, the default on a CPU")
    parser.add_argument("--batch", type=int, default=0, help="0: 4 on a CPU, the largest of both on a GPU")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each step of each framework")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=("segjax", "torch"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    dtype, size, _ = DEFAULTS[given.device]
    given.dtype = given.dtype or dtype
    if given.size:
        rows, _, columns = given.size.partition("x")
        size = int(rows), int(columns or rows)
    if given.worker:
        return work(given.worker, given, size, WIDTHS[given.device])
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[given.device]
    if given.device == "cpu":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        facts = {model: compare(model, given, size) for model in given.models}
    print(json.dumps({"device": given.device, "dtype": given.dtype, "size": size, **facts}))


if __name__ == "__main__":
    main()
