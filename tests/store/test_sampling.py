import numpy as np

from pisco_index.store import commit, sample_memory, write_fragment

NAMES = [f"doc-{i}" for i in range(60)]


def test_a_sample_is_spread_over_the_rows_and_all_of_a_small_store(store, rows_of, memory_of):
    commit(store, [write_fragment(store.uri, 0, rows_of(["bad", *NAMES], failed={"bad"}))])
    store = store.refresh()
    found = sample_memory(store, 10_000)
    lengths = found.lengths
    assert found.texts == [""] * 60
    np.testing.assert_array_equal(found.values, np.concatenate([memory_of(doc_id) for doc_id in NAMES]))
    assert lengths == [len(memory_of(doc_id)) for doc_id in NAMES]
    total = sum(lengths)
    found = sample_memory(store, 20)
    some, lengths = found.values, found.lengths
    assert len(lengths) == -(-20 * len(NAMES) // total)
    np.testing.assert_array_equal(some[: lengths[0]], memory_of(NAMES[0]))
    np.testing.assert_array_equal(some[-lengths[-1] :], memory_of(NAMES[-1]))


def test_a_sample_of_an_empty_store_is_empty(store):
    found = sample_memory(store, 20, with_texts=True)
    assert (found.values.shape, found.lengths, found.texts) == ((0, store.meta.dim), [], [])
