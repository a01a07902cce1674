"""Check what a Ray cluster offers: an answer at its address, and room for workers. Nothing here imports Ray."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InputError

# Seconds to wait for an answer; Ray itself would try for minutes.
CONNECT_S = 10.0


class NoWorkersError(InputError):
    """The cluster is not there, or has no room for a worker."""


@dataclass(frozen=True)
class Seats:
    """The places of workers on a cluster.

    Attributes:
        count: number of workers to start.
        gpus: number of GPUs of each worker.
        cpus: number of CPU cores reserved for each worker.
        room: number of GPUs or CPU cores in the cluster.
        nodes: number of nodes in the cluster.
    """

    count: int
    gpus: int
    cpus: int
    room: int
    nodes: int

    @classmethod
    def on(cls, nodes: Sequence[Mapping[str, Any]], device: str, workers: int | None) -> "Seats":
        """Find places for workers.

        Args:
            nodes: nodes of the cluster, as ``ray.nodes`` describes them.
            device: device of the workers; "auto" takes the GPUs if there are any.
            workers: number of workers; None means one for each GPU, or on CPUs one for each node.

        Raises:
            NoWorkersError: the cluster has no GPU or CPU core for a worker.
        """
        resources = [node["Resources"] for node in nodes if node["Alive"]]
        gpus = sum(int(each.get("GPU", 0)) for each in resources)
        if device.startswith("cuda") or (device == "auto" and gpus):
            # Cores do not limit the number of workers: their threads read, tokenize and write in bursts.
            seats = cls(workers or gpus, 1, 0, gpus, len(resources))
        else:
            cores = [int(each.get("CPU", 0)) for each in resources]
            count = workers or sum(map(bool, cores))
            # The largest share of a node's cores that still leaves room for every worker.
            shares = (n for n in range(max(cores, default=0), 0, -1) if sum(core // n for core in cores) >= count)
            seats = cls(count, 0, next(shares, 1), sum(cores), len(resources))
        if not seats.room:
            room = seats.described_room
            raise NoWorkersError(f"{room[0].upper()}{room[1:]}. Add nodes that have some.")
        return seats

    @property
    def described_room(self) -> str:
        """Description of the room in the cluster, for messages."""
        kind = "GPU" if self.gpus else "CPU core"
        room, nodes = (f"{n} {what}{'s' * (n != 1)}" for n, what in ((self.room, kind), (self.nodes, "node")))
        return f"the Ray cluster has {room} on {nodes}, and each worker takes one at least"


def require_reachable(address: str) -> None:
    """Check that something answers at a cluster's address, if that names a host and port.

    Raises:
        NoWorkersError: nothing answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise NoWorkersError(
            f"no Ray cluster at {address!r}: {error.strerror or error}. Check the head's address and port (ray status)."
        ) from error
