"""A pool of Ray actors, on this machine or a cluster. The only file that imports Ray."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from types import MappingProxyType
from typing import Any

import ray
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import RayActorError, RayError, RayTaskError

from ...errors import SUMMARY_CHARACTERS, error_summary
from ..planning.plan import Shard
from ..steps import Pulse
from ..watch.progress import WorkerState
from ..worker import ShardCancelledError, ShardWorker, WorkerSpec, depth
from .cluster import NoWorkersError, Seats, describe_nodes, joining, require_reachable
from .pool import NamedCalls, Outcome, WorkerStartError, state_of
from .watchdog import Watchdog, WorkerDiedError, WorkerHungError, is_worker_broken

# Seconds for a node to make room for a worker and for the worker to load its model.
START_S = 600.0
# Seconds between two polls of the workers.
PULSE_S = 1.0
# Seconds between two polls for new nodes.
NODES_S = 10.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")


class RayShardWorker(ShardWorker):
    """A worker that knows the node it runs on."""

    def node(self) -> str:
        """Return the id of the node."""
        return ray.get_runtime_context().get_node_id()


class _Worker:
    """An actor, which is ready when its model is loaded, and the shards submitted to it, the oldest first."""

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
        return state_of(self.name, self.pulse) if self.is_ready else WorkerState(self.name, "starting", None, 0, 0)

    def is_hung(self, *, busy: bool) -> bool:
        """Look at the last pulse, ask for the next one, and return True if the worker hangs."""
        if self.asked is None or ray.wait([self.asked], timeout=0)[0]:
            if self.asked is not None:
                self.pulse = ray.get(self.asked)
            self.asked = self.actor.pulse.remote()
        return self._watchdog.is_hung(self.pulse.steps, busy=busy)

    def answers(self, within_s: float) -> bool:
        """Return True if the worker, which has nothing to do, answers in time.

        Raises:
            RayError: the worker is dead.
        """
        self.asked = self.actor.pulse.remote()
        if not ray.wait([self.asked], timeout=within_s)[0]:
            return False
        self.is_hung(busy=False)
        return True


class RayPool(NamedCalls):
    """Ray actors, each of them a ``ShardWorker`` with its own device.

    A worker that dies or hangs is replaced. On a cluster whose number of workers is not given, nodes that join get a
    worker too. If more workers are requested than have room, the remaining ones start when the cluster grows.

    Args:
        spec: everything a worker requires. Checkpoint, corpus and store must be reachable from every node.
        address: ``"local"`` starts Ray on this machine until the pool is closed; others join the cluster there.
        workers: number of workers; None means one for each GPU, or on CPUs one for each node.
        hang_s: seconds without a step after which a worker hangs.
        on_lost: callback that is given the name of each worker that was lost, and the reason.
        on_joined: callback that is given a description of a cluster that was joined, before workers start on it.

    Raises:
        NoWorkersError: the cluster is not there, has no room for a worker, or starts none.
        WorkerStartError: a worker cannot open what it is given.
    """

    # A shard kills a worker here, never the process that would have to remember it.
    crashes: Mapping[int, int] = MappingProxyType({})

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        address: str = "local",
        workers: int | None = None,
        hang_s: float,
        on_lost: Callable[[str, str], None],
        on_joined: Callable[[str], None] = lambda _: None,
    ):
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            _join(address)
        try:
            if address != "local":
                on_joined(f"{ray.get_runtime_context().gcs_address}: {describe_nodes(ray.nodes())}")
            seats = Seats.on(ray.nodes(), spec.device, workers)
            if address == "local" and seats.count > seats.room:
                raise NoWorkersError(
                    f"{seats.count} workers asked for, but {seats.described_room}. Give fewer --workers."
                )
            self._grows = workers is None
            self._hang_s = hang_s
            self._on_lost = on_lost
            self._spec = replace(spec, device="cuda" if seats.gpus else "cpu", threads=seats.threads)
            self._actors = _actor_class(seats, self._spec.reader_limit)
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
        """Number of shards to keep submitted: some for each ready worker, and for at least one."""
        return sum(depth(worker.pulse.readers) for worker in self._workers if worker.is_ready) or depth(0)

    def submit(self, shard: Shard) -> None:
        """Give a shard to the ready worker with the most room; if none is ready, to one that starts."""
        worker = min(self._workers, key=lambda each: (not each.is_ready, len(each.running) - depth(each.pulse.readers)))
        worker.running[worker.actor.run.remote(shard)] = shard

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return the outcomes that have come in. A dead worker gives back its shards, and a new one replaces it.

        Raises:
            NoWorkersError: no worker could be started for a long time.
            WorkerStartError: the last worker could not start.
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
        """Return the activity of each worker, as of about a second ago."""
        return [worker.state for worker in self._workers]

    def stop(self) -> None:
        """Cancel the shards whose computation has not begun."""
        self._stopped = True
        for worker in self._workers:
            worker.actor.stop.remote()
            if not worker.is_ready:
                # It may never start, and then it would not answer.
                self._outcomes += [Outcome(shard) for shard in worker.running.values()]
                worker.running.clear()

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            ray.kill(worker.actor)
        self._leave()

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call a method of an idle worker, and replace the worker if it breaks.

        If the worker's node dies, the call is repeated on another one: the worker did not fail.

        Raises:
            WorkerDiedError: the worker died, or took no step for too long and was ended.
            NoWorkersError: no worker could be started for a long time.
            Exception: error of the method.
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
                cause = _cause(error)
                if is_worker_broken(cause):
                    self._replace(worker)
                    self._on_lost(worker.name, error_summary(cause, SUMMARY_CHARACTERS))
                raise cause from None
            except (RayError, WorkerHungError) as error:
                self._replace(worker)
                died = _died(error)
                self._on_lost(worker.name, str(died))
                if not _went_with_its_node(worker, error):
                    raise died from None

    def _answering(self) -> _Worker:
        """Return a worker that answers; replace those that do not."""
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

    def _start(self) -> _Worker:
        return _Worker(f"worker {next(self._names)}", self._actors.remote(self._spec), self._hang_s)

    def _await_one(self) -> None:
        """Wait until a worker is ready. Otherwise the wait for a busy cluster would count as slow computing."""
        began = time.monotonic()
        while not any(worker.is_ready for worker in self._workers):
            starting = {worker.starting: worker for worker in self._workers}
            ready, _ = ray.wait(list(starting), num_returns=1, timeout=START_S - (time.monotonic() - began))
            if not ready:
                free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
                raise NoWorkersError(
                    f"no worker could be started within {START_S:.0f} s; the Ray cluster has {free or 'nothing'} free. "
                    "Other work may hold its devices: wait for it, or give fewer --workers."
                )
            for reference in ready:
                self._collect(starting[reference], reference)

    def _collect(self, worker: _Worker, reference: Any) -> None:
        """Take the result of a call: the worker is ready, or a shard has its outcome, or the worker is dead."""
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
        """Give back the shards of a dead or broken worker. The oldest one is charged: it was computed.

        Raises:
            WorkerStartError: it was the last worker, and could not even start.
        """
        died = _died(error)
        if isinstance(error, RayActorError) and error.actor_init_failed:
            self._workers.remove(worker)
            if not self._workers:
                raise WorkerStartError(f"a worker could not start: {str(error).strip().splitlines()[-1]}") from None
        else:
            self._replace(worker)
        self._on_lost(worker.name, str(died))
        # A worker that dies while it starts does not die of a shard.
        blamed = blamed and worker.is_ready and not _went_with_its_node(worker, error)
        for reference, shard in worker.running.items():
            try:
                self._outcomes.append(Outcome(shard, ray.get(reference, timeout=0)))
            except (RayError, TimeoutError):
                self._outcomes.append(Outcome(shard, error=died, charged=blamed))
                blamed = False

    def _replace(self, worker: _Worker) -> None:
        # It may only be out of reach, and would keep computing.
        ray.kill(worker.actor)
        self._workers[self._workers.index(worker)] = self._start()

    def _grow(self) -> None:
        """Start workers on nodes that have joined."""
        if self._grows and not self._stopped:
            seats = Seats.on(ray.nodes(), self._spec.device, None).count
            self._workers += [self._start() for _ in range(seats - len(self._workers))]

    def _leave(self) -> None:
        if self._started_ray:
            ray.shutdown()


def _actor_class(seats: Seats, readers: int) -> Any:
    actor_class: Any = ray.remote(RayShardWorker)
    return actor_class.options(
        num_gpus=seats.gpus,
        num_cpus=seats.cpus,
        max_restarts=0,
        max_task_retries=0,
        # Two slots in addition to the shards', so that stop() and pulse() are answered.
        max_concurrency=depth(readers) + 2,
        runtime_env={"env_vars": dict.fromkeys(THREAD_VARIABLES, str(seats.threads))},
    )


def _cause(error: RayTaskError) -> Exception:
    return error.cause if isinstance(error.cause, Exception) else error


def _failed(shard: Shard, error: RayTaskError) -> Outcome:
    cause = _cause(error)
    return Outcome(shard) if isinstance(cause, ShardCancelledError) else Outcome(shard, error=cause)


def _died(error: Exception) -> WorkerDiedError:
    if isinstance(error, WorkerDiedError):
        return error
    # The first line says that the worker died, the last one why.
    return WorkerDiedError(f"the worker died: {str(error).strip().splitlines()[-1].strip()}")


def _went_with_its_node(worker: _Worker, error: Exception) -> bool:
    """Return True if a worker died because its node did, according to what the cluster knows yet."""
    if isinstance(error, RayActorError) and error.preempted:
        return True
    return any(node["NodeID"] == worker.node and not node["Alive"] for node in ray.nodes())


def _join(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The default of Ray's next version. Setting it now keeps Ray from warning about it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    # At every start Ray logs general advice on clusters.
    logging.getLogger("ray").setLevel(logging.ERROR)
    with joining(address), warnings.catch_warnings():
        if address != "local":
            # Ray would wait for minutes for a cluster that is gone, and log every attempt.
            require_reachable(canonicalize_bootstrap_address(address) or address)
        # Ray forks to start its processes, and these execute another program at once, without using Lance.
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
