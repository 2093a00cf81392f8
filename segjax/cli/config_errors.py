"""Locates and describes errors in configuration files and the files that they import."""

import os
import re
import sys
import traceback

from segjax.checks import keys_of
from segjax.config import CHOICES, SECTIONS


def error_location(error: Exception, package: str, file: str) -> str:
    """Returns the last line of the package's files in the traceback of an error, or the file itself."""
    places = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] == package
    ]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    places = [f"{name}, line {line}" for name, line in places if os.path.isfile(name)]
    return places[-1] if places else file


def elsewhere(key: str) -> str:
    """Names the sections that have a key, as the second sentence of an error; "" if none has."""
    functions = {section: [function] for section, function in SECTIONS.items()}
    functions |= {section: list(table.values()) for section, table in CHOICES.items()}
    sections = [section for section, each in functions.items() if any(key in keys_of(one) for one in each)]
    return f" It is a key of {' and '.join(sections)}." if sections else ""


def error_text(error: Exception, package: str) -> str:
    """Returns the text of an error; for ConfigDict's, which list whole sections, the key and what is wrong with it."""
    text = str(error.args[0] if error.args else error)
    near = re.search(r'Did you mean "(.*)" instead of "(.*)"', text)
    unknown = re.search(r'Key "(.*)" does not exist', text)
    if key := near[2] if near else unknown and unknown[1]:
        hint = elsewhere(key) or (f" Did you mean {near[1]!r}?" if near else "")
        return f"there is no configuration key {key!r}.{hint}"
    if kind := re.search(r"field '(.*?)'.*?\. (.*) is of original type .* to type <class '(.*)'>", text, re.DOTALL):
        return f"{kind[1]} = {kind[2]} must be of type {kind[3]}."
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == package:
        text = re.sub(rf"{package}\.?", ".", text)
        text += f". The first dot means the folder {sys.modules[package].__path__[0]}."
    return f"{type(error).__name__}: {text}"
