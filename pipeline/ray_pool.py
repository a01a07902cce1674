"""Workers as Ray actors, on this machine or a cluster. The only file that imports ray."""

import logging
import os
import socket
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from ..errors import InputError, PiscoIndexError
from .plan import Shard
from .pool import Outcome
from .worker import DEPTH, ShardCancelledError, ShardWorker, WorkerSpec

CONNECT_S = 10.0
# Time for a node to give a worker room and for that worker to load its model.
START_S = 600.0
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


class _Worker:
    """An actor: not ready until its model is loaded, then busy with the shards it was given, oldest first."""

    def __init__(self, actor: Any):
        self.actor = actor
        self.starting: Any = actor.__ray_ready__.remote()
        self.running: dict[Any, Shard] = {}

    @property
    def is_ready(self) -> bool:
        return self.starting is None


class RayPool:
    """Ray actors, each a ``ShardWorker`` with a device of its own.

    Args:
        spec: what every worker needs. Checkpoint, corpus and store must be reachable from every node.
        address: ``"local"`` starts Ray on this machine and ends it after; ``"auto"`` or an address joins a cluster.
        workers: how many; None is one a GPU, or where the device is a CPU, one a node.

    Raises:
        NoWorkersError: if the cluster is not there, cannot hold the workers asked for, or starts none of them.
        WorkerStartError: if a worker cannot open what it is given.
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
            self._cancelled: list[Outcome] = []
            self._workers = [self._start() for _ in range(seats.count)]
            self._await_first()
        except BaseException:
            self._leave()
            raise
        self.description = f"Ray ({address}), {seats.count} worker{'s' if seats.count > 1 else ''}"

    @property
    def capacity(self) -> int:
        """Shards to keep submitted: to the workers that are ready, and at least to one."""
        return DEPTH * max(1, sum(worker.is_ready for worker in self._workers))

    def submit(self, shard: Shard) -> None:
        """Give a shard to the ready worker with the fewest; while none is, to one that starts."""
        worker = min(self._workers, key=lambda worker: (not worker.is_ready, len(worker.running)))
        worker.running[worker.actor.run.remote(shard)] = shard

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that came in; a dead worker gives back all its shards, and another is started in its place."""
        waited_for = {reference: worker for worker in self._workers for reference in worker.running}
        waited_for |= {worker.starting: worker for worker in self._workers if not worker.is_ready}
        ready, _ = ray.wait(list(waited_for), num_returns=1, timeout=timeout_s) if waited_for else ([], [])
        outcomes, self._cancelled = self._cancelled, []
        for reference in ready:
            worker = waited_for[reference]
            if worker in self._workers:
                outcomes += self._collect(worker, reference)
        return outcomes

    def sample(self, shard: Shard, vectors: int) -> tuple[np.ndarray, list[int]]:
        """Memory of some of a shard's documents, from a worker that is ready.

        Raises:
            CorpusError: if the corpus cannot be read as it was planned.
            WorkerDiedError: if the worker dies of it.
        """
        worker = next(worker for worker in self._workers if worker.is_ready)
        try:
            return ray.get(worker.actor.sample.remote(shard, vectors))
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except RayError as error:
            raise WorkerDiedError(
                f"A worker died while it compressed a sample of the corpus: {str(error).splitlines()[0]}"
            ) from error

    def stop(self) -> None:
        """Cancel shards that have not begun to compute."""
        for worker in self._workers:
            worker.actor.stop.remote()
            if not worker.is_ready:
                # It may never start, and would not answer.
                self._cancelled += [Outcome(shard) for shard in worker.running.values()]
                worker.running.clear()

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            ray.kill(worker.actor)
        self._leave()

    def _start(self) -> _Worker:
        return _Worker(self._remote.remote(self._spec))

    def _await_first(self) -> None:
        """Wait until a worker is ready: a cluster that is busy with other work must not look like a slow build."""
        starting = [worker.starting for worker in self._workers]
        ready, _ = ray.wait(starting, num_returns=1, timeout=START_S)
        if not ready:
            free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
            raise NoWorkersError(
                f"No worker could be started within {START_S:.0f} s; the Ray cluster has {free or 'nothing'} free. "
                "Other work may hold its devices: wait for it, or give fewer --workers."
            )
        for worker in list(self._workers):
            if worker.starting in ready:
                self._collect(worker, worker.starting)

    def _collect(self, worker: _Worker, reference: Any) -> list[Outcome]:
        try:
            result = ray.get(reference)
        except RayTaskError as error:
            return [_failed(worker.running.pop(reference), error)]
        except RayError as error:
            return self._bury(worker, error)
        if reference is worker.starting:
            worker.starting = None
            return []
        return [Outcome(worker.running.pop(reference), result)]

    def _bury(self, worker: _Worker, error: RayError) -> list[Outcome]:
        """Give back a dead worker's shards, the oldest charged with it: it was the one computing.

        Raises:
            WorkerStartError: if it was the last one and did not even start.
        """
        self._workers.remove(worker)
        if not (isinstance(error, RayActorError) and error.actor_init_failed):
            self._workers.append(self._start())
        elif not self._workers:
            raise WorkerStartError(f"A worker could not start: {str(error).strip().splitlines()[-1]}") from None
        outcomes = []
        for reference, shard in worker.running.items():
            try:
                outcomes.append(Outcome(shard, ray.get(reference, timeout=0)))
            except (RayError, TimeoutError):
                died = WorkerDiedError(f"the worker died: {str(error).splitlines()[0]}")
                charged = all(outcome.error is None for outcome in outcomes)
                outcomes.append(Outcome(shard, error=died, charged=charged))
        return outcomes

    def _leave(self) -> None:
        if self._started_ray:
            ray.shutdown()


def _failed(shard: Shard, error: RayTaskError) -> Outcome:
    cause = error.cause if isinstance(error.cause, Exception) else error
    return Outcome(shard) if isinstance(cause, ShardCancelledError) else Outcome(shard, error=cause)


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
        raise NoWorkersError(
            f"No Ray cluster at {address!r}. Start one (ray start --head), or give --ray local or an address."
        ) from error


def require_reachable(address: str) -> None:
    """Look whether somebody answers at a cluster's address; Ray itself would try for minutes.

    Raises:
        NoWorkersError: if nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise NoWorkersError(
            f"No Ray cluster at {address!r}: {error.strerror or error}. Check the head's address and port (ray status)."
        ) from error
