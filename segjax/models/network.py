"""The base class of all networks."""

from typing import Annotated

from flax import linen as nn

from segjax import checks
from segjax.checks import Key
from segjax.nn import backbones
from segjax.nn.layers import LayerConfig

HEAD = nn.initializers.normal(0.01)  # small logits: the initial probabilities are almost equal


class Network(nn.Module):
    """Base of the networks `(images, train) -> {"logits": …}`; only reverse-mode differentiation is supported.

    To write your own network, subclass it and define `__call__`. It may also take `progress`, the fraction of the run
    that is done; give it a default for evaluation.

    Attributes:
        num_logits: logits per pixel.
        axis_name: pmap axis over which batch statistics are computed.
        frozen: paths of the frozen modules, whose batch norms keep their statistics.
        outputs: names of the outputs of `__call__`.
    """

    num_logits: int
    norm: Annotated[str, Key("norm of the layers; group: at most 32 groups", ("batch", "group", "none"))] = "batch"
    momentum: Annotated[float, Key("fraction of the old batch statistics kept at each step", "[0, 1]")] = 0.9
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
        """Names of the outputs of `__call__`."""
        return ("logits", "aux") if getattr(self, "aux", "") else ("logits",)

    @property
    def family(self) -> str:
        """Family of the backbone, which sets the names in published weights; "" if there is no backbone."""
        backbone = getattr(self, "backbone", "plain")
        return backbones.BACKBONES[backbone].family if backbone in backbones.BACKBONES else ""

    @property
    def layer_order(self) -> tuple[str, ...]:
        """Paths of the layers that `optimizer.layer_decay` applies to, from input to output."""
        backbone = getattr(self, "backbone", "plain")
        return tuple(f"backbone/{name}" for name in backbones.layer_names(backbone)) if self.family else ()

    @property
    def margin(self) -> int:
        """Pixels that the network trims from each side of its input."""
        return 0

    @property
    def layer_config(self) -> LayerConfig:
        """The settings that all layers share."""
        return LayerConfig(
            self.norm, self.momentum, dtype=self.dtype, remat=self.remat, axis_name=self.axis_name, frozen=self.frozen
        )
