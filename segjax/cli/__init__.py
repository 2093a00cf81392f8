"""The command line: `segjax VERB …`, one module per verb."""

import functools
import importlib.metadata
import json
import logging
import operator
import os
import re
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from absl import flags

from segjax.checks import UserError


class Verb(NamedTuple):
    """What a verb does, and its required flags."""

    text: str
    required: tuple[str, ...] = ()


VERBS = {
    "train": Verb("trains and evaluates; resumes automatically from the workdir", ("config", "workdir")),
    "evaluate": Verb("evaluates a workdir's checkpoint, or predictions in files"),
    "predict": Verb("predicts masks and overlays for images or folders", ("workdir", "input", "output")),
    "compile": Verb("estimates memory and time of a run's steps, also for a TPU you do not have", ("config",)),
    "benchmark": Verb("times the same steps, and the input, on the local devices; names the bottleneck", ("config",)),
    "inspect": Verb("audits a data set and draws training crops", ("config",)),
    "config": Verb("prints all keys of a configuration, or [SECTION[.KEY]], with value, range and meaning"),
    "doctor": Verb("reports versions, devices and problems, with the command that fixes each"),
}


class _Stderr(logging.StreamHandler):
    """Writes to the current sys.stderr: the progress bar replaces it to print lines above itself."""

    def emit(self, record):
        self.stream = sys.stderr
        super().emit(record)


log = logging.getLogger("segjax")
_HANDLER = _Stderr()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; the last line on stdout is a JSON object.

    Args:
        argv: verb and flags; None for those of the process.

    Returns:
        Exit code: 0 for success, 1 for a failed run, 2 for an invalid command, 130 for Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = argv[0] if argv else "--help"
    if verb == "--version":
        print(f"segjax {importlib.metadata.version('segjax')}")
        return 0
    if verb in ("-h", "--help", "help"):
        from segjax.cli import help

        print(help.verbs())
        return 0
    _quiet()
    try:
        if verb not in VERBS:
            raise flags.Error(f"There is no verb {verb!r}. Verbs: {', '.join(VERBS)}.")
        values = _parse(verb, argv[1:])
        if values is None:
            return 0
        result = _module(verb).main(values)
        if result is not None:
            print(json.dumps(result), flush=True)
        return int(result is not None and not result.get("ok", True))
    except (UserError, OSError, flags.Error, KeyboardInterrupt) as error:
        if "--verbose" in argv:
            traceback.print_exc()
        log.error("segjax: %s", "interrupted" if isinstance(error, KeyboardInterrupt) else error)
        return _leave(2 if isinstance(error, flags.Error) else 130 if isinstance(error, KeyboardInterrupt) else 1)
    except Exception as error:  # a bug, ours or a library's: still one line
        if "--verbose" in argv:
            traceback.print_exc()
        text = " ".join(str(error).split())[:500]
        log.error("segjax: %s: %s (--verbose shows where)", type(error).__name__, text)
        return _leave(1)


def _leave(code: int) -> int:
    """Returns the exit code of a failed run; with several hosts, ends the process at once.

    Otherwise JAX would wait at exit for the other hosts, which wait for this one in a step. They end after it does: see
    HEARTBEAT_SECONDS in segjax.cli.join.
    """
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _module(verb: str) -> ModuleType:
    """Imports a verb's module on demand: `segjax doctor` must run even if half of the packages are broken."""
    if verb == "train":
        from segjax.cli import train as module
    elif verb == "evaluate":
        from segjax.cli import evaluate as module
    elif verb == "predict":
        from segjax.cli import predict as module
    elif verb == "compile":
        from segjax.cli import compile as module
    elif verb == "benchmark":
        from segjax.cli import benchmark as module
    elif verb == "inspect":
        from segjax.cli import inspect as module
    elif verb == "config":
        from segjax.cli import config as module
    else:
        from segjax.cli import doctor as module
    return module


def _parse(verb: str, argv: list[str]) -> flags.FlagValues | None:
    """Parses a verb's flags; None after printing its help."""
    values = flags.FlagValues()
    _module(verb).define_flags(values)
    flags.DEFINE_bool("verbose", False, "Print the traceback of an error.", flag_values=values)
    if {"-h", "--help"} & set(argv):
        from segjax.cli import help

        print(help.flags_of(verb, values))
        return None
    try:
        if "config" in values:
            from segjax.cli.config_flags import load_config

            argv = load_config(values, argv)
        rest = values([verb, *argv])[1:]
        if verb == "config" and len(rest) == 1:
            values["key"].value = rest.pop()
        if rest:
            raise flags.Error(f"{' '.join(rest)}: not understood; flags start with --.")
        if missing := [name for name in VERBS[verb].required if values[name].value is None]:
            raise flags.Error(f"segjax {verb} needs {' and '.join(f'--{name}' for name in missing)}")
        if "config" in values and values.config is not None:
            from segjax.config import check

            check(values.config)
    except flags.Error as error:
        text = str(error).removeprefix("flag ")
        if wrong := re.match(r"--config\.([\w.]+)=", text):
            text += f"; it is {functools.reduce(operator.getitem, wrong[1].split('.'), values['config'].value)!r} now"
        raise flags.Error(f"{text} (`segjax {verb} --help` lists the flags)") from error
    return values


def _quiet() -> None:
    """Silences the libraries' messages."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("absl").setLevel(logging.ERROR)
    log.setLevel(logging.INFO)
    # On the root logger, to which absl would otherwise add a handler that prints each line a second time.
    logging.getLogger().addHandler(_HANDLER)
