"""Reads state dicts: from files, from the Hugging Face Hub, or as given."""

import json
import os
import pathlib
import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from segjax.checks import UserError
from segjax.spec import Preprocess

FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository on the Hub, in order of preference
WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema")  # keys of checkpoints that hold more than weights
PREFIXES = ("module.", "_orig_mod.", "model.")  # of parallel, compiled and Lightning modules
MEND = 'pip install "segjax[weights]"'


class Source(NamedTuple):
    """Tensors and their metadata.

    Attributes:
        name: name for messages.
        tensors: by name; NumPy, JAX or PyTorch.
        settings: contents of the config.json next to them.
    """

    name: str
    tensors: Mapping[str, Any]
    settings: Mapping[str, Any]


def read_state_dict(source: Mapping[str, Any] | str | os.PathLike) -> Source:
    """Reads a state dict.

    Args:
        source: the dict, a path to a .safetensors, .pth, .pt or .bin file, or "hf://organisation/name" with an optional
            "@revision".

    Returns:
        Its tensors, without the prefixes and other contents that training scripts add.

    Raises:
        UserError: the file is missing, cannot be read or holds no tensors, or a package is missing.
    """
    if isinstance(source, Mapping):
        return Source("the state dict", _unwrap(source, "the state dict"), {})
    name = os.fspath(source)
    path = _download(name.removeprefix("hf://")) if name.startswith("hf://") else name
    if not os.path.isfile(path):
        raise UserError(f"There is no file {path}: give the path of a .safetensors or .pth file.")
    suffix = pathlib.Path(path).suffix
    if suffix not in READERS:
        raise UserError(f"{path}: {suffix or 'a name without extension'} is not one of {', '.join(READERS)}.")
    settings = _settings(pathlib.Path(path).with_name("config.json"))
    return Source(name, _unwrap(READERS[suffix](path), name), settings)


def to_array(tensor: Any) -> np.ndarray:
    """Converts a tensor to a float32 array.

    Args:
        tensor: NumPy, JAX or PyTorch, of any dtype and on any device.

    Returns:
        Its values.

    Example:
        >>> to_array(np.ones(2, np.float16)).dtype
        dtype('float32')
    """
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().float().cpu().numpy()
    return np.asarray(tensor, np.float32)


def preprocess(settings: Mapping[str, Any]) -> Preprocess | None:
    """Returns the preprocessing that a config.json states.

    Args:
        settings: its contents; timm has `pretrained_cfg`, others have `preprocessing` or the values at the top.

    Returns:
        Mean and standard deviation in grey levels; None if it states no lists of numbers.

    Example:
        >>> preprocess({"pretrained_cfg": {"mean": [0.5], "std": [0.2]}}).mean
        (127.5,)
    """
    for part in _parts(settings):
        mean, std, top = (part.get(key) for key in ("mean", "std", "input_range"))
        bounds = top if _numbers(top) and len(top) == 2 else (0, 1)
        if _numbers(mean) and _numbers(std) and len(mean) == len(std):
            return Preprocess(*(tuple(round(255 / bounds[1] * v, 4) for v in values) for values in (mean, std)))
    return None


def bgr(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json states that the first channel of images is blue."""
    return any(part.get("input_space") == "BGR" for part in _parts(settings))


def _parts(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the parts of a config.json that may state the preprocessing."""
    parts = (settings, settings.get("pretrained_cfg"), settings.get("preprocessing"))
    return [part for part in parts if isinstance(part, Mapping)]


def _numbers(values: Any) -> bool:
    """Whether this is a non-empty list of numbers."""
    return isinstance(values, list) and bool(values) and all(isinstance(value, int | float) for value in values)


def resize(settings: Mapping[str, Any]) -> str:
    """Returns how a config.json says that images were resized.

    Args:
        settings: its contents; timm has `pretrained_cfg`.

    Returns:
        Size, cropped fraction and interpolation in words; "" if it says nothing.

    Example:
        >>> resize({"pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0.875, "interpolation": "bicubic"}})
        'input_size=[3, 224, 224], crop_pct=0.875, interpolation=bicubic'
    """
    part = settings.get("pretrained_cfg")
    keys = ("input_size", "crop_pct", "interpolation")
    return ", ".join(f"{key}={part[key]}" for key in keys if part.get(key)) if isinstance(part, Mapping) else ""


def _unwrap(found: Any, name: str) -> Mapping[str, Any]:
    """Extracts the tensors of a checkpoint from whatever wraps them."""
    while isinstance(found, Mapping) and (keys := [key for key in WRAPPERS if isinstance(found.get(key), Mapping)]):
        found = found[keys[0]]
    items = found.items() if isinstance(found, Mapping) else ()
    tensors = {key: value for key, value in items if isinstance(key, str) and hasattr(value, "shape")}
    if not tensors:
        others = f", but {', '.join(map(str, list(found)[:5]))}" if isinstance(found, Mapping) and found else ""
        raise UserError(f"{name} holds no tensors by name{others}: save the network's state_dict().")

    def common(prefix):
        # Of more than half: a loss may have tensors of its own, and a moving average a counter.
        return sum(key.startswith(prefix) for key in tensors) > len(tensors) / 2

    while prefix := next(filter(common, PREFIXES), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _settings(path: pathlib.Path) -> Mapping[str, Any]:
    """Reads a config.json; returns an empty dict if it is missing or of another program."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _safetensors(path: str) -> Mapping[str, Any]:
    try:
        import safetensors
    except ImportError:
        raise UserError(f"{path} needs safetensors: {MEND}.") from None
    try:
        with safetensors.safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file, or is truncated: {error}") from error


def _torch(path: str) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} needs PyTorch: pip install torch, or convert the file to safetensors.") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} cannot be read as a file of tensors: it holds more than tensors, or is damaged. Save only the "
            "network's state_dict()."
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        size = os.path.getsize(path)
        raise UserError(
            f"{path} cannot be read as a file of tensors: it is damaged or truncated ({size:,} bytes)."
        ) from error


READERS: dict[str, Callable[[str], Any]] = {
    ".safetensors": _safetensors,
    ".pth": _torch,
    ".pt": _torch,
    ".bin": _torch,
}


def _download(name: str) -> str:
    """Downloads the weights of a repository on the Hub, and its config.json if any; returns the path of the weights."""
    try:
        import huggingface_hub
        from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(f"hf://{name} needs huggingface_hub: {MEND}.") from None
    repository, _, revision = name.partition("@")

    unreachable = []

    def fetch(file):
        try:
            return huggingface_hub.hf_hub_download(repository, file, revision=revision or None)
        except LocalEntryNotFoundError as error:  # it is not cached, and the Hub cannot be reached
            unreachable.append(error)
        except EntryNotFoundError:
            pass
        except (OSError, ValueError) as error:  # no such repository or revision, no access
            raise UserError(f"hf://{name} cannot be fetched: {error}") from error

    for file in FILES:
        if path := fetch(file):
            fetch("config.json")  # goes into the same folder of the cache
            return path
    if unreachable:
        raise UserError(f"hf://{name} is not in the cache and the Hub cannot be reached: {unreachable[0]}")
    raise UserError(f"hf://{name} has neither {' nor '.join(FILES)}: give the path of a file.")
