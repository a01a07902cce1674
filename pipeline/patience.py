"""Waiting for a store that is away: a network that is down, a folder that is not mounted."""

import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from ..errors import CorruptStoreError, StoreError, StoreUnreachableError
from ..store import Store

T = TypeVar("T")

LONGEST_WAIT_S = 60.0
_SLICE_S = 0.5


def patiently(
    action: Callable[[], T],
    uri: str,
    patience_s: float,
    *,
    on_wait: Callable[[Exception, float], None] | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> T:
    """Do something to a store; while the store cannot be reached, again after 1, 2, 4, … 60 s.

    Args:
        action: called until it returns, or raises something else.
        uri: of the store.
        patience_s: for how long to try.
        on_wait: told the error and the seconds until the next try.
        given_up: asked while waiting, whether to raise the error now.

    Raises:
        StoreUnreachableError: the store did not come back in time.
        StoreError: the store's folder did not.
    """

    def is_passing(error: BaseException) -> bool:
        return not given_up() and is_away(error, uri)

    def told(state: RetryCallState) -> None:
        if on_wait is not None and state.outcome is not None and state.next_action is not None:
            error = state.outcome.exception()
            assert isinstance(error, Exception)
            on_wait(error, state.next_action.sleep)

    def sleep(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not given_up():
            time.sleep(min(left, _SLICE_S))

    retrying = Retrying(
        retry=retry_if_exception(is_passing),
        wait=wait_exponential(max=LONGEST_WAIT_S),
        stop=stop_after_delay(patience_s),
        before_sleep=told,
        sleep=sleep,
        reraise=True,
    )
    return retrying(action)


def is_away(error: BaseException, uri: str) -> bool:
    """Whether an error comes of a store that cannot be reached, or of a folder that is not there any more."""
    if isinstance(error, StoreUnreachableError):
        return True
    if not isinstance(error, StoreError) or isinstance(error, CorruptStoreError):
        return False
    try:
        return not Store.exists(uri)
    except StoreUnreachableError:
        return True
    except StoreError:
        return False
