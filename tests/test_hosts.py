"""Several processes, each with its own devices and joined by Gloo, train and score as one process does."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import tiny_runs
from absl import flags

from segjax.checks import UserError
from segjax.cli import config_flags, hosts
from segjax.data import pipeline
from segjax.data.loader import Loading
from segjax.spec import Preprocess
from segjax.train import loop, workdir
from segjax.train.components import open_source
from segjax.train.restore import evaluate_workdir, restore
from segjax.train.workdir import read_config

ROOT = pathlib.Path(__file__).parent.parent
# What a host does to itself or reports is put around the batches that it reads.
CONFIG = """
    import os, pathlib, signal, time
    import numpy as np
    from segjax.config import default_config
    from segjax.data.pipeline import Batches
    from segjax.checks import UserError

    def get_config(what=""):
        config = default_config(source="shapes")
        config.source.count, config.source.size = 30, (32, 32)
        config.data.batch_size, config.data.crop, config.eval.batch_size = 4, (32, 32), 4
        config.data.scale, config.augment.noise = (0.7, 1.5), 0.1
        config.model.widths, config.model.dropout, config.ema.decay = (4,), 0.2, 0.9
        config.optimizer.name = "sgd"
        config.loading.loader, config.log.tensorboard = "threads", False
        config.run.total, config.run.checkpoint_every, config.run.log_every = 8, 4, 1
        config.checkpoint.evaluate = "last"
        what, _, folder = what.partition("@")
        if what:
            around(what, pathlib.Path(folder))
        return config

    def around(what, folder):
        batches = Batches.batches

        def changed(self, start, stop):
            host = self.process[0]
            for i, batch in enumerate(batches(self, start, stop), start):
                if what == "killed":
                    np.savez(folder / f"batch_{i}_{host}.npz", **batch)
                    if i == 6:
                        while not (folder / "checkpoints" / "4").exists():
                            time.sleep(0.05)
                        os.kill(os.getpid(), signal.SIGKILL)
                if what == "failing" and i == 2 and host == 1:
                    raise UserError("This share of the data is corrupt.")
                yield batch

        Batches.batches = changed
"""


def start(*arguments, devices, **environment):
    """One host in a process of its own: `segjax ...`."""
    environment = tiny_runs.environment(devices) | environment
    command = [sys.executable, "-m", "segjax", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_all(hosts, *arguments, devices, only=None):
    """All hosts of a run, or only some; "{host}" in an argument becomes the host's index."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    joining = ("--coordinator", f"localhost:{port}", "--hosts", hosts, "--host", "{host}")
    given = [str(argument) for argument in (*arguments, *joining)]
    return [
        start(*(argument.replace("{host}", str(i)) for argument in given), devices=devices)
        for i in (range(hosts) if only is None else only)
    ]


def finish(processes):
    """(exit code, stdout, stderr) of each host."""
    try:
        texts = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def result(ended):
    """What host 0 printed last; the others print no result."""
    assert [code for code, _, _ in ended] == [0] * len(ended), ended
    assert not any("{" in out for _, out, _ in ended[1:]) and not any(err.strip() for _, _, err in ended[1:]), ended
    return json.loads(ended[0][1].splitlines()[-1])


def state(workdir):
    config, spec = read_config(str(workdir))
    return jax.device_get(restore(config, spec, str(workdir))[1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on two hosts that both die, and its end on 1, 2 and 4; beside it one process that goes through."""
    folder = tmp_path_factory.mktemp("hosts")
    file = folder / "mine.py"
    file.write_text(textwrap.dedent(CONFIG))
    two = folder / "2"
    two.mkdir()
    dying = start_all(2, "train", "--config", f"{file}:killed@{two}", "--workdir", two, devices=2)
    config = config_flags.read_config_file(str(file))
    whole = loop.train_and_evaluate(config, str(folder / "whole"))
    assert [code for code, _, _ in finish(dying)] == [-9, -9]
    for other in ("1", "4"):
        shutil.copytree(two, folder / other)
    summaries = {"whole": whole}
    resumed = start_all(4, "train", "--config", file, "--workdir", folder / "4", devices=1)
    summaries["1"] = loop.train_and_evaluate(config, str(folder / "1"))
    summaries["4"] = result(finish(resumed))
    summaries["2"] = result(finish(start_all(2, "train", "--config", file, "--workdir", two, devices=2)))
    return folder, config, summaries


@pytest.mark.slow
def test_hosts_read_the_rows_of_one_batch(runs):
    folder, config, _ = runs
    source = open_source(config, "train")
    data = {k: v for k, v in config.data.items() if k != "batch_size"}
    batches = pipeline.train_batches(
        source, Preprocess(**config.preprocess), Loading("threads"), config.seed, batch_size=4, **data
    )
    for i, batch in enumerate(batches.batches(0, 6)):
        parts = [np.load(folder / "2" / f"batch_{i}_{host}.npz") for host in (0, 1)]
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([part[key] for part in parts]))


@pytest.mark.slow
@pytest.mark.parametrize("hosts", ["1", "2", "4"])
def test_any_number_of_hosts_takes_up_a_run_and_ends_as_one_process(runs, hosts):
    """Parameters, moments, statistics and averages after 8 steps; other orders of adding cost 1e-6 at most."""
    folder, _, _ = runs
    assert not list((folder / hosts).glob(".shared*"))
    a, b = state(folder / "whole"), state(folder / hosts)
    assert jax.tree.structure(a) == jax.tree.structure(b) and a.step == b.step == 8
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
@pytest.mark.parametrize("hosts", ["2", "4"])
def test_hosts_score_each_image_once(runs, hosts):
    """Of 30 images in batches of 4: the figures are those of one process, to the last digit."""
    folder, _, summaries = runs
    alone = evaluate_workdir(str(folder / hosts))
    assert alone["images"] == 30 and alone["pixels"] == 30 * 32 * 32
    assert {**alone, "split": 0, "seconds": 0} == {**summaries[hosts], "split": 0, "seconds": 0}


@pytest.mark.slow
@pytest.mark.parametrize("hosts", ["2", "4"])
def test_one_host_writes_the_log(runs, hosts):
    lines = [json.loads(line) for line in (runs[0] / hosts / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in lines] == [(i, "train") for i in range(1, 9)] + [(8, "test")]


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(CONFIG))
    return file


@pytest.mark.slow
def test_hosts_say_that_one_is_missing(tmp_path, mine):
    """Whichever is missing: a flag names the peers of one, Slurm those of the other."""
    common = ("train", "--config", mine, "--workdir", tmp_path, "--join_timeout", 2)
    second = start_all(2, *common, devices=1, only=[1])
    number = str(os.getpid())  # JAX takes the port from it
    job = {"SLURM_JOB_ID": number, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    first = start(*common, devices=1, SLURM_PROCID="0", SLURM_LOCALID="0", **job)
    (code, _, text), (first_code, _, first_text) = finish([*second, first])
    assert code == first_code == 1
    assert (
        "host 1 of 2, coordinator localhost:" in text and f"host 0 of 2, Slurm job {number} on localhost" in first_text
    )
    for each in (text, first_text):
        assert "within 2 seconds" in each and "--join_timeout" in each and "--worker=all" in each
        assert "waiting" in each and "Traceback" not in each


@pytest.mark.slow
def test_a_host_that_fails_takes_the_others_with_it(tmp_path, mine):
    run = start_all(2, "train", "--config", f"{mine}:failing", "--workdir", tmp_path / "run", devices=1)
    (other, _, _), (code, _, text) = finish(run)
    assert code == 1 and text.startswith("host 1: segjax: This share of the data is corrupt.")
    assert other in (1, -6)  # the step fails, or JAX ends the process


def test_a_workdir_that_hosts_do_not_share_is_named(tmp_path, mine):
    ended = finish(start_all(2, "train", "--config", mine, "--workdir", tmp_path / "{host}", devices=1))
    for i, (code, _, text) in enumerate(ended):
        assert code == 1 and text.startswith(f"host {i}: segjax: Hosts 1 do not see what host 0 writes")


def test_a_workdir_in_a_bucket_is_not_made_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs://bucket/run"):
        workdir.make_workdir("gs://bucket/run")
    assert not list(tmp_path.iterdir())


def values(*arguments):
    values = flags.FlagValues()
    hosts.define_hosts(values)
    values(["segjax", *arguments])
    return values


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--coordinator=a:1"], "go together"),
        (["--coordinator=a:1", "--hosts=2", "--host=2"], "go together"),
        (["--coordinator=a:1", "--hosts=2", "--host=1", "--nodistributed"], "go together"),
        (["--coordinator=a", "--hosts=2", "--host=1"], "ADDRESS:PORT"),
    ],
)
def test_flags_that_do_not_fit(arguments, said):
    with pytest.raises(UserError, match=said):
        hosts.join_hosts(values(*arguments))


def test_a_port_that_another_run_holds():
    with socket.create_server(("", 0)) as s:
        port = s.getsockname()[1]
        with pytest.raises(UserError, match=f"localhost:{port}: the port cannot be opened"):
            hosts.join_hosts(values(f"--coordinator=localhost:{port}", "--hosts=2", "--host=0"))


def test_nothing_is_joined_where_nothing_says_so(monkeypatch):
    monkeypatch.setattr(hosts, "metadata", lambda key: pytest.fail("the network was asked"))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("hosts were joined"))
    hosts.join_hosts(values())
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1.0;tcp://10.0.0.1:1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    hosts.join_hosts(values("--nodistributed"))


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_NTASKS": "4", "SLURM_PROCID": "3"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}
OMPI = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        (SLURM, (4, 3)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # an interactive shell in a job of four
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, None),  # sbatch without srun
        (OMPI, (2, 1)),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # many a CI machine
    ],
)
def test_the_environment_says_how_many_processes_there_are(environment, expected):
    found = hosts.find_cluster(environment, False, lambda key: pytest.fail("the network was asked"))
    assert (found and (found.hosts, found.host)) == expected


@pytest.mark.parametrize(
    "environment, attributes, expected",
    [
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None, None),  # one worker
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, None, (2, 1, "a, b")),  # Kubernetes
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1", **SLICES}, None, (4, 3, "a, b")),
        ({"TPU_PROCESS_ADDRESSES": "a:8471,b:8471", "TPU_WORKER_ID": "0"}, None, (2, 0, "a:8471, b:8471")),
        ({"TPU_SKIP_MDS_QUERY": "1"}, None, None),
        ({}, {}, None),  # no server, as in a notebook
        ({}, {"worker-network-endpoints": "x:y:10.0.0.5", "agent-worker-number": "0"}, None),
        (
            {},
            {"worker-network-endpoints": "x:y:10.0.0.5,x:z:10.0.0.6", "agent-worker-number": "1"},
            (2, 1, "10.0.0.5, 10.0.0.6"),
        ),
        (
            {},
            {
                "worker-network-endpoints": "a",
                "agent-worker-number": "0",
                "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'",
            },
            (2, 1, "a"),
        ),
    ],
)
def test_a_tpu_says_how_many_workers_there_are(environment, attributes, expected):
    ask = attributes.get if attributes is not None else lambda key: pytest.fail("the network was asked")
    found = hosts.find_cluster(environment, True, ask)
    assert found == (expected and (expected[0], expected[1], f"Cloud TPU workers {expected[2]}"))


def test_no_metadata_server_is_no_attribute(monkeypatch):
    with socket.socket() as s:  # a port of this machine at which nobody listens
        s.bind(("127.0.0.1", 0))
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{s.getsockname()[1]}")
        assert hosts.metadata("agent-worker-number") is None
