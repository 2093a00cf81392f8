"""Parameter groups: learning rate factors by layer, and frozen parameters."""

import difflib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax.checks import UserError
from segjax.nn.layers import is_within


def learning_rate_factors(params: Any, layer_order: Sequence[str], backbone_factor: float, layer_decay: float) -> Any:
    r"""Computes the factor on the learning rate of each parameter.

    Layer i of n gets `layer_decay ** (n - 1 - i)`; parameters outside all layers get 1, as in EoMT (Kerssies et al.
    2025, arXiv:2503.19108). BEiT (Bao et al. 2022, arXiv:2106.08254) applies the decay once more to each layer.
    Parameters under "backbone" are also multiplied by `backbone_factor`. A path that appears k times in `layer_order`
    means k layers stacked along the first axis of its parameters; each layer gets its own factor.

    Args:
        params: nested dict of trainable parameters.
        layer_order: paths of the layers, from input to output, such as "backbone/conv1".
        backbone_factor: factor on the backbone's learning rate.
        layer_decay: factor from each layer to the one before it.

    Returns:
        A tree of factors with the structure of `params`, floats or arrays [k, 1, ...].

    Raises:
        UserError: a factor would apply to no parameter.

    Example:
        >>> params = {"backbone": {"conv1": {"kernel": jnp.ones(2)}, "conv2": {"kernel": jnp.ones(2)}}}
        >>> learning_rate_factors(params, ("backbone/conv1", "backbone/conv2"), 0.1, 0.5)
        {'backbone': {'conv1': {'kernel': 0.05}, 'conv2': {'kernel': 0.1}}}
    """
    count = len(layer_order)
    places = {path: [i for i, each in enumerate(layer_order) if each == path] for path in layer_order}
    names = flatten_dict(params, sep="/")
    for key, value, parts in (
        ("backbone_factor", backbone_factor, ("backbone",)),
        ("layer_decay", layer_decay, places),
    ):
        if value != 1 and not any(is_within(name, part) for name in names for part in parts):
            raise UserError(
                f"optimizer.{key}={value} has no effect: this model has no trainable {key.split('_')[0]}. Set 1.0."
            )

    def factor(name, leaf):
        base = backbone_factor if is_within(name, "backbone") else 1.0
        layers = next((found for layer, found in places.items() if is_within(name, layer)), [count - 1])
        shares = [base * layer_decay ** (count - 1 - i) for i in layers]
        return shares[0] if len(shares) == 1 else jnp.array(shares).reshape(-1, *(1,) * (leaf.ndim - 1))

    return unflatten_dict({name: factor(name, leaf) for name, leaf in names.items()}, sep="/")


def split_frozen(params: Any, frozen: Sequence[str]) -> tuple[Any, Any]:
    """Splits parameters into trainable and frozen ones.

    Args:
        params: nested dict of parameters.
        frozen: paths of the frozen modules, such as "backbone" or "backbone/layer1_0".

    Returns:
        Two nested dicts: the trainable parameters and the frozen ones.

    Raises:
        UserError: a path has no parameters, or all parameters are frozen.

    Example:
        >>> split_frozen({"backbone": {"kernel": 1}, "head": {"kernel": 2}}, ("backbone",))
        ({'head': {'kernel': 2}}, {'backbone': {'kernel': 1}})
    """
    leaves = flatten_dict(params, sep="/")
    for part in frozen:
        if not any(is_within(name, part) for name in leaves):
            parts = {name.rsplit("/", n)[0] for name in leaves for n in range(1, name.count("/") + 1)}
            near = " or ".join(map(repr, difflib.get_close_matches(part, sorted(parts), n=3)))
            hint = f" Did you mean {near}?" if near else f" It has {', '.join(dict.fromkeys(params))}."
            raise UserError(f"optimizer.frozen={tuple(frozen)}: the model has no module {part!r}.{hint}")
    frozen_leaves = {name: leaf for name, leaf in leaves.items() if any(is_within(name, part) for part in frozen)}
    if len(frozen_leaves) == len(leaves):
        raise UserError(f"optimizer.frozen={tuple(frozen)} leaves nothing to train.")
    trainable = {name: leaf for name, leaf in leaves.items() if name not in frozen_leaves}
    return unflatten_dict(trainable, sep="/"), unflatten_dict(frozen_leaves, sep="/")


def join_frozen(a: Any, b: Any) -> Any:
    """Joins what `split_frozen` split.

    Args:
        a: nested dict.
        b: another one, with no leaf in common.

    Returns:
        A nested dict of all leaves.

    Example:
        >>> join_frozen({"head": {"kernel": 2}}, {"backbone": {"kernel": 1}})
        {'head': {'kernel': 2}, 'backbone': {'kernel': 1}}
    """
    return unflatten_dict(flatten_dict(a) | flatten_dict(b))
