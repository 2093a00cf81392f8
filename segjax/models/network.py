"""What all networks have in common."""

from typing import Annotated

from flax import linen as nn

from segjax import checks
from segjax.checks import Key
from segjax.nn import backbones
from segjax.nn.layers import Style

HEAD = nn.initializers.normal(0.01)  # small scores: the first loss is that of equal probabilities


class Network(nn.Module):
    """Base of the networks `(images, train) -> {"logits": …}`; only reverse-mode differentiation is supported.

    A network of your own is a subclass with a `__call__`, which may take `progress`, the share of a run that is done,
    with a default for evaluation.

    Attributes:
        channels: logits a pixel.
        axis_name: pmap axis over which batch statistics are taken.
        frozen: paths of the parts that do not learn, whose batch norms keep their statistics.
        outputs: names of what `__call__` returns.
    """

    channels: int
    norm: Annotated[str, Key("of the layers; group: at most 32 groups", ("batch", "group", "none"))] = "batch"
    momentum: Annotated[float, Key("share of the old batch statistics that is kept each step", "[0, 1]")] = 0.9
    dtype: Annotated[str, Key("of maps; parameters, statistics, logits: float32", ("float32", "bfloat16"))] = "float32"
    remat: Annotated[bool, Key("recompute activations in the backward pass: less memory, more time")] = False
    axis_name: str | None = None
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        """Checks the values of the keys."""
        checks.check_section("model", type(self), {name: getattr(self, name) for name in checks.keys_of(type(self))})
        super().__post_init__()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `__call__` returns."""
        return ("logits", "aux") if getattr(self, "aux", "") else ("logits",)

    @property
    def family(self) -> str:
        """Of the backbone, as published weights know it; "" where there is none."""
        backbone = getattr(self, "backbone", "plain")
        return backbones.BACKBONES[backbone].family if backbone in backbones.BACKBONES else ""

    @property
    def layer_order(self) -> tuple[str, ...]:
        """Paths of the layers whose learning rates `optimizer.layer_decay` lowers, from the input on."""
        backbone = getattr(self, "backbone", "plain")
        return tuple(f"backbone/{name}" for name in backbones.layers(backbone)) if self.family else ()

    @property
    def margin(self) -> int:
        """Pixels that each side of the input loses."""
        return 0

    @property
    def style(self) -> Style:
        """What all layers have in common."""
        return Style(
            self.norm, self.momentum, dtype=self.dtype, remat=self.remat, axis_name=self.axis_name, frozen=self.frozen
        )
