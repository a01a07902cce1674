"""The log of crashes: the next process learns from it what was in flight, and nothing is left of it without crashes."""

import pytest

from pisco_index.pipeline.pools.crashes import CrashLog


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "new" / "store")


def test_every_process_that_ends_with_a_shard_in_flight_counts(uri):
    CrashLog(uri).note({3, 5})
    assert CrashLog(uri).counts == {3: 1, 5: 1}
    CrashLog(uri).note({3})
    assert CrashLog(uri).counts == {3: 2, 5: 1}


def test_a_process_that_ends_with_an_error_is_no_crash(uri):
    CrashLog(uri).note({3})
    log = CrashLog(uri)
    log.note({3, 7})
    log.close()
    assert CrashLog(uri).counts == {3: 1}


def test_nothing_is_left_without_crashes(uri, tmp_path):
    log = CrashLog(uri)
    log.note({3})
    assert (tmp_path / "new" / "store").is_dir()
    log.close()
    assert not (tmp_path / "new" / "store").exists()
    CrashLog(uri).note({3})
    log = CrashLog(uri)
    log.forget(3)
    log.close()
    assert not list((tmp_path / "new" / "store").iterdir())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"crashes": {"x": 1}, "in_hand": []}', '{"crashes": 3}'])
def test_a_log_that_cannot_be_read_counts_nothing(tmp_path, content):
    (tmp_path / ".build.crashes").write_text(content)
    assert not CrashLog(str(tmp_path)).counts


def test_in_an_object_store_nothing_is_kept():
    log = CrashLog("s3://bucket/store")
    log.note({3})
    log.close()
    assert not log.counts
