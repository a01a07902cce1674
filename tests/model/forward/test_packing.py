import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisco_index.model.forward.packing import Passages, pack

MEMORY = 9


@given(st.lists(st.lists(st.integers(0, MEMORY), max_size=12), min_size=1, max_size=9), st.data())
def test_every_token_is_where_it_belongs(passages, data):
    chosen = data.draw(st.lists(st.integers(0, len(passages) - 1), min_size=1, unique=True))
    total = sum(len(passages[i]) for i in chosen)
    rows = data.draw(st.integers(0, total + 5))
    packed = pack(Passages.of(passages), np.array(chosen), (MEMORY,), rows)
    flat = [token for i in chosen for token in passages[i]]
    assert packed.ids.tolist() == flat + [0] * max(rows - total, 0)
    assert packed.positions[0, :total].tolist() == [place for i in chosen for place in range(len(passages[i]))]
    assert packed.memory.tolist() == [row for row, token in enumerate(flat) if token == MEMORY]
    for starts, part in ((packed.starts, lambda p: p), (packed.memory_starts, lambda p: [t for t in p if t == MEMORY])):
        assert starts.diff().tolist() == [len(part(passages[i])) for i in chosen]
        assert starts[0] == 0
    longest = max(len(passages[i]) for i in chosen)
    assert packed.longest == longest
    assert packed.most_memory == max(passages[i].count(MEMORY) for i in chosen)
    assert packed.memory_last == all(
        MEMORY not in passage[: len(passage) - passage.count(MEMORY)] for passage in (passages[i] for i in chosen)
    )


def test_rows_after_the_last_passage_are_no_memory():
    packed = pack(Passages.of([[1, 2], [0]]), np.array([0, 1]), memory_token_ids=(0,), rows=8)
    assert packed.memory.tolist() == [2]


def test_lengths_that_do_not_fit_the_ids_are_an_error():
    with pytest.raises(ValueError, match="5 token ids are not 2 passages of 4 tokens"):
        Passages(np.arange(5), np.array([1, 3]))


def test_there_may_be_no_passages():
    passages = Passages.of([])
    assert len(passages) == 0
    assert passages.ids.dtype == np.int32
