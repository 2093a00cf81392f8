"""Groups of parameters with a learning rate of their own, and parts that do not learn."""

import difflib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax.checks import UserError
from segjax.nn.layers import within


def factors(params: Any, layer_order: Sequence[str], backbone_factor: float, layer_decay: float) -> Any:
    r"""Learning rate of each parameter as a share of the optimiser's.

    Layer i of n has `layer_decay ** (n - 1 - i)` and what is in no layer has 1, as in EoMT (Kerssies et al. 2025,
    arXiv:2503.19108); BEiT (Bao et al. 2022, arXiv:2106.08254) lowers each layer once more. Parameters below "backbone"
    are multiplied by `backbone_factor`. A path that stands k times in `layer_order` is k layers stacked along the first
    axis of its parameters, which get a factor each.

    Args:
        params: nested dict of parameters that learn.
        layer_order: paths of the layers from the input on, such as "backbone/conv1".
        backbone_factor: of the backbone's learning rate.
        layer_decay: factor from a layer to the one before it.

    Returns:
        The same tree of factors, floats or arrays [k, 1, ...].

    Raises:
        UserError: a factor that no parameter would get.

    Example:
        >>> params = {"backbone": {"conv1": {"kernel": jnp.ones(2)}, "conv2": {"kernel": jnp.ones(2)}}}
        >>> factors(params, ("backbone/conv1", "backbone/conv2"), 0.1, 0.5)
        {'backbone': {'conv1': {'kernel': 0.05}, 'conv2': {'kernel': 0.1}}}
    """
    count = len(layer_order)
    places = {path: [i for i, each in enumerate(layer_order) if each == path] for path in layer_order}
    names = flatten_dict(params, sep="/")
    for key, value, parts in (
        ("backbone_factor", backbone_factor, ("backbone",)),
        ("layer_decay", layer_decay, places),
    ):
        if value != 1 and not any(within(name, part) for name in names for part in parts):
            raise UserError(
                f"optimizer.{key}={value} has no effect: no {key.split('_')[0]} of this model learns. Set 1.0."
            )

    def factor(name, leaf):
        base = backbone_factor if within(name, "backbone") else 1.0
        layers = next((found for layer, found in places.items() if within(name, layer)), [count - 1])
        shares = [base * layer_decay ** (count - 1 - i) for i in layers]
        return shares[0] if len(shares) == 1 else jnp.array(shares).reshape(-1, *(1,) * (leaf.ndim - 1))

    return unflatten_dict({name: factor(name, leaf) for name, leaf in names.items()}, sep="/")


def split(params: Any, frozen: Sequence[str]) -> tuple[Any, Any]:
    """Parts parameters into those that learn and those that do not.

    Args:
        params: nested dict of parameters.
        frozen: paths of the parts that do not learn, such as "backbone" or "backbone/layer1_0".

    Returns:
        Two nested dicts, without what is in the other.

    Raises:
        UserError: a path without parameters, or all of them.

    Example:
        >>> split({"backbone": {"kernel": 1}, "head": {"kernel": 2}}, ("backbone",))
        ({'head': {'kernel': 2}}, {'backbone': {'kernel': 1}})
    """
    leaves = flatten_dict(params, sep="/")
    for part in frozen:
        if not any(within(name, part) for name in leaves):
            parts = {name.rsplit("/", n)[0] for name in leaves for n in range(1, name.count("/") + 1)}
            near = " or ".join(map(repr, difflib.get_close_matches(part, sorted(parts), n=3)))
            hint = f" Did you mean {near}?" if near else f" It has {', '.join(dict.fromkeys(params))}."
            raise UserError(f"optimizer.frozen={tuple(frozen)}: the model has no part {part!r}.{hint}")
    held = {name: leaf for name, leaf in leaves.items() if any(within(name, part) for part in frozen)}
    if len(held) == len(leaves):
        raise UserError(f"optimizer.frozen={tuple(frozen)} leaves nothing to learn.")
    learns = {name: leaf for name, leaf in leaves.items() if name not in held}
    return unflatten_dict(learns, sep="/"), unflatten_dict(held, sep="/")


def merge(a: Any, b: Any) -> Any:
    """Puts together what `split` parted.

    Args:
        a: nested dict.
        b: another, without a leaf in common.

    Returns:
        All leaves.

    Example:
        >>> merge({"head": {"kernel": 2}}, {"backbone": {"kernel": 1}})
        {'head': {'kernel': 2}, 'backbone': {'kernel': 1}}
    """
    return unflatten_dict(flatten_dict(a) | flatten_dict(b))
