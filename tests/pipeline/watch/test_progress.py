"""Several listeners of one build."""

import inspect

import pytest

from pisco_index import BuildConfig
from pisco_index.errors import BuildInterruptedError
from pisco_index.pipeline.watch.progress import MOMENTS, BuildProgress, Listeners, notified_of_the_end


class Recorder(BuildProgress):
    """Remembers what it was told; fails at one moment."""

    def __init__(self, fails_at=None):
        self.told, self.fails_at = [], fails_at

    def __getattribute__(self, name):
        if name not in MOMENTS:
            return super().__getattribute__(name)

        def record(*args):
            self.told.append((name, *args))
            if name == self.fails_at:
                raise OSError(28, "No space left on device")

        return record


ARGUMENTS = {
    "began": ("/store", BuildConfig()),
    "finished_shard": (1, 2, 3, 4),
    "started": (2, 1, {1: 10}, "here"),
}


def arguments_of(moment):
    count = len(inspect.signature(getattr(BuildProgress, moment)).parameters) - 1
    return ARGUMENTS.get(moment, tuple(range(count)))


@pytest.mark.parametrize("moment", MOMENTS)
def test_all_listeners_are_told_of_every_moment(moment):
    one, other = Recorder(), Recorder()
    getattr(Listeners(one, Listeners(other)), moment)(*arguments_of(moment))
    assert one.told == other.told == [(moment, *arguments_of(moment))]


@pytest.mark.fault(
    "The event log's disk is full, or another listener fails.",
    "It is reported once; the build continues.",
)
def test_a_listener_that_fails_is_dropped_and_the_others_are_told_once():
    before, failing, after = Recorder(), Recorder("finished_shard"), Recorder()
    listeners = Listeners(before, failing, after)
    for number in range(3):
        listeners.finished_shard(number, 1, 1, 1)
    for each in (before, after):
        assert [told for told in each.told if told[0] == "finished_shard"] == [
            ("finished_shard", number, 1, 1, 1) for number in range(3)
        ]
        ((_, name, error),) = [told for told in each.told if told[0] == "lost_listener"]
        assert name == "Recorder"
        assert "No space" in str(error)
    # It may hold something that is to be closed.
    assert failing.told == [("finished_shard", 0, 1, 1, 1), ("ended",)]


def test_listeners_that_fail_of_the_news_that_others_did_are_dropped_too():
    listeners = Listeners(Recorder("committed"), Recorder("lost_listener"), last := Recorder())
    listeners.committed(1)
    assert [told[0] for told in last.told] == ["lost_listener", "lost_listener", "committed"]


def test_an_interrupt_within_a_listener_is_the_builds():
    class Interrupted(BuildProgress):
        def committed(self, shards):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Listeners(Interrupted()).committed(1)


def test_how_a_build_ends_is_told():
    recorder = Recorder()
    with notified_of_the_end(recorder):
        pass
    assert recorder.told == [("concluded", None), ("ended",)]

    recorder, error = Recorder(), BuildInterruptedError("stopped")
    with pytest.raises(BuildInterruptedError), notified_of_the_end(recorder):
        raise error
    assert recorder.told == [("concluded", error), ("ended",)]
