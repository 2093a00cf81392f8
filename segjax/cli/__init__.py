"""The command line: `segjax VERB …`, one file a verb."""

import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from absl import flags

from segjax.spec import UserError

VERBS = {
    "train": "trains and evaluates; resumes from the workdir by itself",
    "evaluate": "scores a workdir's checkpoint",
    "predict": "images or a folder in, masks and overlays out",
    "inspect": "audits a data set and shows what the pipeline feeds",
    "doctor": "versions, devices, what is missing and the command that mends it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; the last line on stdout is one JSON object.

    Args:
        argv: verb and flags; None takes them from the process.

    Returns:
        Exit code: 0, 1 for what went wrong in the run, 2 for a command that cannot be understood.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = argv[0] if argv else "--help"
    if verb in ("-h", "--help", "help"):
        print("usage: segjax VERB [flags]     (segjax VERB --help lists the flags)\n")
        print("\n".join(f"  {name:10}{text}" for name, text in VERBS.items()))
        return 0
    verbose = "--verbose" in argv
    try:
        if verb not in VERBS:
            raise UserError(f"There is no verb {verb!r}. Verbs: {', '.join(VERBS)}.")
        _quiet()
        values = _parse(verb, argv[1:])
        if values is None:
            return 0
        result = _module(verb).main(values)
        if result is not None:
            print(json.dumps(result), flush=True)
        return 0
    except UserError as error:
        if verbose:
            traceback.print_exc()
        print(f"segjax: {error}", file=sys.stderr)
        return 1
    except flags.Error as error:
        print(f"segjax: {error} (`segjax {verb} --help` lists the flags)", file=sys.stderr)
        return 2


def _module(verb: str) -> ModuleType:
    """The verb's file, imported only now: `segjax doctor` must run where half of the packages are broken."""
    if verb == "train":
        from segjax.cli import train as module
    elif verb == "evaluate":
        from segjax.cli import evaluate as module
    elif verb == "predict":
        from segjax.cli import predict as module
    elif verb == "inspect":
        from segjax.cli import inspect as module
    else:
        from segjax.cli import doctor as module
    return module


def _parse(verb: str, argv: list[str]) -> flags.FlagValues | None:
    """Parses a verb's flags; None after printing its help."""
    module, values = _module(verb), flags.FlagValues()
    flags.DEFINE_bool("verbose", False, "Print the traceback of an error.", flag_values=values)
    module.define_flags(values)
    if {"-h", "--help"} & set(argv):
        print(f"segjax {verb}: {VERBS[verb]}\n{values.main_module_help() or values}")
        return None
    before, sys.argv = sys.argv, [f"segjax {verb}", *argv]  # config_flags reads its overrides from there
    try:
        rest = values(sys.argv)[1:]
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        text = str(error.args[0] if error.args else error)
        raise UserError(f"The configuration cannot be read: {text}") from error
    finally:
        sys.argv = before
    if rest:
        raise UserError(f"{' '.join(rest)}: not understood; flags start with --.")
    return values


def _quiet() -> None:
    """Keeps the libraries' chatter away from the run's own lines."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("segjax").setLevel(logging.INFO)
