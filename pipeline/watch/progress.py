"""The moments of a build, for whoever wants to tell of it; several may listen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from ...configs import BuildConfig
from ...errors import without_credentials
from ...store import Prediction


@dataclass(frozen=True)
class WorkerState:
    """What a worker does right now.

    Attributes:
        name: of the worker, the same for as long as it lives.
        doing: what with.
        shard: that it does this with.
        documents: that it has compressed since it started.
        tokens: that it has compressed since it started.
        part: of that shard that it has compressed, 0 to 1; None where it cannot tell.
    """

    name: str
    doing: Literal["starting", "waiting", "reading", "compressing", "writing"]
    shard: int | None
    documents: int
    tokens: int
    part: float | None = None


def described(error: BaseException) -> str:
    """An error's class and message, in one paragraph, without credentials."""
    return f"{type(error).__name__}: {without_credentials(str(error))}"


class BuildProgress:
    """The moments of a build. Every method returns at once; these, the library's default, say nothing."""

    def began(self, uri: str, config: BuildConfig) -> None:
        """What was given fits together: the store's address, a whole one without credentials, and the configuration."""

    def planning(self, files: int) -> None:
        """Every record of so many files is read and checked before anything is computed."""

    def planned_records(self, count: int) -> None:
        """So many records have been scanned."""

    def loading(self, device: str, compiled: bool | None) -> None:
        """Workers load the compressor, and compile its layers or not; None is on a GPU. ``auto`` is what they have."""

    def calibrating(self, codec: str) -> None:
        """A sample of the corpus is compressed, to fit the codec to."""

    def calibrated(self, prediction: Prediction) -> None:
        """The codec is fitted: what it will cost and lose."""

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        """Workers begin: all shards, those done before, characters of each shard to do, and where they run."""

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        """A shard was written: its documents, tokens fed and payload bytes."""

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:
        """A shard failed; unless it was the last attempt it is tried again."""

    def workers(self, states: Sequence[WorkerState]) -> None:
        """What each worker does, about once a second."""

    def lost_worker(self, name: str, reason: str) -> None:
        """A worker died, or was ended because it hung; another takes its place where there is room."""

    def alone(self, number: int) -> None:
        """A shard that failed too often is now tried document by document, to find the one that it fails of."""

    def quarantined(self, number: int, doc_id: str, error: str) -> None:
        """A document of a shard cannot be compressed; its row is stored with the error in place of memory."""

    def waiting_for_store(self, error: Exception, seconds: float) -> None:
        """The store cannot be reached; the next try comes in so many seconds."""

    def committed(self, shards: int) -> None:
        """So many shards were committed."""

    def lost_listener(self, name: str, error: Exception) -> None:
        """One of several listeners failed, and is told nothing any more; the build goes on."""

    def stopping(self) -> None:
        """A signal came: what is in hand is finished."""

    def concluded(self, error: BaseException | None) -> None:
        """The build has come to its result, or to what it raises; it comes right before ``ended``."""

    def ended(self) -> None:
        """The last worker is done."""


class Listeners(BuildProgress):
    """Several listeners in place of one, told one after another.

    One that fails must not end a build of many hours: it is told nothing any more, and the others are told so.
    """

    def __init__(self, *listeners: BuildProgress):
        self._listeners = list(listeners)

    def _tell(self, moment: str, *args: Any, **kwargs: Any) -> None:
        for listener in tuple(self._listeners):
            try:
                getattr(listener, moment)(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  whatever it is, it is not the build's
                self._listeners.remove(listener)
                with suppress(Exception):
                    listener.ended()
                self._tell("lost_listener", type(listener).__name__, error)


def _telling(moment: str) -> Callable[..., None]:
    def tell(self: Listeners, *args: Any, **kwargs: Any) -> None:
        self._tell(moment, *args, **kwargs)

    return tell


MOMENTS = tuple(name for name in vars(BuildProgress) if not name.startswith("_"))
for _moment in MOMENTS:
    setattr(Listeners, _moment, _telling(_moment))


@contextmanager
def told_of_its_end(progress: BuildProgress) -> Iterator[None]:
    """Tell a listener how the build ends that runs in this ``with`` block."""
    try:
        yield
    except BaseException as error:
        progress.concluded(error)
        raise
    else:
        progress.concluded(None)
    finally:
        progress.ended()
