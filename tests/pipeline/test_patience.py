"""Waiting for a store that is away."""

import pytest

from pisco_index.errors import CorruptStoreError, StoreError, StoreUnreachableError
from pisco_index.pipeline import patience
from pisco_index.pipeline.patience import is_away, patiently
from pisco_index.store import Fingerprint, Store, StoreMeta


@pytest.fixture
def uri(tmp_path):
    meta = StoreMeta(
        fingerprint=Fingerprint({"a": "b"}), stage="hidden", dim=4, codec="fp32", checkpoint={}, package_version="0"
    )
    return Store.create(tmp_path / "store", meta=meta, assets={}).uri


@pytest.fixture
def slept(monkeypatch):
    """How long was slept, and no time spent."""
    seconds, now = [], [0.0]

    def sleep(each):
        seconds.append(each)
        now[0] += each

    monkeypatch.setattr(patience.time, "sleep", sleep)
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    return seconds


def failing(*errors):
    left = list(errors)

    def act():
        if left:
            raise left.pop(0)
        return "done"

    return act


def test_waits_are_doubled_and_told(uri, slept):
    told = []
    action = failing(*[StoreUnreachableError("away")] * 8)
    assert patiently(action, uri, 1e6, on_wait=lambda error, seconds: told.append((str(error), seconds))) == "done"
    assert told == [("away", seconds) for seconds in (1, 2, 4, 8, 16, 32, 60, 60)]
    assert sum(slept) == pytest.approx(183)


@pytest.mark.parametrize("error", [StoreError("the disk is full"), CorruptStoreError("damaged"), ValueError("bug")])
def test_what_waiting_does_not_mend_is_raised_at_once(uri, slept, error):
    with pytest.raises(type(error)):
        patiently(failing(error), uri, 1e6)
    assert slept == []


def test_a_folder_that_is_moved_away_and_comes_back(uri, tmp_path, slept):
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    store.rename(elsewhere)
    with pytest.raises(StoreError) as gone:
        Store.open(uri)
    assert is_away(gone.value, uri)
    opened = patiently(lambda: Store.open(uri), uri, 1e6, on_wait=lambda error, seconds: elsewhere.rename(store))
    assert opened.uri == uri
    assert not is_away(gone.value, uri)


def test_patience_ends(uri, slept):
    def act():
        raise StoreUnreachableError("away")

    with pytest.raises(StoreUnreachableError):
        patiently(act, uri, 100)


def test_it_gives_up_when_told(uri, slept):
    def act():
        raise StoreUnreachableError("away")

    with pytest.raises(StoreUnreachableError):
        patiently(act, uri, 1e6, given_up=lambda: len(slept) > 5)
    assert len(slept) == 6
