"""Joins the hosts of a run."""

import logging
import signal
import socket
import threading
from typing import Any, NamedTuple

import jax

from segjax.checks import UserError

log = logging.getLogger("segjax")

HEARTBEAT_SECONDS = 60  # without a heartbeat from a host; then JAX ends the others (its default is 100)


class Cluster(NamedTuple):
    """The processes of a run: their number, the index of this one, and a description of where they run."""

    hosts: int
    host: int
    where: str


def join(given: tuple[Any, ...], cluster: Cluster | None, timeout: int) -> None:
    """Starts `jax.distributed` in a thread: if a host is missing, JAX ends the process instead of raising.

    Args:
        given: coordinator, number of hosts and index of this one; () if JAX detects them.
        cluster: the same for messages; None if unknown.
        timeout: seconds to wait for the other hosts.

    Raises:
        UserError: a host does not join, or JAX cannot detect the hosts.
    """
    failed = []

    def initialize():
        try:
            jax.distributed.initialize(
                *given, initialization_timeout=10 * timeout, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
            )
        except Exception as error:
            failed.append(error)

    what = f"This is host {cluster.host} of {cluster.hosts}, {cluster.where}" if cluster else "--distributed"
    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(min(timeout, 3))
    if thread.is_alive():
        log.info("%s: waiting until the same command runs on each host.", what)
        thread.join(max(timeout - 3, 0))
    if thread.is_alive():
        raise UserError(
            f"{what}: not all hosts joined within {timeout} seconds. Start the same command on each (gcloud: "
            "--worker=all) and check that they reach each other; --join_timeout=SECONDS waits longer, --nodistributed "
            "runs alone."
        )
    if failed:
        raise UserError(
            f"{what}: {failed[0]} If JAX cannot detect the hosts, give each --coordinator=ADDRESS:PORT, "
            "--hosts=NUMBER and --host=INDEX."
        ) from failed[0]
    # JAX catches SIGTERM for a service that is not used here; without this line, SIGTERM would not stop a run.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if jax.process_count() > 1:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(f"host {jax.process_index()}: %(message)s"))
    if jax.process_index() > 0:
        log.setLevel(logging.WARNING)


def check_port(coordinator: str, host: int) -> None:
    """Raises a UserError if an address has no port, or if an older run holds the port, where JAX would crash."""
    port = coordinator.rpartition(":")[2]
    if not port.isdigit():
        raise UserError(f"--coordinator={coordinator} must be ADDRESS:PORT.")
    if host == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise UserError(
                f"--coordinator={coordinator}: the port cannot be opened here, on host 0 ({error.strerror}). End the "
                "run that holds it, or choose another."
            ) from error
