"""Networks: one linen module a file, (images, train) -> dict of outputs at their own stride."""

from flax import linen as nn

from segjax.config import check_keys, choose
from segjax.models.unet import UNet
from segjax.spec import DatasetSpec

MODELS = {"unet": UNet}


def create(name: str, spec: DatasetSpec, **kwargs) -> nn.Module:
    """Makes a model whose head fits a data set.

    Args:
        name: a key of `MODELS`.
        spec: the data set; its mode and classes set the number of logits a pixel.
        **kwargs: attributes of the model's module.

    Returns:
        An uninitialised linen module.

    Raises:
        UserError: no such model, or an attribute that it does not have.

    Example:
        >>> create("unet", DatasetSpec(("sky", "road")), widths=(8, 16)).channels
        2
    """
    module = choose("model.name", name, MODELS)
    check_keys(kwargs, [f for f in module.__dataclass_fields__ if f not in ("parent", "channels")], "model")
    return module(channels=spec.channels, **kwargs)
