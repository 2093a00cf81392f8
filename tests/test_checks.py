from typing import Annotated, Any

import pytest

from segjax import checks
from segjax.checks import Key, UserError

pytestmark = pytest.mark.core


def example(
    spec: Any,
    *,
    count: Annotated[int | None, Key("images", "[1, inf)")] = None,
    size: Annotated[tuple[int, int], Key("rows, columns", "[1, inf)")] = (4, 4),
    widths: Annotated[tuple[int, ...], Key("channels", "[1, inf)")] = (),
    rate: Annotated[float, Key("at the peak", "[0, 1)")] = 0.5,
    resize: Annotated[float | tuple[int, int] | None, Key("a factor or a size", "(0, inf)")] = None,
    mode: Annotated[str, Key("how", ("jit", "pmap"))] = "jit",
    on: Annotated[bool, Key("whether")] = False,
    ids: Annotated[Any, Key("classes")] = None,
    root: Annotated[str, Key("folder")],
):
    """What a section configures."""


def test_settings_are_the_annotated_arguments_with_their_defaults():
    found = checks.keys_of(example)
    assert list(found) == ["count", "size", "widths", "rate", "resize", "mode", "on", "ids", "root"]
    assert found["size"].default == (4, 4) and found["root"].default is None and found["rate"].key.line == "at the peak"


@pytest.mark.parametrize(
    "values",
    [{"count": 3}, {"count": None}, {"size": [2, 3]}, {"widths": ()}, {"rate": 0}, {"resize": 0.5}, {"resize": (2, 3)},
     {"mode": "pmap"}, {"on": True}, {"ids": {"0": "sky"}}, {"root": None}, {"root": "data"}],
)  # fmt: skip
def test_values_that_fit(values):
    checks.check_section("demo", example, values)


@pytest.mark.parametrize(
    "name, value",
    [("count", 0), ("count", 1.5), ("count", True), ("size", (4,)), ("size", (4, 0)), ("size", 4), ("size", ("a", "b")),
     ("widths", (8, -1)), ("widths", None), ("rate", 1), ("rate", float("nan")), ("rate", float("-inf")),
     ("rate", "high"), ("rate", None), ("resize", 0), ("resize", (2, 3, 4)), ("mode", "pmapp"), ("on", 1),
     ("ids", {"0": float("inf")}), ("root", 3)],
)  # fmt: skip
def test_values_that_do_not_fit_are_named(name, value):
    with pytest.raises(UserError) as error:
        checks.check_section("demo", example, {name: value})
    assert str(error.value).startswith(f"demo.{name}={value!r} ")
    interval = checks.keys_of(example)[name].key.range
    assert not interval or all(
        text in str(error.value) for text in ([interval] if isinstance(interval, str) else interval)
    )


def test_unknown_keys_name_the_nearest():
    with pytest.raises(UserError, match=r"demo.widhts.*demo.widths"):
        checks.check_section("demo", example, {"widhts": (8,)})
