"""Several hosts that make one run: who they are."""

import os
import urllib.request
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from absl import flags

from segjax.checks import UserError
from segjax.cli.join import check_port, join


def define_hosts(values: flags.FlagValues) -> None:
    """Defines the flags of runs on several hosts."""
    text = "Join other hosts, or not (--no...); else if a TPU slice, Slurm or Open MPI says so."
    flags.DEFINE_bool("distributed", None, text, flag_values=values)
    flags.DEFINE_string("coordinator", None, "Address:port of host 0, outside such a job.", flag_values=values)
    flags.DEFINE_integer("hosts", None, "Number of hosts, with --coordinator.", 1, flag_values=values)
    flags.DEFINE_integer("host", None, "Index of this host, with --coordinator.", 0, flag_values=values)
    flags.DEFINE_integer("join_timeout", 50, "Seconds to wait for the other hosts.", 1, flag_values=values)


class Cluster(NamedTuple):
    """Several processes that make one run: their number, the index of this one, and where they are, in words."""

    hosts: int
    host: int
    where: str


def join_hosts(values: flags.FlagValues) -> None:
    """Joins the other hosts, where there are any; comes before anything touches a device.

    Raises:
        UserError: flags that do not fit, or hosts that do not come.
    """
    given = (values.coordinator, values.hosts, values.host)
    if given == (None, None, None):
        if values.distributed is False:
            return
        tpu = "tpu" in (jax.config.jax_platforms or "")  # JAX sets it where it finds TPU chips
        cluster = find_cluster(os.environ, tpu, metadata)
        if cluster is None and not values.distributed:
            return
        given = ()
    elif None in given or values.distributed is False or values.host >= values.hosts:
        raise UserError(
            "--coordinator=ADDRESS:PORT, --hosts=NUMBER and --host=INDEX (0 .. NUMBER - 1) go together, without "
            "--nodistributed."
        )
    else:
        check_port(values.coordinator, values.host)
        cluster = Cluster(values.hosts, values.host, f"coordinator {values.coordinator}")
    join(given, cluster, values.join_timeout)


def find_cluster(environment: Mapping[str, str], tpu: bool, metadata: Callable[[str], str | None]) -> Cluster | None:
    """Says of how many processes this is one, by what JAX's own detection of clusters goes by.

    Of Kubernetes without TPUs it says nothing: JAX asks its server, which a pod may not do; --distributed does that.

    Args:
        environment: of the process.
        tpu: whether JAX is to use TPUs.
        metadata: see the function of this name.

    Returns:
        The cluster; None where this is the only process.

    Example:
        >>> job = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
        >>> find_cluster(job, False, metadata)
        Cluster(hosts=2, host=1, where='Slurm job 7 on node[1-2]')
    """
    found = None
    if "OMPI_MCA_orte_hnp_uri" in environment:
        size, rank = environment["OMPI_COMM_WORLD_SIZE"], environment["OMPI_COMM_WORLD_RANK"]
        found = Cluster(int(size), int(rank), "started by mpirun")
    elif {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID"} <= environment.keys():
        # The step of an interactive shell is one task, whatever the job has.
        tasks = environment.get("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"])
        where = f"Slurm job {environment['SLURM_JOB_ID']} on {environment['SLURM_STEP_NODELIST']}"
        found = Cluster(int(tasks), int(environment["SLURM_PROCID"]), where)
    elif tpu:
        found = _tpu_slice(environment, metadata)
    return found if found and found.hosts > 1 else None


def _tpu_slice(environment, metadata):
    """The workers of a Cloud TPU slice, or of several; on Kubernetes the environment holds what the server knows."""
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    worker = environment.get("TPU_WORKER_ID")
    slices, this = environment.get("MEGASCALE_NUM_SLICES"), environment.get("MEGASCALE_SLICE_ID")
    if workers is None:
        if "TPU_SKIP_MDS_QUERY" in environment:
            return None
        workers, worker = metadata("worker-network-endpoints"), metadata("agent-worker-number")
        if workers is None or worker is None:
            return None
        pairs = dict(line.split(":", 1) for line in (metadata("tpu-env") or "").splitlines() if ":" in line)
        slices = slices or pairs.get("MEGASCALE_NUM_SLICES", "").strip(" '")
        this = this or pairs.get("MEGASCALE_SLICE_ID", "").strip(" '")
    names = [name.split(":")[2] if name.count(":") == 2 else name for name in workers.split(",")]  # name:id:address
    count = len(names)
    return Cluster(
        count * int(slices or 1), int(worker or 0) + count * int(this or 0), f"Cloud TPU workers {', '.join(names)}"
    )


def metadata(key: str) -> str | None:
    """An attribute of the machine, from Google Cloud's metadata server; None where there is none, or no such server.

    The server answers within its machines in milliseconds.
    """
    server = os.environ.get("GCE_METADATA_IP", "169.254.169.254")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=3) as answer:
            return answer.read().decode()
    except OSError:
        return None
