"""Several hosts that make one run: who they are."""

import os
from collections.abc import Callable, Mapping

import jax
from absl import flags

from segjax.checks import UserError
from segjax.cli.join import Cluster, check_port, join
from segjax.cli.tpu_slice import metadata, tpu_slice


def define_hosts(values: flags.FlagValues) -> None:
    """Defines the flags of runs on several hosts."""
    text = "Join other hosts, or not (--no...); else if a TPU slice, Slurm or Open MPI says so."
    flags.DEFINE_bool("distributed", None, text, flag_values=values)
    flags.DEFINE_string("coordinator", None, "Address:port of host 0, outside such a job.", flag_values=values)
    flags.DEFINE_integer("hosts", None, "Number of hosts, with --coordinator.", 1, flag_values=values)
    flags.DEFINE_integer("host", None, "Index of this host, with --coordinator.", 0, flag_values=values)
    flags.DEFINE_integer("join_timeout", 50, "Seconds to wait for the other hosts.", 1, flag_values=values)


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
    """Says of how many processes this is one, by what JAX's own detection of clusters goes by; None if it is alone.

    Of Kubernetes without TPUs it says nothing: JAX asks its server, which a pod may not do; --distributed does that.

    Args:
        environment: of the process.
        tpu: whether JAX is to use TPUs.
        metadata: attribute of the machine by its key, see `segjax.cli.tpu_slice.metadata`.

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
        found = tpu_slice(environment, metadata)
    return found if found and found.hosts > 1 else None
