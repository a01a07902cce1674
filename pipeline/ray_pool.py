"""Workers as Ray actors, on this machine or a cluster. The only file that imports ray."""

import logging
import os
import socket
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from ..errors import InputError, PiscoIndexError
from .plan import Shard
from .pool import Outcome
from .worker import DEPTH, ShardCancelledError, ShardResult, ShardWorker, WorkerSpec

CONNECT_S = 10.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")


class NoWorkersError(InputError):
    """The cluster has no room for a worker."""


class WorkerStartError(InputError):
    """A worker cannot open what it is given: checkpoint, corpus or device are not there on its node."""


class WorkerDiedError(PiscoIndexError):
    """A worker's process or node went away with its shards."""


@dataclass(frozen=True)
class _Seats:
    """How many workers, and what each takes of a node."""

    count: int
    gpus: int
    cpus: int


@dataclass
class _Seat:
    """A place for a worker: the actor in it, if one lives, and what it works on."""

    actor: Any = None
    running: dict[Any, Shard] = field(default_factory=dict)


class RayPool:
    """Ray actors, each a ``ShardWorker`` with a device of its own.

    Args:
        spec: what every worker needs. Checkpoint, corpus and store must be reachable from every node.
        address: ``"local"`` starts Ray on this machine and ends it after; ``"auto"`` or an address joins a cluster.
        workers: how many; None is one a GPU, or where the device is a CPU, one a node.

    Raises:
        NoWorkersError: if the cluster is not there, or cannot hold the workers asked for.
    """

    def __init__(self, spec: WorkerSpec, *, address: str = "local", workers: int | None = None):
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            _join(address)
        try:
            seats = _size(spec.device, workers)
            self._spec = replace(spec, device="cuda" if seats.gpus else "cpu", threads=seats.cpus or None)
            actor_class: Any = ray.remote(ShardWorker)
            self._remote = actor_class.options(
                num_gpus=seats.gpus,
                num_cpus=seats.cpus,
                max_restarts=0,
                max_task_retries=0,
                # One slot beside the shards', so that stop() is heard.
                max_concurrency=DEPTH + 1,
                runtime_env={"env_vars": dict.fromkeys(THREAD_VARIABLES, str(seats.cpus))} if seats.cpus else {},
            )
            self._seats = [_Seat() for _ in range(seats.count)]
        except BaseException:
            self._leave()
            raise
        self.description = f"Ray ({address}), {seats.count} worker{'s' if seats.count > 1 else ''}"

    @property
    def capacity(self) -> int:
        """Shards to keep submitted."""
        return DEPTH * len(self._seats)

    def submit(self, shard: Shard) -> None:
        """Give a shard to the worker with the fewest; one that died is started again."""
        seat = min(self._seats, key=lambda seat: len(seat.running))
        if seat.actor is None:
            seat.actor = self._remote.remote(self._spec)
        seat.running[seat.actor.run.remote(shard)] = shard

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that came in; a dead worker fails all its shards at once."""
        running = [reference for seat in self._seats for reference in seat.running]
        if not running:
            return []
        ready, _ = ray.wait(running, num_returns=1, timeout=timeout_s)
        outcomes = []
        for seat in self._seats:
            for reference in [r for r in ready if r in seat.running]:
                outcomes.append(self._collect(seat, reference))
        return outcomes

    def stop(self) -> None:
        """Cancel shards that have not begun to compute."""
        for seat in self._seats:
            if seat.actor is not None:
                seat.actor.stop.remote()

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *exc: object) -> None:
        for seat in self._seats:
            if seat.actor is not None:
                ray.kill(seat.actor)
        self._leave()

    def _collect(self, seat: _Seat, reference: Any) -> Outcome:
        shard = seat.running.pop(reference)
        try:
            result: ShardResult = ray.get(reference)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            return Outcome(shard) if isinstance(cause, ShardCancelledError) else Outcome(shard, error=cause)
        except RayError as error:
            if isinstance(error, RayActorError):
                seat.actor = None
                if error.actor_init_failed:
                    return Outcome(shard, error=WorkerStartError(f"A worker could not start: {_last_line(error)}"))
            return Outcome(shard, error=WorkerDiedError(f"the worker died: {str(error).splitlines()[0]}"))
        return Outcome(shard, result)

    def _leave(self) -> None:
        if self._started_ray:
            ray.shutdown()


def _size(device: str, workers: int | None) -> _Seats:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if device.startswith("cuda") or (device == "auto" and gpus):
        # Its threads read, tokenize and write in bursts: cores are not what places a worker.
        seats, room, kind = _Seats(workers or gpus, 1, 0), gpus, "GPU"
    else:
        cores = [int(node.get("CPU", 0)) for node in nodes]
        count = workers or sum(map(bool, cores))
        # The largest share of a node's cores that still leaves a place for every worker.
        shares = (share for share in range(max(cores, default=0), 0, -1) if sum(c // share for c in cores) >= count)
        seats, room, kind = _Seats(count, 0, next(shares, 0)), sum(cores), "CPU core"
    if not 0 < seats.count <= room:
        raise NoWorkersError(
            f"{seats.count or 'No'} workers asked for, but the Ray cluster's {len(nodes)} nodes have {room} {kind}s, "
            "one for each worker at least. Give fewer --workers, or add nodes."
        )
    return seats


def _join(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's own choice from its next version on; said now, it also says nothing about it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    _require_reachable(address)
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == "local":
        options["include_dashboard"] = False
    # Advice on clusters in general, at every start.
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Ray forks to start its processes and executes another program at once: Lance is not used in between.
            warnings.filterwarnings("ignore", message="lance is not fork-safe")
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise NoWorkersError(f"No Ray cluster at {address!r}: {str(error).splitlines()[0]}") from error


def _require_reachable(address: str) -> None:
    """Ray tries an address for minutes before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise NoWorkersError(f"No Ray cluster at {address!r}: {error.strerror or error}.") from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
