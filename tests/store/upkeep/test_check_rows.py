import os
import sys

import numpy as np
import pytest

from pisco_index.store import Expectations, check_assets, check_rows, commit, no_memory, write_fragment
from pisco_index.store.upkeep import check_processes

# The function has its module's name.
MODULE = sys.modules["pisco_index.store.upkeep.check_rows"]


def problems(store, **expected):
    findings, _ = check_assets(store.uri)
    check_rows(findings, Expectations(**expected), set())
    return [(problem.doc_id, problem.what) for problem in findings.problems]


def test_memory_of_impossible_length_is_found_by_the_bounds_that_are_given(store, rows_of, memory_of):
    """The store knows no rule by itself: memory of a fixed length is as good as one that grows with the text."""
    names = ["a", "b", "c", "bad"]
    commit(store, [write_fragment(store.uri, 0, rows_of(names, failed={"bad"}))])
    lengths = {doc_id: len(memory_of(doc_id)) for doc_id in names[:3]}
    assert set(lengths.values()) == {1, 2, 3}
    assert problems(store) == []
    asked = []

    def bounds(fed):
        asked.append(fed)
        return np.full(len(fed), 2), np.full(len(fed), 2)

    found = problems(store, n_mem_bounds=bounds)
    assert {doc_id for doc_id, _ in found} == {doc_id for doc_id, length in lengths.items() if length != 2}
    assert all("token counts do not fit together: 30 tokens fed make 2 to 2 memory tokens" in what for _, what in found)
    assert [(fed.tolist(), fed.dtype) for fed in asked] == [([30] * 4, np.int64)]
    assert problems(store, n_mem_bounds=lambda fed: (np.ones(len(fed)), np.full(len(fed), 3))) == []


@pytest.fixture
def wrong(store, shard_rows, rows_of):
    """A store of four shards, of which all rows are wrong if memory has no vectors, and two have the same id."""
    commit(store, [write_fragment(store.uri, shard, shard_rows(shard)) for shard in range(3)])
    commit(store, [write_fragment(store.uri, 3, rows_of(["1-1", "a"]))])
    return store.refresh()


def findings_of(store, processes, **expected):
    findings, _ = check_assets(store.uri)
    check_rows(findings, Expectations(**expected), set(), processes=processes)
    return findings


def described(findings):
    damage = findings.damage
    rows = {number: each.tolist() for number, each in damage.rows.items()}
    return findings.problems, findings.problem_count, findings.documents, rows, damage.dropped, damage.held


@pytest.mark.parametrize("expected", [{}, {"n_mem_bounds": no_memory}])
def test_several_processes_find_the_same(wrong, expected):
    alone, together = (described(findings_of(wrong, processes, **expected)) for processes in (0, 2))
    assert alone == together
    problems, count, documents, rows, dropped, _ = together
    assert documents == 17
    assert count == len(problems) == (17 if expected else 2)
    assert sum(map(len, rows.values())) == sum(dropped.values()) == count


@pytest.mark.fault("A process that checks rows is killed.", "The others check its files; the result is the same.")
@pytest.mark.parametrize("when", ["at the start", "at work"])
def test_the_work_of_a_killed_process_is_done(wrong, monkeypatch, when):
    real, killed = check_processes._Process.check, []

    def kill_first(process, number):
        if not killed:
            killed.append(number)
            if when == "at work":
                real(process, number)
            process._process.kill()
            process._process.wait()
        return real(process, number)

    expected = described(findings_of(wrong, 0))
    monkeypatch.setattr(check_processes._Process, "check", kill_first)
    assert described(findings_of(wrong, 2)) == expected
    assert killed


def test_problems_beyond_the_listed_ones_are_counted(wrong, monkeypatch):
    monkeypatch.setattr("pisco_index.store.upkeep.findings.LISTED", 3)
    monkeypatch.setattr("pisco_index.store.upkeep.check_fragment.LISTED", 2)
    monkeypatch.setattr(MODULE, "LISTED", 3)
    findings = findings_of(wrong, 0, n_mem_bounds=no_memory)
    assert (len(findings.problems), findings.problem_count) == (3, 17)
    findings = findings_of(wrong, 0)
    assert (len(findings.problems), findings.problem_count) == (2, 2)


def test_processes_are_worth_starting_for_large_stores_only(wrong, monkeypatch):
    started = []
    monkeypatch.setattr(MODULE, "check_fragments", lambda check, checker, numbers, count: started.append(count) or [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    for rows in (200_000, 1):
        monkeypatch.setattr(MODULE, "_FEW_ROWS", rows)
        with pytest.raises(ValueError, match="zip"):
            findings_of(wrong, None)
    assert started == [0, 3]
