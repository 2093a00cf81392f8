"""Source of slices of the MNI152 brain template, which nilearn includes."""

import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import UInt8

from segjax.checks import Key, UserError, check_choice
from segjax.spec import DatasetSpec, channel_names

FILE = "datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
SPEC = DatasetSpec(
    classes=("background", "grey_matter", "white_matter"), colours=((0, 0, 0), (220, 60, 60), (240, 240, 120))
)
# The brain fills 145 x 181 x 155 voxels of 197 x 233 x 189; this box, in (x, y, z), has sides divisible by 32.
BOX = np.s_[18:178, 21:213, 0:160]
AXES = {"axial": 2, "coronal": 1}
MIN_BRAIN = 0.02  # smallest brain fraction of a slice
BLOCKS, BLOCK, GUARD = 3, 8, 6


@dataclasses.dataclass(frozen=True)
class Brain:
    """Slices of one volume; made by `brain`.

    Attributes:
        plane: orientation of the slices.
        channels: image channels, all equal.
        slices: index of each sample's slice in the box.
    """

    plane: str
    channels: int
    slices: tuple[int, ...]

    @property
    def spec(self) -> DatasetSpec:
        """Facts about the labels and images."""
        return dataclasses.replace(SPEC, image_channels=channel_names(self.channels))

    def __len__(self):
        return len(self.slices)

    def name(self, i: int) -> str:
        """The plane and the number of the slice in the box."""
        return f"{self.plane}_{self.slices[i]:03d}"

    def size(self, i: int) -> tuple[int, int]:
        """Rows and columns of the slices."""
        return _volumes(self.plane)[1].shape[1:]

    def read(self, i: int) -> dict[str, np.ndarray]:
        """Copies slice i out of the volume.

        Args:
            i: sample.

        Returns:
            "image": uint8 [y, x, c]; "label": uint8 [y, x].
        """
        image, label = (volume[self.slices[i]] for volume in _volumes(self.plane))
        return {"image": np.repeat(image[..., None], self.channels, axis=2), "label": label.copy()}


def brain(
    split: str,
    *,
    channels: int = 1,
    plane: Annotated[str, Key("plane of the slices", ("axial", "coronal"))] = "axial",
) -> Brain:
    """Opens slices of the MNI152 T1 average with grey and white matter, read from the installed nilearn.

    This is one averaged brain: a demo that runs anywhere, not a benchmark. The labels come from maps averaged over 152
    people, the skull is removed, and grey levels alone almost separate the tissues: the best lookup table from grey
    level to class reaches a Dice of 0.96. A good score here shows that training works; it says nothing about scans of
    patients.

    Images are the T1 template as nilearn stores it (0..255 spans the volume). A pixel's label is the argmax of
    (1 - grey - white, grey, white) over the probability maps; in a tie the first. Pixels are 1 mm wide. Axial slices
    (192 x 160) have the front at the top, coronal ones (160 x 160) the crown; the right of the head is on the right.
    There are no sagittal slices, because the template is symmetric: one half would give away the other.

    "test" is three blocks of 8 neighbouring slices, spread evenly over the slices that are at least 2 % brain.
    The 6 slices on each side of a block belong to neither split, since neighbours look almost the same; "train" is
    the rest. Training and test must use the same plane.

    Args:
        split: "train" or "test".
        channels: image channels; grey is repeated.

    Returns:
        The source.

    Raises:
        UserError: an unknown split or plane, or nilearn or nibabel is not installed.

    Example:
        >>> len(brain("train")), len(brain("test")), brain("test").size(0)
        (83, 24, (192, 160))

    Reference:
        Fonov et al., Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 54 (2011); the
        template ICBM 2009a Nonlinear Symmetric.
    """
    if split not in ("train", "test"):
        raise UserError(f"source 'brain' has the splits train, test, not {split!r}.")
    check_choice("source.plane", plane, AXES)
    if channels < 1:
        raise UserError(f"Images need at least one channel, not {channels}.")
    usable = np.flatnonzero((_volumes(plane)[1] > 0).mean((1, 2)) >= MIN_BRAIN)
    centres = usable[0] + len(usable) * (2 * np.arange(BLOCKS) + 1) / (2 * BLOCKS)
    offset = usable[:, None] - np.rint(centres - BLOCK / 2).astype(int)
    if split == "test":
        chosen = ((offset >= 0) & (offset < BLOCK)).any(1)
    else:
        chosen = ((offset < -GUARD) | (offset >= BLOCK + GUARD)).all(1)
    return Brain(plane, channels, tuple(usable[chosen].tolist()))


@functools.lru_cache
def _volumes(plane: str) -> tuple[UInt8[np.ndarray, "n y x"], UInt8[np.ndarray, "n y x"]]:
    """T1 and label of the box, as upright slices [n, y, x]."""
    # Importing nilearn.datasets takes seconds, while its files can be read directly.
    nilearn = importlib.util.find_spec("nilearn")
    try:
        import nibabel
    except ImportError:
        nilearn = None
    if nilearn is None:
        raise UserError("source 'brain' reads nilearn's files with nibabel. Run `pip install \"segjax[brain]\"`.")
    folder = Path(nilearn.submodule_search_locations[0])
    paths = [folder / FILE.format(kind) for kind in ("t1", "gm", "wm")]
    if absent := [path.name for path in paths if not path.is_file()]:
        raise UserError(f"The installed nilearn lacks {', '.join(absent)}. Run `pip install nilearn==0.14.1`.")
    t1, grey, white = (np.asarray(nibabel.load(path).dataobj)[BOX] for path in paths)
    rest = 255 - np.minimum(grey.astype(np.int16) + white, 255)
    label = np.argmax([rest, grey, white], axis=0).astype(np.uint8)
    # The box is in (x, y, z) = (right, front, crown): transpose it to (slice, down, right).
    axis = AXES[plane]
    return tuple(np.flip(volume.transpose(axis, 3 - axis, 0), 1) for volume in (t1, label))
