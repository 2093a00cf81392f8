"""Source of generated scenes: flat shapes in front of sky, grass and water."""

import dataclasses
import math
import zlib
from typing import Annotated

import numpy as np
from jaxtyping import Float32

from segjax.checks import Key, UserError, check_section
from segjax.spec import DatasetSpec, channel_names

COUNTS = {"train": 4096, "validation": 512, "test": 512}
STUFF = ("sky", "grass", "water")
THINGS = ("disc", "box", "triangle", "star", "ring")
STUFF_COLOURS = ((140, 190, 230), (90, 150, 60), (40, 90, 160))
THING_COLOURS = ((230, 75, 60), (245, 170, 50), (165, 90, 190), (250, 225, 80), (240, 130, 180))
SPEC = DatasetSpec(
    classes=STUFF + THINGS,
    colours=STUFF_COLOURS + THING_COLOURS,
    things=tuple(range(len(STUFF), len(STUFF) + len(THINGS))),
)
# Lowest and highest red, green and blue of each stuff class, 0..1. The ranges overlap on purpose: textures differ.
PAINT = {
    "sky": ((0.25, 0.35, 0.4), (0.75, 0.75, 0.95)),
    "grass": ((0.2, 0.35, 0.15), (0.65, 0.7, 0.65)),
    "water": ((0.15, 0.3, 0.3), (0.65, 0.7, 0.85)),
}


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Scenes that are generated on read; made by `shapes`, whose arguments are the fields."""

    split: str
    channels: int
    count: int
    shape: tuple[int, int]
    seed: int
    objects: tuple[int, int]

    @property
    def spec(self) -> DatasetSpec:
        """Facts about the labels and images."""
        return dataclasses.replace(SPEC, image_channels=channel_names(self.channels))

    def __len__(self):
        return self.count

    def name(self, i: int) -> str:
        """The split and the number of scene i."""
        return f"{self.split}_{i:05d}"

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of every scene."""
        return self.shape

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Draws scene i: "image" uint8 [y, x, c], "label" uint8 [y, x], "instance" uint16 [y, x].

        Visible objects are numbered 1 .. n from back to front; stuff is 0. Raises an IndexError if i is out of range.
        """
        if not 0 <= i < self.count:
            raise IndexError(f"Scene {i} of {self.count}.")
        # The split's name is part of the spawn key, so splits never share a scene.
        seed = np.random.SeedSequence(self.seed, spawn_key=(zlib.crc32(self.split.encode()), i))
        rng = np.random.Generator(np.random.Philox(seed))
        image, label = _background(rng, self.shape)
        instance = np.zeros(self.shape, np.uint16)
        light = rng.uniform(0, 2 * math.pi)
        for number in range(1, rng.integers(*self.objects, endpoint=True) + 1):
            _draw(rng, image, label, instance, number, light)
        image = (image + 0.012 * rng.standard_normal(image.shape, np.float32)).clip(0, 1)
        if self.channels == 1:
            image = image @ np.float32([[0.299], [0.587], [0.114]])  # ITU-R 601-2 luma, as in reading.read_image
        visible = np.bincount(instance.ravel()) > 0
        visible[0] = False  # stuff
        image = (image * 255 + 0.5).astype(np.uint8)
        return {"image": image, "label": label, "instance": np.cumsum(visible).astype(np.uint16)[instance]}


def shapes(
    split: str,
    *,
    channels: int = 3,
    count: Annotated[int | None, Key('scenes in the split; None: 4096 in "train", 512 elsewhere', "[1, inf)")] = None,
    size: Annotated[tuple[int, int], Key("rows, columns", "[16, inf)")] = (128, 128),
    seed: Annotated[int, Key("scenes are a function of (seed, split, index)", "[0, inf)")] = 0,
    objects: Annotated[
        tuple[int, int], Key("fewest and most things in a scene, including hidden ones", "[0, 65535]")
    ] = (2, 8),
) -> Shapes:
    """Generates scenes with exact labels and instance maps; nothing to download.

    Stuff is sky (soft clouds), grass (upright blades) and water (level ripples), with irregular borders. Things are
    shaded discs, boxes, triangles, stars and rings of any size, rotation and colour that occlude one another. Class
    colours overlap, so texture and shape have to be learned. A scene is a function of (seed, split, i, size, objects).

    Splits are "train", "validation" and "test", and share no scene; `channels` is 3 for RGB, 1 for grey. Raises a
    UserError for an unknown split, or a number out of range.

    Example:
        >>> source = shapes("train", count=2, size=(32, 48))
        >>> {key: value.shape for key, value in source.read(1).items()}
        {'image': (32, 48, 3), 'label': (32, 48), 'instance': (32, 48)}
    """
    check_section("source", shapes, {"count": count, "size": size, "seed": seed, "objects": objects})
    if split not in COUNTS:
        raise UserError(f"source 'shapes' has the splits {', '.join(COUNTS)}, not {split!r}.")
    count = COUNTS[split] if count is None else count
    if channels not in (1, 3):
        raise UserError(f"Images are made with 1 (grey) or 3 (RGB) channels, not {channels}.")
    if objects[0] > objects[1]:
        raise UserError(f"source.objects={tuple(objects)} must be (fewest, most).")
    return Shapes(split, channels, count, (size[0], size[1]), seed, (objects[0], objects[1]))


def _noise(rng, shape, cells) -> Float32[np.ndarray, "y x"]:
    """Draws value noise in -1..1: random numbers on a grid of `cells`, interpolated bilinearly."""
    value = rng.uniform(-1, 1, [n + 1 for n in cells]).astype(np.float32)
    for axis, (pixels, count) in enumerate(zip(shape, cells, strict=True)):
        place = np.linspace(0, count, pixels, endpoint=False, dtype=np.float32)
        low = place.astype(np.int32)
        part = np.expand_dims((place - low).astype(np.float32), 1 - axis)
        value = value.take(low, axis) * (1 - part) + value.take(low + 1, axis) * part
    return value


def _texture(rng, kind, shape) -> Float32[np.ndarray, "y x"]:
    """Draws the brightness pattern of a stuff class, in about -1..1."""
    rows, columns = shape
    cells = {
        "sky": ((3, 3), (8, 6)),
        "grass": ((rows // 8, columns // 2), (rows // 4, columns // 3)),
        "water": ((rows // 2, columns // 8), (rows // 3, columns // 14 + 1)),
    }[kind]
    return 0.6 * _noise(rng, shape, cells[0]) + 0.4 * _noise(rng, shape, cells[1])


def _background(rng, shape):
    """Draws two or three layers of stuff; returns float32 [y, x, 3], 0..1, and their classes uint8 [y, x]."""
    rows, columns = shape
    below = rng.permutation(STUFF[1:]).tolist()
    kinds = [["sky", *below], ["sky", *below[:1]], below][rng.choice(3, p=[0.5, 0.35, 0.15])]
    heights = np.sort(rng.uniform(0.15, 0.85, len(kinds) - 1))
    y = np.arange(rows, dtype=np.float32)[:, None]
    image, label = np.empty((*shape, 3), np.float32), np.zeros(shape, np.uint8)
    for place, kind in enumerate(kinds):
        low, high = PAINT[kind]
        colour = rng.uniform(low, high).astype(np.float32)
        shade = 1 + rng.uniform(0.1, 0.22) * _texture(rng, kind, shape) + rng.uniform(-0.15, 0.15) * (y / rows - 0.5)
        part = shade.astype(np.float32)[..., None] * colour
        if place == 0:
            image[:], label[:] = part, STUFF.index(kind)
            continue
        rough = 0.06 * _noise(rng, (1, columns), (1, 4)) + 0.02 * _noise(rng, (1, columns), (1, columns // 6))
        slope = rng.uniform(-0.15, 0.15) * np.linspace(-1, 1, columns, dtype=np.float32)
        inside = y > rows * (heights[place - 1] + rough + slope)
        image[inside], label[inside] = part[inside], STUFF.index(kind)
    return image, label


def _draw(rng, image, label, instance, number, light):
    """Draws one object and its shadow over the scene, within the window around it."""
    kind = rng.integers(len(THINGS))
    rows, columns = label.shape
    radius = min(label.shape) * rng.uniform(0.07, 0.24)
    centre = rng.uniform(0, 1, 2) * label.shape
    turn = rng.uniform(0, 2 * math.pi)
    reach = radius * 1.3 + 2
    top, left = (int(max(0, c - reach)) for c in centre)
    bottom, right = (int(min(n, c + reach + 1)) for n, c in zip((rows, columns), centre, strict=True))
    window = np.s_[top:bottom, left:right]
    y = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - centre[0])
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - centre[1])
    distance = _distance(rng, THINGS[kind], y[:, None], x, radius, turn)

    colour = rng.uniform(0.1, 0.95, 3).astype(np.float32)
    across = (y[:, None] * math.sin(light) + x * math.cos(light)) / radius
    shade = 1 + rng.uniform(0.1, 0.3) * across
    if rng.random() < 0.4:
        stripes = (y[:, None] * math.sin(2 * turn) + x * math.cos(2 * turn)) * (2 * math.pi / rng.uniform(4, 12))
        shade += rng.uniform(0.1, 0.25) * np.sin(stripes)
    shade += rng.uniform(0.02, 0.08) * _noise(rng, distance.shape, (len(y) // 3 + 1, len(x) // 3 + 1))
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    dark = 1 - 0.35 * np.exp(-np.maximum(distance, 0) / (0.08 * radius))[..., None]
    image[window] = image[window] * dark * (1 - cover) + shade[..., None] * colour * cover
    inside = distance < 0
    label[window][inside] = len(STUFF) + kind
    instance[window][inside] = number


def _distance(rng, kind, y, x, radius, turn) -> Float32[np.ndarray, "y x"]:
    """Signed distance in pixels from a shape's border, negative inside (at corners: from the nearest edge's line)."""
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    if kind == "box":
        return np.maximum(abs(along) - radius, abs(across) - radius * rng.uniform(0.35, 0.9))
    far = np.hypot(along, across)
    if kind == "disc":
        return far - radius
    if kind == "ring":
        width = rng.uniform(0.15, 0.3) * radius
        return abs(far - radius + width) - width
    # A corner lies at angle 0 of each of n equal sectors; folding maps all edges to one.
    sector = 2 * math.pi / {"triangle": 3, "star": 5}[kind]
    angle = abs((np.arctan2(across, along) + sector / 2) % sector - sector / 2)
    inner = radius * {"triangle": math.cos(sector / 2), "star": rng.uniform(0.4, 0.55)}[kind]
    edge = inner * math.cos(sector / 2) - radius, inner * math.sin(sector / 2)
    length = math.hypot(*edge)
    return ((far * np.cos(angle) - radius) * edge[1] - far * np.sin(angle) * edge[0]) / length
