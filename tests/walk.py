"""Prints what a run walks through: python tests/walk.py [FLAG ...], flags as `segjax train` takes them.

The files of segjax of which a function is called, in any thread, from the command to its result, with their lines; the
bodies of modules and classes do not count. The run is `segjax train --config configs/tiny.py --config.run.total=2`.
"""

import json
import pathlib
import sys
import tempfile
import threading

OWN_LOCALS = 0x2  # of a code object: a function's, not a module's or a class body's
COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")  # functions of their own before Python 3.12
ROOT = pathlib.Path(__file__).resolve().parent.parent


def walk(flags):
    """Runs the command under a profiler; returns the lines of each file whose functions were called."""
    package, seen = str(ROOT / "segjax"), set()

    def profile(frame, event, argument):
        code = frame.f_code
        if (
            event == "call"
            and code.co_filename.startswith(package)
            and code.co_filename.endswith(".py")
            and code.co_flags & OWN_LOCALS
            and code.co_name not in COMPREHENSIONS
        ):
            seen.add(code.co_filename)

    from segjax.cli import main

    threading.setprofile(profile)
    sys.setprofile(profile)
    with tempfile.TemporaryDirectory() as workdir:
        code = main(
            ["train", f"--config={ROOT}/configs/tiny.py", "--config.run.total=2", f"--workdir={workdir}", *flags]
        )
    sys.setprofile(None)
    threading.setprofile(None)
    assert code == 0
    return {str(pathlib.Path(name).relative_to(package)): len(pathlib.Path(name).read_text().splitlines())
            for name in sorted(seen)}  # fmt: skip


if __name__ == "__main__":
    files = walk(sys.argv[1:])
    for name, lines in files.items():
        print(f"{lines:6}  {name}")
    print(json.dumps({"files": len(files), "lines": sum(files.values())}))
