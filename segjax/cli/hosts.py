"""Runs on several hosts: defines their flags, and detects the cluster."""

import os
from collections.abc import Callable, Mapping

import jax
from absl import flags

from segjax.checks import UserError
from segjax.cli.join import Cluster, check_port, join
from segjax.cli.tpu_slice import metadata, tpu_slice


def define_hosts(values: flags.FlagValues) -> None:
    """Defines the flags of runs on several hosts."""
    text = "Join other hosts, or not (--no...); default: on a TPU slice, with Slurm or Open MPI."
    flags.DEFINE_bool("distributed", None, text, flag_values=values)
    flags.DEFINE_string("coordinator", None, "Address:port of host 0, outside of such jobs.", flag_values=values)
    flags.DEFINE_integer("hosts", None, "Number of hosts, with --coordinator.", 1, flag_values=values)
    flags.DEFINE_integer("host", None, "Index of this host, with --coordinator.", 0, flag_values=values)
    flags.DEFINE_integer("join_timeout", 50, "Seconds to wait for the other hosts.", 1, flag_values=values)


def join_hosts(values: flags.FlagValues) -> None:
    """Joins the other hosts, if there are any; must come before anything touches a device.

    Raises:
        UserError: the flags contradict each other, or a host does not join.
    """
    given = (values.coordinator, values.hosts, values.host)
    if given == (None, None, None):
        if values.distributed is False:
            return
        tpu = "tpu" in (jax.config.jax_platforms or "")  # set by JAX if it finds TPU chips
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
    """Detects the cluster that this process is part of, as JAX does; None if it is alone.

    Kubernetes without TPUs is not detected, as JAX asks its server, which a pod may not do; use --distributed.
    `tpu` says whether JAX is to use TPUs; `metadata` is `segjax.cli.tpu_slice.metadata`.

    Example:
        >>> job = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
        >>> find_cluster(job, False, metadata)
        Cluster(hosts=2, host=1, where='Slurm job 7 on node[1-2]')
    """
    cluster = None
    if "OMPI_MCA_orte_hnp_uri" in environment:
        size, rank = environment["OMPI_COMM_WORLD_SIZE"], environment["OMPI_COMM_WORLD_RANK"]
        cluster = Cluster(int(size), int(rank), "started by mpirun")
    elif {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID"} <= environment.keys():
        # The step of an interactive shell has one task, however many the job has.
        tasks = environment.get("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"])
        where = f"Slurm job {environment['SLURM_JOB_ID']} on {environment['SLURM_STEP_NODELIST']}"
        cluster = Cluster(int(tasks), int(environment["SLURM_PROCID"]), where)
    elif tpu:
        cluster = tpu_slice(environment, metadata)
    return cluster if cluster and cluster.hosts > 1 else None
