"""Wait for a store that cannot be reached: the network is down, or its folder is not mounted."""

import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from ..errors import CorruptStoreError, StoreError, StoreUnreachableError
from ..store import Store

T = TypeVar("T")

LONGEST_WAIT_S = 60.0
# Seconds between two polls of ``given_up`` while waiting.
_SLICE_S = 0.5


def patiently(
    action: Callable[[], T],
    uri: str,
    patience_s: float,
    *,
    on_wait: Callable[[Exception, float], None] | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> T:
    """Call a function, and while the store cannot be reached, call it again after 1, 2, 4, … 60 s.

    Args:
        action: function to call.
        uri: address of the store.
        patience_s: seconds after which the last error is raised.
        on_wait: callback before each wait, with the error and the seconds to wait.
        given_up: callback while waiting; if it returns True, the last error is raised at once.

    Returns:
        The result of the function.

    Raises:
        StoreUnreachableError: the store did not come back in time.
        StoreError: the store's folder did not come back in time.
        Exception: another error of the function.
    """

    def is_passing(error: BaseException) -> bool:
        return not given_up() and is_away(error, uri)

    def report(state: RetryCallState) -> None:
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
        before_sleep=report,
        sleep=sleep,
        reraise=True,
    )
    return retrying(action)


def is_away(error: BaseException, uri: str) -> bool:
    """Return True if an error means that the store cannot be reached, or that its folder no longer exists."""
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
