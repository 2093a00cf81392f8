"""Detects the workers of a Cloud TPU slice, from the environment or Google Cloud's metadata server."""

import os
import urllib.request
from collections.abc import Callable, Mapping

from segjax.cli.join import Cluster


def tpu_slice(environment: Mapping[str, str], metadata: Callable[[str], str | None]) -> Cluster | None:
    """Returns the workers of one or more Cloud TPU slices; on Kubernetes the environment has what the server knows."""
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
    """Reads an attribute of the machine from Google Cloud's metadata server; None if it or the server does not exist.

    On Google Cloud the server answers in milliseconds.
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
