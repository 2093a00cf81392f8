"""The error that a user can fix, and checks of configuration values.

A configuration key is a keyword argument whose annotation has its meaning and its range:

    def make(*, learning_rate: Annotated[float, Key("at the peak", "[0, inf)")] = 1e-3): ...

The signature alone defines a key's default, type, range and meaning; the configuration, the check of its values and
`segjax config` follow from it.
"""

import collections
import contextlib
import difflib
import functools
import inspect
import numbers
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class UserError(ValueError):
    """An error that the user can fix: the command line prints it as one paragraph, without a traceback."""


def check_choice(key: str, value: Any, choices: Any) -> None:
    """Raises a UserError that names the nearest choice if the value of a key is not one of the choices."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), list(map(str, choices)), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(str(choice) or "''" for choice in choices)
        raise UserError(f"{key}={value!r} is not one of {listed}.{hint}")


def choose(key: str, name: str, table: dict[str, Any]) -> Any:
    """Looks up the value of a key in a table; raises a UserError that names the nearest choice."""
    check_choice(key, name, table)
    return table[name]


def check_keys(given: Any, known: Any, section: str) -> None:
    """Raises a UserError that names the nearest key if a section is given an unknown one."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1)
            hint = f" Did you mean {section}.{near[0]}?" if near else f" Known: {', '.join(known)}."
            raise UserError(f"There is no configuration key {section}.{key}.{hint}")


def first_names(names: Sequence[str]) -> str:
    """Joins the first five names of samples for a message.

    Args:
        >>> first_names(["a", "b"])
        'a, b'
    """
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def spread(items: Sequence[Any]) -> Sequence[Any]:
    """Returns at most 64 items, spread evenly.

    Example:
        >>> spread(range(128))[:3]
        range(0, 6, 2)
    """
    return items[:: max(1, -(-len(items) // 64))]


@contextlib.contextmanager
def writing(place: str) -> Iterator[None]:
    """Turns an OSError while writing to a place, such as "The workdir runs/a", into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror or error}.") from error


class Key(NamedTuple):
    """The annotation of a configuration key: its meaning in one line, and its range.

    The range is an interval such as "[0, 1)", for every number of a tuple; or the choices; or "" for any value. Numbers
    must always be finite.
    """

    line: str
    range: str | tuple[str | int, ...] = ""


class Setting(NamedTuple):
    """A configuration key of a function."""

    default: Any  # None if it is required
    required: bool
    type: Any  # the annotation without the key
    key: Key


@functools.cache
def keys_of(function: Callable) -> Mapping[str, Setting]:
    """Returns the keys of a function or class by name: the parameters of its signature that are annotated with a `Key`.

    Example:
        >>> def train(*, steps: typing.Annotated[int, Key("length of the run", "[1, inf)")] = 10): ...
        >>> keys_of(train)["steps"].default
        10
    """
    settings = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        for extra in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(extra, Key):
                required = parameter.default is parameter.empty
                default = None if required else parameter.default
                settings[name] = Setting(default, required, parameter.annotation.__origin__, extra)
    return types.MappingProxyType(settings)


def check_section(section: str, function: Callable, values: Mapping[str, Any], complete: bool = False) -> None:
    """Checks the values of a configuration section, "" for keys outside of sections, against a signature.

    With `complete`, keys without a default must have a value.

    Raises:
        UserError: an unknown or missing key, a value of another type, or a number out of range or not finite.

    Example:
        >>> def train(*, steps: typing.Annotated[int, Key("length of the run", "[1, inf)")] = 10): ...
        >>> check_section("run", train, {"steps": 0})
        Traceback (most recent call last):
        segjax.checks.UserError: run.steps=0 must be a whole number in [1, inf): length of the run.
    """
    known = keys_of(function)
    check_keys(values, known, section)
    for name, value in values.items():
        setting = known[name]
        if value is None and setting.default is None:
            continue
        key, path = setting.key, f"{section}.{name}" if section else name
        fits = _fits(value, setting.type)
        if fits and isinstance(key.range, tuple):
            for each in value if isinstance(value, tuple | list) else (value,):
                check_choice(path, each, key.range)
        elif not fits or not all(map(functools.partial(_inside, key.range), _numbers(value))):
            where = f" in {key.range}" if key.range else ""
            raise UserError(f"{path}={value!r} must be {allowed_values(setting.type)}{where}: {key.line}.")
    for name, setting in known.items():
        if complete and setting.required and values.get(name) is None:
            raise UserError(f"{section}.{name} must be set: {setting.key.line}.")


def allowed_values(kind: Any) -> str:
    """Describes the values that an annotation allows, in words that follow "must be".

    Example:
        >>> allowed_values(tuple[int, ...] | None)
        'whole numbers or None'
    """
    names = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text", type(None): "None"}
    if kind in names:
        return names[kind]
    arguments = typing.get_args(kind)
    if _is_union(kind):
        return " or ".join(dict.fromkeys(map(allowed_values, arguments)))
    if _is_sequence(kind):
        parts = [part for part in arguments if part is not ...]
        count = f"{len(parts)} " if typing.get_origin(kind) is tuple and ... not in arguments else ""
        plural = {int: "whole numbers", float: "finite numbers", str: "names"}
        return count + plural.get(parts[0] if parts else None, "values")
    return "a value of the documented type"


def _fits(value, kind):
    """Whether a configuration value has a type; lists count as tuples, and whole numbers as float."""
    if _is_union(kind):
        return any(_fits(value, part) for part in typing.get_args(kind))
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if _is_sequence(kind):
        parts = typing.get_args(kind)
        if not isinstance(value, tuple | list | range):
            return False
        if typing.get_origin(kind) is tuple and ... not in parts:
            return len(value) == len(parts) and all(map(_fits, value, parts))
        return all(_fits(each, parts[0]) for each in value) if parts else True
    return isinstance(value, kind) if kind in (bool, str, type(None)) else True


def _is_union(kind):
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _is_sequence(kind):
    return typing.get_origin(kind) in (tuple, list, collections.abc.Sequence)


def _numbers(value):
    """Yields all numbers within a value."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _numbers(each)
    elif hasattr(value, "items"):
        for _, each in value.items():
            yield from _numbers(each)


def _inside(interval, number):
    """Whether a number is finite and lies in an interval such as "[0, 1)"; "" allows all finite numbers."""
    if not abs(number) <= sys.float_info.max:
        return False
    if not interval:
        return True
    left, low, high, right = re.fullmatch(r"([\[(])(.+), (.+)([\])])", interval).groups()
    above = number >= float(low) if left == "[" else number > float(low)
    below = number <= float(high) if right == "]" else number < float(high)
    return above and below
