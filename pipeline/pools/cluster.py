"""Check what a Ray cluster offers: an answer at its address, and room for workers. Nothing here imports Ray."""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...errors import InputError

# Seconds to wait for an answer; Ray itself would try for minutes.
CONNECT_S = 10.0
# First bytes of a connection of HTTP/2, which Ray speaks (RFC 9113, 3.4): the preface and an empty frame of settings. A
# server answers with its own settings, a frame whose fourth byte is 4.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = b"\4"


class NoWorkersError(InputError):
    """The cluster is not there, or has no room for a worker."""


@dataclass(frozen=True)
class Seats:
    """The places of workers on a cluster.

    Attributes:
        count: number of workers to start.
        gpus: number of GPUs of each worker.
        cpus: number of CPU cores reserved for each worker.
        threads: number of CPU threads of each worker. Those of workers with a GPU read, tokenize and write in bursts,
            and share the cores of a node without reserving them.
        room: number of GPUs or CPU cores in the cluster.
        nodes: number of nodes in the cluster.
    """

    count: int
    gpus: int
    cpus: int
    threads: int
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
            # Cores do not limit the number of workers, so Ray would give each worker one thread.
            shares = [int(each.get("CPU", 0)) // int(each["GPU"]) for each in resources if int(each.get("GPU", 0))]
            seats = cls(workers or gpus, 1, 0, max(min(shares, default=1), 1), gpus, len(resources))
        else:
            cores = [int(each.get("CPU", 0)) for each in resources]
            count = workers or sum(map(bool, cores))
            # The largest share of a node's cores that still leaves room for every worker.
            shares = (n for n in range(max(cores, default=0), 0, -1) if sum(core // n for core in cores) >= count)
            cpus = next(shares, 1)
            seats = cls(count, 0, cpus, cpus, sum(cores), len(resources))
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
    """Check that a Ray cluster answers at an address, if that names a host and port.

    Raises:
        NoWorkersError: nothing answers, or something else than Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as connection:
            # An encrypted cluster answers nothing before its handshake.
            if os.environ.get("RAY_USE_TLS") == "1":
                return
            connection.sendall(_HELLO)
            answer = connection.recv(4)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NoWorkersError(
            f"no Ray cluster at {address!r}: {reason}. Check the head's address and port (ray status)."
        ) from error
    if answer[3:] != _SETTINGS:
        raise NoWorkersError(
            f"no Ray cluster at {address!r}: another program answers there. Check the head's address and port (ray "
            "status)."
        )


@contextmanager
def joining(address: str) -> Iterator[None]:
    """Raise what keeps Ray from starting, or from joining a cluster, as an error with advice.

    Raises:
        NoWorkersError: the block failed.
    """
    try:
        yield
    except NoWorkersError:
        raise
    except Exception as error:
        reason = next(reversed(str(error).strip().splitlines()), type(error).__name__).strip().rstrip(".")
        if address == "local":
            raise NoWorkersError(
                f"Ray does not start on this machine: {reason}. Its logs are in /tmp/ray/session_latest/logs. Free "
                "memory and disk space, or build in this process (without --ray and --workers)."
            ) from error
        raise NoWorkersError(
            f"no Ray cluster at {address!r}: {reason}. Start one (ray start --head), or give --ray local or an address."
        ) from error


def describe_nodes(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Return the number of nodes of a cluster, and of their GPUs and cores, for messages."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    gpus, cores = (int(sum(each.get(kind, 0) for each in resources)) for kind in ("GPU", "CPU"))
    parts = ((len(resources), "node"), (gpus, "GPU"), (cores, "CPU core"))
    return ", ".join(f"{n:,} {what}{'s' * (n != 1)}" for n, what in parts if n)
