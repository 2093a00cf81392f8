"""What all networks have in common."""

from typing import Annotated

import jax
from flax import linen as nn

from segjax import checks
from segjax.checks import Key
from segjax.nn import backbones
from segjax.nn.layers import Conv, ConvNorm, Style

HEAD = nn.initializers.normal(0.01)  # small scores: the first loss is that of equal probabilities


class Network(nn.Module):
    """Base of the networks `(images, train) -> {"logits": …}`; only reverse-mode differentiation is supported.

    A network of your own is a subclass with a `__call__`; it may also take `progress`, the share of a run that is done.

    Attributes:
        channels: logits a pixel.
        axis_name: pmap axis over which batch statistics are taken.
        frozen: paths of the parts that do not learn, whose batch norms keep their statistics.
        outputs: names of what `__call__` returns.
    """

    channels: int
    norm: Annotated[str, Key("of the layers; group: at most 32 groups", ("batch", "group", "none"))] = "batch"
    momentum: Annotated[float, Key("share of the old batch statistics that is kept each step", "[0, 1]")] = 0.9
    dtype: Annotated[
        str, Key("of computing; parameters, statistics and logits stay float32", ("float32", "bfloat16"))
    ] = "float32"
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


def auxiliary(
    tap: str, features: dict[str, jax.Array], channels: int, style: Style, train: bool
) -> dict[str, jax.Array]:
    """Scores of intermediate features, which add to the loss only: PSPNet, section 4 (arXiv:1612.01105).

    Must be called within a compact method, whose module gets the submodules `aux_conv` and `aux_head`.

    Args:
        tap: name of the features; "" for no output.
        features: of the backbone.
        channels: logits a pixel.
        style: norm and dtype.
        train: use batch statistics, and drop out.

    Returns:
        {"aux": float32 [b, y, x, channels]}, or nothing.
    """
    if not tap:
        return {}
    x = features[tap]
    x = ConvNorm(x.shape[-1] // 4, style, name="aux_conv")(x, train)
    x = nn.Dropout(0.1)(x, deterministic=not train)
    return {"aux": Conv(channels, 1, use_bias=True, kernel_init=HEAD, name="aux_head")(x)}
