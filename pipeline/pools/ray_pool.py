"""Workers as Ray actors, on this machine or a cluster. The only file that imports ray."""

import logging
import os
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from ...errors import InputError
from ..planning.plan import Shard
from ..watch.progress import WorkerState
from ..worker import DEPTH, Pulse, ShardCancelledError, ShardWorker, WorkerSpec
from .pool import Outcome, WorkerStartError, state_of
from .watchdog import Watchdog, WorkerDiedError, WorkerHungError, describe, is_worker_broken

CONNECT_S = 10.0
# Time for a node to give a worker room and for that worker to load its model.
START_S = 600.0
# Between two looks at what workers do, and at what nodes there are.
PULSE_S = 1.0
NODES_S = 10.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")


class NoWorkersError(InputError):
    """The cluster has no room for a worker."""


@dataclass(frozen=True)
class _Seats:
    """How many workers, what each takes of a node, and for how many the cluster has room."""

    count: int
    gpus: int
    cpus: int
    room: int
    nodes: int

    @property
    def described_room(self) -> str:
        kind = "GPU" if self.gpus else "CPU core"
        room, nodes = (f"{n} {what}{'s' * (n != 1)}" for n, what in ((self.room, kind), (self.nodes, "node")))
        return f"the Ray cluster has {room} on {nodes}, and each worker takes one at least"


class RayShardWorker(ShardWorker):
    """A worker that knows which node it is on."""

    def node(self) -> str:
        """The node's id."""
        return ray.get_runtime_context().get_node_id()


class _Worker:
    """An actor: not ready until its model is loaded, then busy with the shards it was given, oldest first."""

    def __init__(self, name: str, actor: Any, hang_s: float):
        self.name = name
        self.actor = actor
        self.starting: Any = actor.node.remote()
        self.node: str | None = None
        self.running: dict[Any, Shard] = {}
        self.pulse = Pulse("waiting", None, 0, 0, 0)
        self.asked: Any = None
        self._watchdog = Watchdog(hang_s)

    @property
    def is_ready(self) -> bool:
        return self.starting is None

    @property
    def state(self) -> WorkerState:
        """What it does, for people."""
        return state_of(self.name, self.pulse) if self.is_ready else WorkerState(self.name, "starting", None, 0, 0)

    def is_hung(self, *, busy: bool) -> bool:
        """Look at its last pulse, and ask for the next."""
        if self.asked is None or ray.wait([self.asked], timeout=0)[0]:
            if self.asked is not None:
                self.pulse = ray.get(self.asked)
            self.asked = self.actor.pulse.remote()
        return self._watchdog.is_hung(self.pulse.steps, busy=busy)

    def answers(self, within_s: float) -> bool:
        """Whether it answers, as one that has nothing to do should.

        Raises:
            RayError: it is dead.
        """
        self.asked = self.actor.pulse.remote()
        if not ray.wait([self.asked], timeout=within_s)[0]:
            return False
        self.is_hung(busy=False)
        return True


class RayPool:
    """Ray actors, each a ``ShardWorker`` with a device of its own.

    A worker that dies or hangs is replaced. On a cluster whose number of workers is not given, nodes that join get one
    too, and where more are asked for than have room, the others start when it grows.

    Args:
        spec: what every worker needs. Checkpoint, corpus and store must be reachable from every node.
        address: ``"local"`` starts Ray on this machine and ends it after; ``"auto"`` or an address joins a cluster.
        workers: how many; None is one a GPU, or where the device is a CPU, one a node.
        hang_s: for how long a worker may take no step.
        on_lost: told the name of each worker that was lost, and why.

    Raises:
        NoWorkersError: if the cluster is not there, has no room for a worker, or starts none.
        WorkerStartError: if a worker cannot open what it is given.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        address: str = "local",
        workers: int | None = None,
        hang_s: float,
        on_lost: Callable[[str, str], None],
    ):
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            _join(address)
        try:
            self._seats = _size(spec.device, workers)
            seats = self._seats
            if address == "local" and seats.count > seats.room:
                raise NoWorkersError(
                    f"{seats.count} workers asked for, but {seats.described_room}. Give fewer --workers."
                )
            self._grows = workers is None
            self._hang_s = hang_s
            self._on_lost = on_lost
            self._spec = replace(spec, device="cuda" if seats.gpus else "cpu", threads=seats.cpus or None)
            actor_class: Any = ray.remote(RayShardWorker)
            self._remote = actor_class.options(
                num_gpus=seats.gpus,
                num_cpus=seats.cpus,
                max_restarts=0,
                max_task_retries=0,
                # Two slots beside the shards', so that stop() and pulse() are heard.
                max_concurrency=DEPTH + 2,
                runtime_env={"env_vars": dict.fromkeys(THREAD_VARIABLES, str(seats.cpus))} if seats.cpus else {},
            )
            self._names = count(1)
            self._outcomes: list[Outcome] = []
            self._stopped = False
            self._looked_at_workers = self._looked_at_nodes = time.monotonic()
            self._workers = [self._start() for _ in range(seats.count)]
            self._await_one()
        except BaseException:
            self._leave()
            raise
        self.description = f"Ray ({address}), {seats.count} worker{'s' if seats.count > 1 else ''}"
        if seats.count > seats.room:
            self.description += f" ({seats.described_room}; the others start when it grows)"

    @property
    def capacity(self) -> int:
        """Shards to keep submitted: to the workers that are ready, and at least to one."""
        return DEPTH * max(1, sum(worker.is_ready for worker in self._workers))

    def submit(self, shard: Shard) -> None:
        """Give a shard to the ready worker with the fewest; while none is, to one that starts."""
        worker = min(self._workers, key=lambda worker: (not worker.is_ready, len(worker.running)))
        worker.running[worker.actor.run.remote(shard)] = shard

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that came in; a dead worker gives back all its shards, and another is started in its place.

        Raises:
            NoWorkersError: no worker could be started for a long time.
            WorkerStartError: the last one could not start.
        """
        waited_for = {reference: worker for worker in self._workers for reference in worker.running}
        waited_for |= {worker.starting: worker for worker in self._workers if not worker.is_ready}
        ready, _ = ray.wait(list(waited_for), num_returns=1, timeout=timeout_s) if waited_for else ([], [])
        for reference in ready:
            worker = waited_for[reference]
            if worker in self._workers:
                self._collect(worker, reference)
        now = time.monotonic()
        if now - self._looked_at_workers >= PULSE_S:
            self._looked_at_workers = now
            self._end_hung()
        if now - self._looked_at_nodes >= NODES_S:
            self._looked_at_nodes = now
            self._grow()
        if not self._stopped and not any(worker.is_ready for worker in self._workers):
            self._await_one()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def workers(self) -> list[WorkerState]:
        """What each worker does, as of about a second ago."""
        return [worker.state for worker in self._workers]

    def alone(self, method: Literal["count", "attempt", "run", "sample"], *arguments: Any) -> Any:
        """Call a method of a worker that does nothing else; one that fails is replaced.

        A node that goes down with its worker is not the worker's failure: another does it again. Nor does a
        blame a call that finds it broken already.

        Raises:
            WorkerDiedError: the worker died, or took no step for too long and was ended.
            NoWorkersError: no worker could be started for a long time.
            Exception: what the method raises.
        """
        while True:
            worker = self._answering()
            reference = getattr(worker.actor, method).remote(*arguments)
            try:
                while not ray.wait([reference], timeout=PULSE_S)[0]:
                    if worker.is_hung(busy=True):
                        raise self._hung(worker)
                return ray.get(reference)
            except RayTaskError as error:
                cause = error.cause if isinstance(error.cause, Exception) else error
                if is_worker_broken(cause):
                    self._replace(worker)
                    self._on_lost(worker.name, describe(cause))
                raise cause from None
            except (RayError, WorkerHungError) as error:
                self._replace(worker)
                died = _died(error)
                self._on_lost(worker.name, str(died))
                if not _went_with_its_node(worker, error):
                    raise died from None

    def _answering(self) -> _Worker:
        """A worker that answers, after those that do not were replaced."""
        while True:
            self._await_one()
            worker = next(worker for worker in self._workers if worker.is_ready)
            try:
                if worker.answers(self._hang_s):
                    return worker
                raise self._hung(worker)
            except (RayError, WorkerHungError) as error:
                self._replace(worker)
                self._on_lost(worker.name, str(_died(error)))

    def sample(self, shard: Shard, vectors: int) -> tuple[np.ndarray, list[int]]:
        """Memory of some of a shard's documents."""
        return self.alone("sample", shard, vectors)

    def stop(self) -> None:
        """Cancel shards that have not begun to compute."""
        self._stopped = True
        for worker in self._workers:
            worker.actor.stop.remote()
            if not worker.is_ready:
                # It may never start, and would not answer.
                self._outcomes += [Outcome(shard) for shard in worker.running.values()]
                worker.running.clear()

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            ray.kill(worker.actor)
        self._leave()

    def _start(self) -> _Worker:
        return _Worker(f"worker {next(self._names)}", self._remote.remote(self._spec), self._hang_s)

    def _await_one(self) -> None:
        """Wait until a worker is ready: a cluster that is busy with other work must not look like a slow build."""
        began = time.monotonic()
        while not any(worker.is_ready for worker in self._workers):
            starting = {worker.starting: worker for worker in self._workers}
            ready, _ = ray.wait(list(starting), num_returns=1, timeout=START_S - (time.monotonic() - began))
            if not ready:
                free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
                raise NoWorkersError(
                    f"No worker could be started within {START_S:.0f} s; the Ray cluster has {free or 'nothing'} free. "
                    "Other work may hold its devices: wait for it, or give fewer --workers."
                )
            for reference in ready:
                self._collect(starting[reference], reference)

    def _collect(self, worker: _Worker, reference: Any) -> None:
        try:
            result = ray.get(reference)
        except RayTaskError as error:
            outcome = _failed(worker.running.pop(reference), error)
            self._outcomes.append(outcome)
            if outcome.error is not None and is_worker_broken(outcome.error):
                self._bury(worker, outcome.error, blamed=False)
        except RayError as error:
            self._bury(worker, error)
        else:
            if reference is worker.starting:
                worker.starting, worker.node = None, result
            else:
                self._outcomes.append(Outcome(worker.running.pop(reference), result))

    def _end_hung(self) -> None:
        for worker in list(self._workers):
            try:
                if worker.is_ready and worker.is_hung(busy=bool(worker.running)):
                    raise self._hung(worker)
            except (RayError, WorkerHungError) as error:
                self._bury(worker, error)

    def _hung(self, worker: _Worker) -> WorkerHungError:
        pulse = worker.pulse
        return WorkerHungError(f"{worker.name} took no step for {self._hang_s:.0f} s while {pulse.doing} and was ended")

    def _bury(self, worker: _Worker, error: Exception, *, blamed: bool = True) -> None:
        """Give back a dead or broken worker's shards, the oldest charged with it: it was the one computing.

        Raises:
            WorkerStartError: if it was the last one and did not even start.
        """
        died = _died(error)
        if isinstance(error, RayActorError) and error.actor_init_failed:
            self._workers.remove(worker)
            if not self._workers:
                raise WorkerStartError(f"A worker could not start: {str(error).strip().splitlines()[-1]}") from None
        else:
            self._replace(worker)
        self._on_lost(worker.name, str(died))
        # What a worker died of while it started was none of its shards.
        blamed = blamed and worker.is_ready and not _went_with_its_node(worker, error)
        for reference, shard in worker.running.items():
            try:
                self._outcomes.append(Outcome(shard, ray.get(reference, timeout=0)))
            except (RayError, TimeoutError):
                self._outcomes.append(Outcome(shard, error=died, charged=blamed))
                blamed = False

    def _replace(self, worker: _Worker) -> None:
        # It may only be out of reach, and would go on computing.
        ray.kill(worker.actor)
        self._workers[self._workers.index(worker)] = self._start()

    def _grow(self) -> None:
        """Start workers on nodes that have joined."""
        if self._grows and not self._stopped:
            seats = _size(self._spec.device, None).count
            self._workers += [self._start() for _ in range(seats - len(self._workers))]

    def _leave(self) -> None:
        if self._started_ray:
            ray.shutdown()


def _failed(shard: Shard, error: RayTaskError) -> Outcome:
    cause = error.cause if isinstance(error.cause, Exception) else error
    return Outcome(shard) if isinstance(cause, ShardCancelledError) else Outcome(shard, error=cause)


def _died(error: Exception) -> WorkerDiedError:
    if isinstance(error, WorkerDiedError):
        return error
    # The first line says that it died, the last one why.
    return WorkerDiedError(f"the worker died: {str(error).strip().splitlines()[-1].strip()}")


def _went_with_its_node(worker: _Worker, error: Exception) -> bool:
    """Whether a worker died because its node did, as far as the cluster knows by now."""
    if isinstance(error, RayActorError) and error.preempted:
        return True
    return any(node["NodeID"] == worker.node and not node["Alive"] for node in ray.nodes())


def _size(device: str, workers: int | None) -> _Seats:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if device.startswith("cuda") or (device == "auto" and gpus):
        # Its threads read, tokenize and write in bursts: cores are not what places a worker.
        seats = _Seats(workers or gpus, 1, 0, gpus, len(nodes))
    else:
        cores = [int(node.get("CPU", 0)) for node in nodes]
        number = workers or sum(map(bool, cores))
        # The largest share of a node's cores that still leaves a place for every worker.
        shares = (share for share in range(max(cores, default=0), 0, -1) if sum(c // share for c in cores) >= number)
        seats = _Seats(number, 0, next(shares, 1), sum(cores), len(nodes))
    if not seats.room:
        room = seats.described_room
        raise NoWorkersError(f"{room[0].upper()}{room[1:]}. Add nodes that have some.")
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
