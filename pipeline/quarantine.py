"""Find the documents that make a shard fail, by trying a few at a time."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ..errors import SUMMARY_CHARACTERS, InputError, PiscoIndexError, error_summary
from .planning.plan import Shard
from .pools.pool import Pool

T = TypeVar("T")

# Number of documents tried together, until some fail.
PIECE = 64
# Number of times that a single document must fail.
TRIES = 2
# If more than 8 documents and more than a tenth of the shard fail, the documents are not the cause.
_MOST, _MOST_SHARE = 8, 0.1


class TooManyFailuresError(PiscoIndexError):
    """Too many documents of a shard fail: something else must be the cause."""


def find_poison(pool: Pool, shard: Shard, stopped: Callable[[], bool] = lambda: False) -> dict[int, str] | None:
    """Try a shard's documents a few at a time, and one by one where they fail.

    Args:
        pool: pool that does nothing else meanwhile.
        shard: shard to try.
        stopped: callback before each try; if it returns True, the search ends.

    Returns:
        Errors of the documents that cannot be compressed, by their places in the shard; None if the search was stopped.

    Raises:
        TooManyFailuresError: more than a tenth of the documents fail, and more than eight.
        InputError: the corpus or the store cannot be read.
        Exception: error of reading the shard.
    """
    documents = insist(partial(pool.count, shard))
    poison: dict[int, str] = {}
    for start in range(0, documents, PIECE):
        stop = min(start + PIECE, documents)
        if stopped():
            return None
        # A shard that is a single piece has failed as a whole already.
        if documents > PIECE and _error_of(pool, shard, start, stop, tries=1) is None:
            continue
        for place in range(start, stop):
            if stopped():
                return None
            error = _error_of(pool, shard, place, place + 1, tries=TRIES)
            if error is not None:
                poison[place] = error_summary(error, SUMMARY_CHARACTERS)
            if len(poison) > max(_MOST, documents * _MOST_SHARE):
                raise TooManyFailuresError(
                    f"{len(poison)} of the first {place + 1} documents fail, each on its own. The cause is more likely "
                    f"the checkpoint or the device. The last error: {poison[place]}"
                )
    return poison


def insist(call: Callable[[], T]) -> T:
    """Call a function, and once more if it fails.

    Raises:
        InputError: error of the first call; a second one would fail as well.
        Exception: error of the second call.
    """
    try:
        return call()
    except InputError:
        raise
    except Exception:  # noqa: BLE001  a worker may fail with any error
        return call()


def _error_of(pool: Pool, shard: Shard, start: int, stop: int, tries: int) -> Exception | None:
    """Return the last error of documents that fail in every try; None if they pass one."""
    failure: Exception | None = None
    for _ in range(tries):
        try:
            pool.attempt(shard, start, stop)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001  a document may make a worker fail with any error
            failure = error
        else:
            return None
    return failure
