"""The moments of a build, and the listeners that are notified of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from ...configs import BuildConfig
from ...corpus import LeftOut
from ...store import Prediction


@dataclass(frozen=True)
class WorkerState:
    """Activity of a worker at one moment.

    Attributes:
        name: name of the worker, constant while it lives.
        doing: current activity.
        shard: number of the shard that it is busy with; None without one.
        documents: number of documents compressed since it started.
        tokens: number of tokens compressed since it started.
        part: compressed part of its shard, 0 to 1; None where it is unknown.
    """

    name: str
    doing: Literal["starting", "waiting", "reading", "compressing", "writing"]
    shard: int | None
    documents: int
    tokens: int
    part: float | None = None


class BuildProgress:
    """Listener to a build: override the moments of interest. Methods must return at once; the defaults do nothing."""

    def began(self, uri: str, config: BuildConfig) -> None:
        """The inputs were opened and fit together. ``uri`` is the store's full address, without credentials."""

    def keeping_text(self, fields: Sequence[str]) -> None:
        """Memory is made at question time: the build stores these fields of the documents, and no memory."""

    def left_out(self, files: Sequence[LeftOut]) -> None:
        """These files and folders, of which there may be none, stand in the corpus folders and are not read."""

    def took_settings(self, settings: Mapping[str, Any]) -> None:
        """The store's settings, by ``section.key``, were taken where none were given. Called with those that matter."""

    def planning(self, files: int) -> None:
        """Planning begins: every record of ``files`` files is read and validated."""

    def planned_records(self, count: int) -> None:
        """``count`` records have been read so far."""

    def recognised(self, files: Sequence[str]) -> None:
        """The corpus is planned. Each line says what a file, or several alike, were taken for."""

    def loading(self, device: str, compiled: bool | None) -> None:
        """Workers load the compressor.

        Args:
            device: device that they load it onto; ``auto`` is each worker's own.
            compiled: True if they compile its layers; None compiles on GPUs only.
        """

    def joined(self, cluster: str) -> None:
        """The build joined the Ray cluster that ``cluster`` describes, and starts workers on it."""

    def calibrating(self, codec: str) -> None:
        """A sample of the corpus is compressed, to calibrate the codec."""

    def calibrated(self, prediction: Prediction) -> None:
        """The codec is calibrated; ``prediction`` has its size and loss."""

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        """Workers start on the shards of a plan.

        Args:
            shards: number of shards in the plan.
            done: number of shards that earlier runs committed.
            characters: number of characters of each shard to do, by shard number.
            where: description of the pool, for display.
        """

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        """A shard was written, with this many documents, tokens fed to the compressor and payload bytes."""

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:
        """An attempt at a shard failed; it is retried unless ``final``."""

    def workers(self, states: Sequence[WorkerState]) -> None:
        """The state of each worker, about once a second."""

    def lost_worker(self, name: str, reason: str) -> None:
        """A worker died or was ended because it hung; it is replaced where there is room."""

    def alone(self, number: int) -> None:
        """A shard that failed too often is isolated: its documents are tried one by one to find those that fail."""

    def quarantined(self, number: int, doc_id: str, error: str) -> None:
        """A document of a shard cannot be compressed; its row has the error in place of memory."""

    def waiting_for_store(self, error: Exception, seconds: float) -> None:
        """The store cannot be reached and is retried in ``seconds`` seconds."""

    def committed(self, shards: int) -> None:
        """``shards`` shards were committed."""

    def lost_listener(self, name: str, error: Exception) -> None:
        """One of several listeners failed and is not notified any more; the build continues."""

    def indexing(self, action: str, done: int, total: int) -> None:
        """The search index is brought in step with the store. Called with 0 first, then as documents are indexed.

        Args:
            action: work on the index: ``made``, ``extended``, ``merged`` or ``rebuilt``.
            done: number of documents that are indexed.
            total: number of documents to index.
        """

    def stopping(self, error: Exception | None = None) -> None:
        """A signal came, or ``error`` ends the build: assigned shards are finished, and no further one is begun."""

    def concluded(self, error: BaseException | None) -> None:
        """The build has a result, or raises ``error``; comes right before ``ended``."""

    def ended(self) -> None:
        """The build is over."""


class Listeners(BuildProgress):
    """Several listeners in place of one, notified in order.

    A failing listener must not end a build of many hours: it is dropped, and the others are notified of that.
    """

    def __init__(self, *listeners: BuildProgress):
        self._listeners = list(listeners)

    def _notify(self, moment: str, *args: Any, **kwargs: Any) -> None:
        for listener in tuple(self._listeners):
            try:
                getattr(listener, moment)(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  a listener's failure is not the build's
                self._listeners.remove(listener)
                with suppress(Exception):
                    listener.ended()
                self._notify("lost_listener", type(listener).__name__, error)


def _notifier(moment: str) -> Callable[..., None]:
    def notify(self: Listeners, *args: Any, **kwargs: Any) -> None:
        self._notify(moment, *args, **kwargs)

    return notify


MOMENTS = tuple(name for name in vars(BuildProgress) if not name.startswith("_"))
for _moment in MOMENTS:
    setattr(Listeners, _moment, _notifier(_moment))


@contextmanager
def notified_of_the_end(progress: BuildProgress) -> Iterator[None]:
    """Notify a listener how the build in this ``with`` block ends."""
    try:
        yield
    except BaseException as error:
        progress.concluded(error)
        raise
    else:
        progress.concluded(None)
    finally:
        progress.ended()
