"""Models: linen modules that map (images, train) to a dict of outputs, each at its own stride."""

from flax import linen as nn

from segjax import checks
from segjax.checks import UserError, check_keys, choose
from segjax.models.deeplab import DeepLabV3, DeepLabV3Plus
from segjax.models.fcn import FCN
from segjax.models.lraspp import LRASPP
from segjax.models.panoptic_deeplab import PanopticDeepLab
from segjax.models.unet import UNet
from segjax.spec import DatasetSpec

MODELS = {
    "unet": UNet,
    "fcn": FCN,
    "deeplabv3": DeepLabV3,
    "deeplabv3plus": DeepLabV3Plus,
    "lraspp": LRASPP,
    "panoptic_deeplab": PanopticDeepLab,
}


def create(name: str, spec: DatasetSpec | None = None, *, classes: int | None = None, **settings) -> nn.Module:
    """Makes a model whose head matches a data set.

    Args:
        name: a key of `MODELS`.
        spec: the data set; its mode and classes set the number of logits per pixel.
        classes: number of logits per pixel, in place of a spec.
        **settings: keys of the model.

    Returns:
        An uninitialised linen module.

    Raises:
        UserError: the model or a key is unknown, or not exactly one of spec and classes is given.

    Example:
        >>> create("unet", classes=19, widths=(8, 16)).num_logits
        19
    """
    module = choose("model.name", name, MODELS)
    check_keys(settings, checks.keys_of(module), "model")
    if (spec is None) == (classes is None) or isinstance(spec, int):
        raise UserError("A model needs a spec or a number of classes: pass exactly one of spec=… and classes=….")
    return module(num_logits=classes if spec is None else spec.num_logits, **settings)
