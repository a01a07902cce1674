"""A worker in a child process, which may die or hang without harm to this one."""

import multiprocessing
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

from ...children import end_with_parent, ending, portable
from ...interrupt import SIGNALS
from ..steps import Pulse
from ..worker import ShardWorker, WorkerSpec
from .watchdog import Watchdog, WorkerDiedError, WorkerHungError

# Seconds between two pulses of a busy child.
PULSE_S = 0.5
# Seconds for a child to load the model.
START_S = 600.0
# Seconds to wait for a killed process to end.
_END_S = 5.0


class ChildWorker:
    """A ``ShardWorker`` in its own process, which does one thing at a time.

    Args:
        spec: everything the worker requires.
        hang_s: seconds without a step after which the worker hangs.

    Raises:
        WorkerDiedError: the process ended before the worker was ready.
        Exception: error that keeps the worker from starting.
    """

    def __init__(self, spec: WorkerSpec, *, hang_s: float):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec), name="worker", daemon=True)
        self._hang_s = hang_s
        self._pulse = Pulse("waiting", None, 0, 0, 0)
        self._process.start()
        theirs.close()
        try:
            self._answer(max(hang_s, START_S))
        except BaseException:
            self.end()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker and return its result.

        Raises:
            WorkerHungError: the worker took no step for too long.
            WorkerDiedError: the process ended.
            Exception: error of the method.
        """
        try:
            self._connection.send((method, arguments))
        except OSError:
            raise self._died() from None
        return self._answer(self._hang_s)

    def pulse(self) -> Pulse:
        """Return the last activity that the worker reported."""
        return self._pulse

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join(_END_S)
        self._connection.close()

    def _answer(self, limit_s: float) -> Any:
        watchdog = Watchdog(limit_s)
        while True:
            heard: tuple[str, Any] | None = None
            try:
                if self._connection.poll(PULSE_S):
                    heard = self._connection.recv()
            except (EOFError, ConnectionError):
                raise self._died() from None
            if heard is not None:
                kind, value = heard
                if kind == "returned":
                    return value
                if kind == "raised":
                    raise value
                self._pulse = value
            if watchdog.is_hung(self._pulse.steps, busy=True):
                raise WorkerHungError(f"the worker took no step for {limit_s:.0f} s and was ended")

    def _died(self) -> WorkerDiedError:
        self._process.join(_END_S)
        return WorkerDiedError(f"the worker {ending(self._process.exitcode)}")


def _serve(connection: Connection, spec: WorkerSpec) -> None:
    """Run the child: start the worker, report it ready, then answer one call after another until the parent ends."""
    for number in SIGNALS:
        # A terminal sends its signals to all processes of a command. The parent decides when the child ends.
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    sending = threading.Lock()

    def send(kind: str, value: Any) -> None:
        with sending:
            connection.send((kind, value))

    try:
        worker = ShardWorker(spec)
    except Exception as error:  # noqa: BLE001  the parent raises it
        send("raised", portable(error))
        return
    send("returned", None)
    idle = threading.Event()

    def beat() -> None:
        while not idle.wait(PULSE_S):
            send("pulse", worker.pulse())

    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, ConnectionError):
            return
        idle.clear()
        beating = threading.Thread(target=beat, daemon=True)
        beating.start()
        try:
            kind, value = "returned", getattr(worker, method)(*arguments)
        except Exception as error:  # noqa: BLE001  the parent raises it
            kind, value = "raised", portable(error)
        idle.set()
        beating.join()
        send(kind, value)
