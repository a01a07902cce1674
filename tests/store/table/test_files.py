"""Commits and checks of a store ask the same question of a data file: is it whole?"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pisco_index.errors import CorruptStoreError, StoreError
from pisco_index.store import (
    Expectations,
    WrittenShard,
    check_assets,
    check_rows,
    commit,
    verify_written,
    write_fragment,
)
from pisco_index.store.table import files
from pisco_index.store.table.addresses import MEMORY, data_file_uri
from pisco_index.store.table.files import data_file_problem


@pytest.fixture
def written(store, shard_rows) -> WrittenShard:
    """A shard of five documents that is not committed."""
    return write_fragment(store.uri, 0, shard_rows(0))


@pytest.fixture
def path(store, written) -> Path:
    """The shard's data file."""
    ((name, _),) = written.files
    return Path(data_file_uri(store.uri, MEMORY, name))


def test_a_whole_file_has_no_problem_with_its_size_known_or_not(path):
    for size in (path.stat().st_size, None, 0):
        assert data_file_problem(str(path), size, 5) is None


def test_a_file_of_another_size_or_number_of_rows(path):
    size = path.stat().st_size
    assert data_file_problem(str(path), size + 1000, 5) == f"has {size:,} bytes and not {size + 1000:,}"
    for each in (size, None):
        assert data_file_problem(str(path), each, 6) == "has 5 rows and not 6"


@pytest.mark.parametrize("is_size_known", [True, False])
def test_damage_is_found_with_the_size_known_or_not(path, is_size_known):
    content = path.read_bytes()
    size = len(content) if is_size_known else None
    path.write_bytes(bytes(len(content)))
    assert data_file_problem(str(path), size, 5).startswith("cannot be read (")
    path.write_bytes(content[:-9])
    assert data_file_problem(str(path), size, 5).startswith("has " if is_size_known else "cannot be read (")
    path.unlink()
    assert data_file_problem(str(path), size, 5) == "is missing"


@pytest.mark.parametrize(
    "cause", ["Generic S3 error: Error after 10 retries", "Too many open files (os error 24)"], ids=["store", "process"]
)
def test_an_error_that_is_not_the_files_is_raised(store, written, path, monkeypatch, cause):
    """Nothing is known of the file then, so neither is it damaged nor is its shard written again."""

    def fail(*_):
        raise OSError(cause)

    monkeypatch.setattr(files, "open_data_file", fail)
    for check in (lambda: data_file_problem(str(path), None, 5), lambda: verify_written(store, written)):
        with pytest.raises(StoreError, match=cause.partition(" (")[0]) as caught:
            check()
        assert not isinstance(caught.value, CorruptStoreError)


def test_a_shard_whose_file_sizes_are_unknown_is_committed_unless_a_file_is_damaged(store, written, path):
    fragments = [json.loads(text) for text in written.memory_fragments]
    for file in (file for fragment in fragments for file in fragment["files"]):
        file["file_size_bytes"] = None
    unsized = replace(written, memory_fragments=tuple(map(json.dumps, fragments)))
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    for attempt in (lambda: verify_written(store, unsized), lambda: commit(store, [unsized])):
        with pytest.raises(CorruptStoreError, match=r"shard 0 .*cannot be read"):
            attempt()
    path.write_bytes(content)
    verify_written(store, unsized)
    assert commit(store, [unsized]).new == {0}
    findings, _ = check_assets(store.uri)
    check_rows(findings, Expectations(), set())
    assert (findings.documents, findings.problems) == (5, [])
