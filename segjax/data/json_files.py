"""Reads JSON files that nobody need trust."""

import json
import re
from pathlib import Path
from typing import Any

from segjax.checks import UserError
from segjax.data import files

_STRING_OR_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)', re.DOTALL)


class _Constant(ValueError):
    """A constant that is not JSON: NaN, Infinity or -Infinity."""


def read_json(path: Path, key: str = "") -> Any:
    """Reads a JSON file in UTF-8, with or without a byte order mark.

    Args:
        path: file.
        key: configuration key of the file, for the message.

    Returns:
        Its content.

    Raises:
        UserError: the file cannot be read, is not JSON, holds NaN or Infinity, or is nested too deeply.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.json")
        ...     size = path.write_text("[" * 100000)
        ...     read_json(path)
        Traceback (most recent call last):
        segjax.checks.UserError: ...a.json is nested too deeply for an annotation file.
    """
    text = files.read_text(path, key)
    start = f"source.{key}: " if key else ""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise UserError(f"{start}{path} is nested too deeply for an annotation file.") from None
    except _Constant as error:
        found = next(match for match in _STRING_OR_CONSTANT.finditer(text) if match[1])
        line, before = text.count("\n", 0, found.start()) + 1, text[max(0, found.start() - 60) : found.end()]
        raise UserError(
            f"{start}{path}, line {line}: {error} is not a number of JSON; remove it or write a number: …{before}"
        ) from error
    except ValueError as error:
        raise UserError(f"{start}{path} cannot be read as JSON ({error}).") from error


def _refuse(constant):
    raise _Constant(constant)
