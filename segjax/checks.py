"""The error that a user can fix, and checks of what a user set."""

import difflib
from typing import Any


class UserError(ValueError):
    """Something the user can fix: the command line prints it as one paragraph, without a traceback."""


def check_choice(key: str, value: Any, choices: Any) -> None:
    """Checks that a value is one of a few.

    Args:
        key: what the user set, for the message.
        value: what it was set to.
        choices: names that are allowed.

    Raises:
        UserError: another value; names the nearest choice.
    """
    if value not in choices:
        near = difflib.get_close_matches(str(value), list(map(str, choices)), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(str(choice) or "''" for choice in choices)
        raise UserError(f"{key}={value!r} is not one of {listed}.{hint}")


def choose(key: str, name: str, table: dict[str, Any]) -> Any:
    """Looks a name up in a table.

    Args:
        key: what the user set, for the message.
        name: what it was set to.
        table: the choices.

    Returns:
        `table[name]`.

    Raises:
        UserError: not in the table; names the nearest choice.
    """
    check_choice(key, name, table)
    return table[name]


def check_keys(given: Any, known: Any, section: str) -> None:
    """Raises a UserError that names the nearest real key when a section holds one that does not exist.

    Args:
        given: mapping whose keys are checked.
        known: the keys that exist.
        section: name of the section, for the message.

    Raises:
        UserError: an unknown key.
    """
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1)
            hint = f" Did you mean {section}.{near[0]}?" if near else f" Known: {', '.join(known)}."
            raise UserError(f"There is no configuration key {section}.{key}.{hint}")
