"""When a store was committed to, by its versions."""

from datetime import UTC, datetime, timedelta

import lance
import pytest

from pisco_index.store import commit, last_commits, versions, write_fragment


@pytest.fixture
def commit_at(store, shard_rows, monkeypatch):
    """Commit a shard; the versions seem to have come at the times told."""
    times = {store.version: 0.0}
    versions = lance.LanceDataset.versions
    start = datetime(2026, 1, 2, 3, 4, 5)

    def at(shard, second, documents=5):
        commit(store, [write_fragment(store.uri, shard, shard_rows(shard, documents))])
        times[store.refresh().version] = second

    def timed(self):
        return [v | {"timestamp": start + timedelta(seconds=times[v["version"]])} for v in versions(self)]

    monkeypatch.setattr(lance.LanceDataset, "versions", timed)
    return at


def test_a_store_without_commits_has_no_speed(store):
    found = last_commits(store)
    assert (found.seconds, found.shards, found.documents) == (0, frozenset(), 0)
    assert abs((datetime.now(UTC) - found.last).total_seconds()) < 600


def test_the_last_commits(store, commit_at):
    for number in range(5):
        commit_at(number, 10.0 * (number + 1))
    found = last_commits(store.refresh())
    assert (found.seconds, found.shards, found.documents) == (50, frozenset(range(5)), 25)
    found = last_commits(store.refresh(), most=2)
    assert (found.seconds, found.shards, found.documents) == (20, frozenset({3, 4}), 10)


def test_a_pause_ends_them(store, commit_at):
    for number, second in enumerate((10, 20, 5000, 5010, 5021)):
        commit_at(number, second)
    found = last_commits(store.refresh())
    # The first after the pause may have taken any part of it.
    assert (found.seconds, found.shards) == (21, frozenset({3, 4}))


def test_versions_that_were_cleaned_up_are_not_missed(store, commit_at):
    for number in range(4):
        commit_at(number, 10.0 * (number + 1))
    latest = store.refresh()
    latest.table.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    found = last_commits(latest.refresh())
    assert (found.seconds, found.shards) == (0, frozenset())


def test_what_came_after_the_version_that_is_open_does_not_count(store, commit_at):
    commit_at(0, 10)
    opened = store.refresh()
    commit_at(1, 20)
    assert last_commits(opened).shards == frozenset({0})


def test_the_versions_of_a_store(store, commit_at):
    for number in range(3):
        commit_at(number, 10.0 * (number + 1))
    latest = store.refresh()
    found = versions(latest)
    assert [each.documents for each in found] == [15, 10, 5, 0]
    assert found[0].number == latest.version
    assert found[0].bytes > found[1].bytes > 0
    assert (found[0].time - found[1].time).total_seconds() == 10
    # An opened version knows of no later one.
    assert versions(store) == found[-1:]
    assert versions(latest, most=2) == found[:2]
