"""Times the input pipeline beside a torch DataLoader with albumentations that does the same work.

    python tests/peers/input.py [--folder DIR] [--seconds 10] [--rounds 5]

Both read 480x360 JPEG images and PNG label maps, zoom 0.5 .. 2, turn by up to 10 degrees, flip, and crop 360x360, in
batches of 8, with 2 workers on 2 cores. They take turns within the same minutes. The peer's transforms are written in
two ways: "steps" resamples the whole image once for the zoom and once more for the turn; "affine" once for both, at the
image's size. The last line is JSON; a ratio above 1 means that segjax is faster.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
from PIL import Image

BATCH, CROP, WORKERS, CLASSES = 8, (360, 360), 2, 11
SCALE, ROTATE, MEAN, IGNORE = (0.5, 2.0), 10.0, (127.5, 127.5, 127.5), 255
DRAIN = 16  # batches that wait in queues, or are in work, when a turn begins


def synthesise(folder, count=32, size=(360, 480)):
    """Writes smooth noise with some grain as JPEG, and blocky label maps as PNG."""
    random = np.random.default_rng(0)
    columns_rows = size[::-1]

    def blocks(rows, columns, channels, high):
        return Image.fromarray(random.integers(0, high, (rows, columns, *channels), np.uint8))

    for kind in ("images", "masks"):
        pathlib.Path(folder, kind).mkdir(parents=True)
    for i in range(count):
        layers = [blocks(n, n, (3,), 256).resize(columns_rows, Image.Resampling.BICUBIC) for n in (4, 16, 64)]
        picture = np.mean([np.asarray(layer, np.float32) for layer in layers], axis=0)
        picture = np.clip(picture + random.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(f"{folder}/images/{i}.jpg", quality=95, subsampling=0)
        label = blocks(24, 32, (), CLASSES + 1).resize(columns_rows, Image.Resampling.NEAREST)
        label.save(f"{folder}/masks/{i}.png")


def ours(folder, loader):
    """Endless batches of segjax's own pipeline; ids from CLASSES on are ignored."""
    from segjax.data.loader import Loading
    from segjax.data.pipeline import train_batches
    from segjax.data.sources.folder import folder as source
    from segjax.spec import Preprocess

    masks = pathlib.Path(folder, "masks")
    present = {int(i) for path in masks.iterdir() for i in np.unique(Image.open(path))}
    opened = source(
        "all", root=str(folder), images="images", masks="masks", classes=[f"class {i}" for i in range(CLASSES)],
        ids={str(i): i for i in range(CLASSES)}, ignore_ids=sorted(present - set(range(CLASSES))),
        fractions={"all": (0, 1)},
    )  # fmt: skip
    loading, preprocess = Loading(loader, WORKERS), Preprocess(mean=MEAN, std=(64.0,) * 3)
    batches = train_batches(opened, preprocess, loading, batch_size=BATCH, crop=CROP, scale=SCALE, rotate=ROTATE)
    return batches.batches(0, 10**9)


def theirs(folder, kind):
    """Endless batches of a torch DataLoader; OpenCV reads, which is faster than Pillow."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A
    import cv2
    import torch

    filled = {"border_mode": cv2.BORDER_CONSTANT, "fill": MEAN, "fill_mask": IGNORE}
    turned = filled | {"interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_NEAREST}
    if kind == "steps":
        geometry = [
            A.RandomScale((SCALE[0] - 1, SCALE[1] - 1), cv2.INTER_LINEAR, cv2.INTER_NEAREST, p=1),
            A.Rotate((-ROTATE, ROTATE), **turned, p=1),
        ]
    else:
        geometry = [A.Affine(scale=SCALE, rotate=(-ROTATE, ROTATE), **turned, p=1)]
    transform = A.Compose([*geometry, A.HorizontalFlip(), A.PadIfNeeded(*CROP, **filled), A.RandomCrop(*CROP)])
    pairs = [
        (p, pathlib.Path(folder, "masks", p.stem + ".png")) for p in sorted(pathlib.Path(folder, "images").iterdir())
    ]

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 10**9

        def __getitem__(self, i):
            image, mask = map(str, pairs[i % len(pairs)])
            read = cv2.imread(image, cv2.IMREAD_COLOR_RGB), cv2.imread(mask, cv2.IMREAD_UNCHANGED)
            done = transform(image=read[0], mask=read[1])
            return done["image"], done["mask"]

    def one_thread(worker):
        cv2.setNumThreads(0)

    # In order: shuffling 10^9 indices would cost the peer time that real data sets do not.
    return iter(torch.utils.data.DataLoader(Pairs(), BATCH, num_workers=WORKERS, worker_init_fn=one_thread))


def cpu(pids):
    """Seconds that processes have computed so far, in user and system."""
    fields = [pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def rates(stream, seconds):
    """Images of a running stream: a second of the clock and core, and a second of computing."""
    pids = [os.getpid(), *(worker.pid for worker in getattr(stream, "_workers", ()))]
    for _ in itertools.islice(stream, DRAIN):
        pass
    began, used, count = time.perf_counter(), cpu(pids), 0
    while (spent := time.perf_counter() - began) < seconds:
        next(stream)
        count += BATCH
    return count / spent / WORKERS, count / (cpu(pids) - used)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="with images/*.jpg and masks/*.png of the same names; made where left out")
    parser.add_argument("--seconds", type=float, default=10.0, help="of measurement of each pipeline")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:WORKERS])
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or f"{made}/data"
        if not given.folder:
            synthesise(folder)
        # The peer's workers are forked, which is safe before TensorFlow's threads run only.
        streams = {kind: theirs(folder, kind) for kind in ("steps", "affine")}
        for stream in streams.values():
            next(stream)
        streams |= {loader: ours(folder, loader) for loader in ("tf.data", "threads")}
        turns = {name: [] for name in streams}
        for _, (name, stream) in itertools.product(range(given.rounds), streams.items()):
            turns[name].append(rates(stream, given.seconds / given.rounds))
        for loader in ("tf.data", "threads"):
            streams[loader].close()
    clock, computed = ({n: round(statistics.median(t[i] for t in turns[n]), 1) for n in turns} for i in (0, 1))
    print("images/s per core       clock  computing   turns by the clock")
    for n, each in turns.items():
        print(f"{n:20} {clock[n]:8.1f} {computed[n]:10.1f}  ", *(f"{turn[0]:.0f}" for turn in each))
    facts = {"clock": clock, "computing": computed, "load": round(os.getloadavg()[0], 1)}
    for kind in ("steps", "affine"):
        ratios = [round(max(of["tf.data"], of["threads"]) / of[kind], 2) for of in (clock, computed)]
        facts |= dict(zip((f"ratio_to_{kind}", f"computing_ratio_to_{kind}"), ratios, strict=True))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
