"""When a worker has hung."""

import pytest

from pisco_index.pipeline.pools.watchdog import Watchdog


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def look(watchdog, clock, steps, *, seconds, busy=True):
    """Look once a second; returns after how many seconds it is hung, None if not."""
    for second in range(1, seconds + 1):
        clock.now += 1
        if watchdog.is_hung(steps(second), busy=busy):
            return second
    return None


def test_a_worker_that_takes_no_step_is_hung(clock):
    watchdog = Watchdog(10, clock)
    assert look(watchdog, clock, lambda second: 5, seconds=30) == 12


def test_a_step_now_and_then_is_enough(clock):
    assert look(Watchdog(10, clock), clock, lambda second: second // 9, seconds=100) is None


def test_one_with_nothing_to_do_is_not_hung(clock):
    watchdog = Watchdog(10, clock)
    assert look(watchdog, clock, lambda second: 5, seconds=100, busy=False) is None
    assert look(watchdog, clock, lambda second: 5, seconds=9) is None


@pytest.mark.fault(
    "The driver is stopped for some seconds.",
    "It continues and blames no worker.",
)
def test_a_driver_that_was_stopped_blames_nobody(clock):
    watchdog = Watchdog(10, clock)
    watchdog.is_hung(5, busy=True)
    clock.now += 3600
    assert not watchdog.is_hung(5, busy=True)
    clock.now += 1
    assert not watchdog.is_hung(6, busy=True)


def test_a_clock_that_is_looked_at_seldom_still_ends_it(clock):
    watchdog = Watchdog(10, clock)
    hung = []
    for _ in range(4):
        clock.now += 60
        hung.append(watchdog.is_hung(5, busy=True))
    assert hung == [False, False, False, True]
