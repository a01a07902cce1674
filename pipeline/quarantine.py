"""Finding the documents that a shard fails of, by trying them alone."""

from collections.abc import Callable
from typing import Any, Literal

from ..errors import InputError, PiscoIndexError
from .planning.plan import Shard
from .pools.pool import Pool
from .pools.watchdog import describe

# Documents that are tried together, until some fail.
PIECE = 64
# Times that a document has to fail by itself.
TRIES = 2
# Where more documents fail than these, it is not the documents.
_MOST, _MOST_SHARE = 8, 0.1


class TooManyFailuresError(PiscoIndexError):
    """So many documents of a shard fail that something else must be the cause."""


def find_poison(pool: Pool, shard: Shard, stopped: Callable[[], bool] = lambda: False) -> dict[int, str] | None:
    """Try a shard's documents a few at a time, and those that fail together, one by one.

    Args:
        pool: does nothing else meanwhile.
        shard: which.
        stopped: asked before each try, whether to leave it.

    Returns:
        Errors of the documents that cannot be compressed, by their place in the shard; None if stopped.

    Raises:
        TooManyFailuresError: more than a tenth of the documents fail, and more than eight.
        InputError: corpus or store cannot be read.
        Exception: of reading the shard.
    """
    documents = insist(pool, "count", shard)
    poison: dict[int, str] = {}
    for start in range(0, documents, PIECE):
        stop = min(start + PIECE, documents)
        if stopped():
            return None
        # As a whole the shard has failed already.
        if documents > PIECE and _error_of(pool, shard, start, stop, tries=1) is None:
            continue
        for place in range(start, stop):
            if stopped():
                return None
            error = _error_of(pool, shard, place, place + 1, tries=TRIES)
            if error is not None:
                poison[place] = describe(error)
            if len(poison) > max(_MOST, documents * _MOST_SHARE):
                raise TooManyFailuresError(
                    f"{len(poison)} of the first {place + 1} documents fail each by itself, which more likely is the "
                    f"fault of the checkpoint or the device; the last: {poison[place]}"
                )
    return poison


def insist(pool: Pool, method: Literal["count", "run"], *arguments: Any) -> Any:
    """Call a method of a worker that does nothing else, and of another one if it fails.

    Raises:
        InputError: at once.
        Exception: of the second try.
    """
    try:
        return pool.alone(method, *arguments)
    except InputError:
        raise
    except Exception:  # noqa: BLE001  whatever a worker fails of
        return pool.alone(method, *arguments)


def _error_of(pool: Pool, shard: Shard, start: int, stop: int, tries: int) -> Exception | None:
    """What documents fail of in each of so many tries; None if they do not."""
    failure: Exception | None = None
    for _ in range(tries):
        try:
            pool.alone("attempt", shard, start, stop)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a document makes a worker fail of
            failure = error
        else:
            return None
    return failure
