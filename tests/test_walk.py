"""A person can follow a run: the files that it enters, and their lines, are few."""

import json
import pathlib
import subprocess
import sys

import pytest

WALK = pathlib.Path(__file__).with_name("walk.py")


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["tf.data", "threads"])
def test_walk_of_a_run(loader):
    """From the command to the report, in the files whose functions are called, in any thread.

    Five files and a thousand lines of them look at the data before the first step, and group it by size.
    """
    if loader == "tf.data":
        pytest.importorskip("tensorflow")
    command = [sys.executable, str(WALK), f"--config.loading.loader={loader}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["files"] <= 43 and found["lines"] <= 6600, done.stdout
