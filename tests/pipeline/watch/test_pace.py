"""Estimates of the time left, held against simulated builds."""

import random

import pytest

from pisco_index.pipeline.watch.pace import SIMULATED_SHARDS, Pace
from pisco_index.pipeline.watch.progress import WorkerState

TOKEN = 4.2
"""Characters of a token in these corpora."""


class Worker:
    """Computes one shard after another at its own speed, which changes a little from shard to shard."""

    def __init__(self, name, start_s, slow_first=1.0):
        self.name = name
        self.start_s = start_s
        self.shard = None
        self.done = self.speed = 0.0
        self.tokens = 0.0
        self.next_speed = 1 / slow_first

    def state(self, parts):
        tokens = int(self.tokens + self.done / TOKEN)
        doing = "starting" if self.start_s > 0 else "compressing" if self.shard else "waiting"
        number, size = self.shard or (None, 1)
        part = self.done / size if parts and self.shard else None
        return WorkerState(self.name, doing, number, tokens // 100, tokens, part)


def simulate(
    sizes,
    workers,
    *,
    seed=0,
    start_s=(0, 0),
    slow_first=1.0,
    lose=None,
    join=None,
    parts=True,
    speed=800,
    fail=(),
    write_s=0,
):
    """Run a build second by second.

    Args:
        sizes: characters of its shards.
        workers: how many.
        seed: of the noise.
        start_s: bounds of what a worker takes to start.
        slow_first: how much longer a worker's first shard takes.
        lose: share of the work after which a worker dies for good.
        join: share of the work after which another one comes.
        parts: whether workers tell how far they are in a shard.
        speed: of a worker, in characters a second.
        fail: numbers of shards whose first attempt fails when it is done.
        write_s: that a shard takes to be written while its worker compresses the next.

    Returns:
        the share of the work that was done at each second, and the time left as it was estimated; the time of the end.
    """
    noise = random.Random(seed)
    now = 0.0
    pace = Pace(dict(enumerate(sizes)), clock=lambda: now)
    alive = [Worker(f"w{n}", noise.uniform(*start_s), slow_first) for n in range(workers)]
    queue, seen, done, failing, writing = list(enumerate(sizes)), [], 0, set(fail), []
    while done < sum(sizes) or writing:
        for worker in alive:
            time = 1.0
            if worker.start_s > 0:
                worker.start_s -= time
                time = max(-worker.start_s, 0)
            while time > 1e-9 and (worker.shard or queue):
                if worker.shard is None:
                    worker.shard = queue.pop(0)
                    worker.speed, worker.next_speed = speed * worker.next_speed * noise.gauss(1, 0.1), 1.0
                needed = (worker.shard[1] - worker.done) / worker.speed
                spent = min(time, needed)
                worker.done += spent * worker.speed
                time -= spent
                if spent == needed:
                    number, size = worker.shard
                    worker.tokens += size / TOKEN
                    if number in failing:
                        failing.remove(number)
                        pace.fail(number, final=False)
                        queue.append(worker.shard)
                    else:
                        done += size
                        # The outcome is known a little before the next look at the workers.
                        writing.append((now + write_s, number, size))
                    worker.shard, worker.done = None, 0.0
        for each in [each for each in writing if each[0] <= now]:
            writing.remove(each)
            pace.finish(each[1], 10, int(each[2] / TOKEN))
        now += 1.0
        share = (done + sum(worker.done for worker in alive)) / sum(sizes)
        if lose is not None and share > lose:
            lose, dead = None, alive.pop(0)
            pace.lose_worker(dead.name)
            if dead.shard:
                queue.insert(0, dead.shard)
        if join is not None and share > join:
            join = None
            alive.append(Worker("late", 20.0))
        pace.update([worker.state(parts) for worker in alive])
        seen.append((share, now, pace.remaining_s))
    return seen, now


def worst(seen, end, after=0.1):
    """The largest error of an estimate from a share of the work on, relative to the time that was really left.

    Of the last moments, in which that is next to nothing, a fiftieth of the whole time may be missed.
    """
    errors = [
        max(abs(left - (end - now)) - end / 50, 0) / (end - now)
        for share, now, left in seen
        if share >= after and now < end
    ]
    return max(errors)


def equal(count, size=40_000):
    return [size] * count


def unequal(count, seed=3):
    noise = random.Random(seed)
    return [int(noise.uniform(10_000, 70_000)) for _ in range(count)]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("sizes", "workers", "options"),
    [
        (equal(12), 1, {}),
        (unequal(30), 1, {}),
        (equal(40), 1, {"slow_first": 3.0}),
        (equal(20), 4, {}),
        (equal(60), 8, {"start_s": (5, 20)}),
        (unequal(160), 8, {"start_s": (5, 20), "slow_first": 2.0}),
        (unequal(160), 8, {"fail": (3, 50, 51)}),
        (unequal(40), 4, {"write_s": 5}),
        (equal(16), 1, {"write_s": 10}),
        (unequal(300), 64, {"start_s": (5, 15)}),
        (equal(8 * (SIMULATED_SHARDS + 20), 8_000), 8, {"start_s": (5, 15)}),
        # Each worker does ten between two looks.
        (equal(1000, 80), 1, {}),
        (equal(6000, 80), 4, {"start_s": (1, 5)}),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(len(value)) if isinstance(value, list) else str(value),
)
def test_an_estimate_is_right_within_a_fifth_after_the_first_tenth(sizes, workers, options, seed):
    assert worst(*simulate(sizes, workers, seed=seed, **options)) < 0.2


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("sizes", "workers"), [(equal(60), 4), (unequal(120), 8), (unequal(320), 20)])
def test_workers_that_tell_nothing_of_parts_are_judged_by_tokens(sizes, workers, seed):
    assert worst(*simulate(sizes, workers, seed=seed, start_s=(0, 20), parts=False, write_s=5)) < 0.2


@pytest.mark.parametrize("workers", [2, 8, 40])
@pytest.mark.parametrize("parts", [True, False])
def test_a_worker_that_is_lost_midway_is_reckoned_with_at_once(workers, parts):
    seen, end = simulate(unequal(workers * 8), workers, lose=0.4, start_s=(0, 20), parts=parts)
    assert worst(seen, end, after=0.41) < 0.2


@pytest.mark.parametrize("parts", [True, False])
def test_a_worker_that_joins_midway_is_reckoned_with_once_it_starts(parts):
    seen, end = simulate(unequal(120), 2, join=0.3, parts=parts)
    assert worst(seen, end, after=0.32) < 0.2


def test_parts_of_shards_count_before_one_has_finished():
    now = 0.0
    pace = Pace({0: 1000, 1: 1000}, clock=lambda: now)
    for now in range(11):
        pace.update([WorkerState("a", "compressing", 0, now, 10 * now, now / 100)])
    assert pace.remaining_s == pytest.approx(190)
    assert (pace.documents, pace.tokens) == (10, 100)
    assert pace.tokens_per_s == pytest.approx(10)


def test_without_a_speed_no_time_is_named():
    now = 0.0
    pace = Pace({0: 1000, 1: 1000, 2: 1000}, clock=lambda: now)
    pace.update([WorkerState("a", "starting", None, 0, 0)])
    now = 10.0
    pace.update([WorkerState("a", "compressing", 0, 5, 50)])
    now = 20.0
    # Nobody knows yet how many tokens a shard has.
    pace.update([WorkerState("a", "compressing", 0, 10, 100)])
    assert pace.remaining_s is None
    now = 30.0
    pace.finish(0, 15, 150)
    pace.update([WorkerState("a", "compressing", 1, 15, 150)])
    assert pace.remaining_s == pytest.approx(40, rel=0.4)
    pace.update([])
    assert pace.remaining_s is None


def test_a_shard_without_text_takes_no_time():
    now = 0.0
    pace = Pace({0: 1000, 1: 0, 2: 1000}, clock=lambda: now)
    for now in range(11):
        pace.update([WorkerState("a", "compressing", 0, now, 10 * now, now / 10)])
    pace.finish(0, 10, 100)
    pace.update([WorkerState("a", "reading", 1, 10, 100)])
    assert pace.remaining_s == pytest.approx(10, rel=0.1)


def test_without_looks_at_the_workers_finished_shards_are_what_counts():
    now = 0.0
    pace = Pace(dict.fromkeys(range(10), 100), clock=lambda: now)
    for number in range(3):
        now = 60.0 + 10 * number
        pace.finish(number, 1, 25)
    assert pace.remaining_s == pytest.approx(70)


def test_what_is_lost_counts_as_speed_but_not_as_done():
    now = 0.0
    pace = Pace(dict.fromkeys(range(4), 1000), clock=lambda: now)
    for now in range(51):
        pace.update([WorkerState("a", "compressing", 0, now, 10 * now, now / 100)])
    pace.fail(0, final=False)
    assert pace.tokens == 0
    pace.update([WorkerState("a", "waiting", None, 50, 500)])
    assert pace.tokens_per_s == pytest.approx(10)
    assert pace.remaining_s == pytest.approx(400, rel=0.05)
    pace.fail(0, final=True)
    assert pace.remaining_s == pytest.approx(300, rel=0.05)


def test_a_shard_that_is_being_written_is_not_forgotten_while_the_next_is_compressed():
    now = 0.0
    pace = Pace(dict.fromkeys(range(4), 1000), clock=lambda: now)
    for now in range(101):
        pace.update([WorkerState("a", "compressing", 0, now, 10 * now, now / 100)])
    pace.update([WorkerState("a", "reading", 2, 100, 1000)])
    assert pace.remaining_s == pytest.approx(300, rel=0.01)
    pace.update([WorkerState("a", "compressing", 1, 100, 1000, 0.0)])
    assert pace.remaining_s == pytest.approx(300, rel=0.01)
    assert pace.tokens == 1000
    pace.finish(0, 100, 1000)
    assert pace.remaining_s == pytest.approx(300, rel=0.01)
    assert pace.tokens == 1000

    now = 101
    pace.update([WorkerState("a", "compressing", 1, 150, 1500, 0.5)])
    pace.update([WorkerState("a", "compressing", 2, 150, 1500, 0.0)])
    # What it had compressed is gone with the worker.
    pace.lose_worker("a")
    assert pace.tokens == 1000
    # The speed, of the last third of the run, counts the lost tokens.
    pace.update([])
    assert pace.tokens_per_s == pytest.approx((1500 - 670) / (101 - 67))


def test_a_build_that_stops_is_done_with_what_is_in_hand():
    now = 0.0
    pace = Pace(dict.fromkeys(range(100), 1000), clock=lambda: now)
    for now in range(41):
        pace.update([WorkerState(name, "compressing", n, 0, 0, now / 100) for n, name in enumerate("ab")])
    assert pace.remaining_s == pytest.approx(4960, rel=0.05)
    pace.drain()
    assert pace.remaining_s == pytest.approx(60)


def test_a_worker_that_never_starts_is_not_waited_for():
    now = 0.0
    pace = Pace(dict.fromkeys(range(20), 100), clock=lambda: now)
    for now in range(1, 1001):
        if now % 100 == 0:
            pace.finish(now // 100 - 1, 1, 25)
        part = now % 100 / 100
        pace.update(
            [
                WorkerState("a", "compressing", now // 100, 0, 0, part),
                WorkerState("b", "starting", None, 0, 0),
            ]
        )
    assert pace.remaining_s == pytest.approx(1000, rel=0.01)
