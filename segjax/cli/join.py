"""How the hosts of a run join."""

import logging
import signal
import socket
import threading
from typing import Any, NamedTuple

import jax

from segjax.checks import UserError

log = logging.getLogger("segjax")

HEARTBEAT_SECONDS = 60  # without a sign of life from a host; then JAX ends the others (its own default is 100)


class Cluster(NamedTuple):
    """Several processes that make one run: their number, the index of this one, and where they are, in words."""

    hosts: int
    host: int
    where: str


def join(given: tuple[Any, ...], cluster: Cluster | None, timeout: int) -> None:
    """Starts `jax.distributed`, in a thread: where a host is missing JAX does not raise but ends the process.

    Args:
        given: coordinator, number of hosts and index of this one; () where JAX finds them itself.
        cluster: the same for messages; None where it is not known.
        timeout: seconds to wait for the other hosts.

    Raises:
        UserError: hosts that do not come, or that JAX cannot find.
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
        log.info("%s: waiting until the same command runs on each.", what)
        thread.join(max(timeout - 3, 0))
    if thread.is_alive():
        raise UserError(
            f"{what}: not all hosts came within {timeout} seconds. Start the same command on each (gcloud: "
            "--worker=all) and see that they reach each other; --join_timeout=SECONDS waits longer, --nodistributed "
            "runs alone."
        )
    if failed:
        raise UserError(
            f"{what}: {failed[0]} Where JAX cannot find the hosts itself, give each --coordinator=ADDRESS:PORT, "
            "--hosts=NUMBER and --host=INDEX."
        ) from failed[0]
    # JAX keeps SIGTERM for a service that nothing here asks: a run could not be stopped by it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if jax.process_count() > 1:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(f"host {jax.process_index()}: %(message)s"))
    if jax.process_index() > 0:
        log.setLevel(logging.WARNING)


def check_port(coordinator: str, host: int) -> None:
    """Raises a UserError for an address without a port, or where an older run holds it: there JAX crashes."""
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
