import numpy as np

from pisco_index.store import Expectations, check_assets, check_rows, commit, write_fragment


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
