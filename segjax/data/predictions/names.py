"""Matches the names in files of predictions to the samples of a source."""

import collections
import logging
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from segjax.checks import UserError, first_names
from segjax.data import files

log = logging.getLogger("segjax")


class SampleNames:
    """Finds samples by the names that files and entries give them.

    A sample is known by `source.name(i)` and by the path of its image file. Folders may be left out or added at the
    front: `out/bonn/1.png` and `1.png` are of the sample `bonn/1`, `aachen/1.png` is not.

    Args:
        source: a data source.

    Example:
        >>> from segjax.data.sources.shapes import shapes
        >>> names = SampleNames(shapes("test", count=2))
        >>> names.find("out/test_00001.png"), names.find("test_9")
        (1, None)
    """

    def __init__(self, source: Any):
        self.names = [source.name(i) for i in range(len(source))]
        self._known = collections.defaultdict(list)  # (parts of the path, sample), by last part
        numbers = collections.defaultdict(set)
        paths = getattr(source, "images", None)
        stored = isinstance(paths, Sequence) and len(paths) == len(self.names)
        for i, name in enumerate(self.names):
            every = [name, os.fspath(paths[i].with_suffix(""))] if stored and isinstance(paths[i], Path) else [name]
            for parts in map(_parts, every):
                self._known[parts[-1]].append((parts, i))
                if parts[-1].isdecimal():
                    numbers[int(parts[-1])].add(i)
        self._numbers = {number: samples.pop() for number, samples in numbers.items() if len(samples) == 1}

    def find(self, name: str | int) -> int | None:
        """Returns the one sample that a file or an entry names; a number may lack its leading zeros."""
        if isinstance(name, int):
            return self._numbers.get(name)
        bare, suffix = os.path.splitext(name)
        for parts in (_parts(name), _parts(bare) if suffix.lower() in files.SUFFIXES else None):
            known = self._known.get(parts[-1], []) if parts else []
            for same in (operator.eq, _one_ends_with_the_other):
                found = {i for other, i in known if same(parts, other)}
                if found:
                    return found.pop() if len(found) == 1 else None
        return self._numbers.get(int(name)) if name.isdecimal() else None

    def check_complete(self, found: Iterable[int], path: Path, what: str = "prediction") -> None:
        """Raises a UserError that counts and names the samples that are not among those found."""
        if missing := sorted(set(range(len(self.names))) - set(found)):
            named = first_names([self.names[i] for i in missing])
            raise UserError(f"{path}: {len(missing)} of {len(self.names)} images of the split have no {what}: {named}.")


def warn_of_extra(names: Sequence[str], path: Path, what: str) -> None:
    """Logs the names of what belongs to no sample, if there is any."""
    if names:
        log.warning("%s: %d %s are of no image of the split: %s", path, len(names), what, first_names(names))


def _parts(path):
    """Splits a path, also one of Windows; never empty."""
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")] or [""]


def _one_ends_with_the_other(a, b):
    count = min(len(a), len(b))
    return a[-count:] == b[-count:]
