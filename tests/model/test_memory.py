import pytest
import torch

from pisco_index import Memory


@pytest.fixture
def memory():
    values = torch.arange(12.0).reshape(6, 2)
    return Memory(values, (3, 0, 1, 2), "hidden", "digest", ("a", "b", "c", "d"))


def test_memory_is_one_matrix_per_document(memory):
    assert (len(memory), memory.dim) == (4, 2)
    assert [part.shape for part in memory] == [(3, 2), (0, 2), (1, 2), (2, 2)]
    assert torch.equal(memory[2], torch.tensor([[6.0, 7.0]]))
    assert torch.equal(torch.cat(list(memory)), memory.values)


def test_documents_are_selected_in_the_given_order(memory):
    chosen = memory.select([3, 0, 3])
    assert chosen.lengths == (2, 3, 2)
    assert chosen.doc_ids == ("d", "a", "d")
    assert torch.equal(chosen.values, torch.cat([memory[3], memory[0], memory[3]]))
    assert (chosen.stage, chosen.connector) == ("hidden", "digest")


def test_memory_is_split_into_groups_of_documents(memory):
    first, none, rest = memory.split([2, 0, 2])
    assert (first.doc_ids, first.lengths) == (("a", "b"), (3, 0))
    assert (none.doc_ids, none.values.shape) == ((), (0, 2))
    assert torch.equal(rest.values, memory.values[3:])
    assert rest.values.data_ptr() == memory[2].data_ptr()
    assert [each.connector for each in (first, none, rest)] == ["digest"] * 3


def test_no_documents_are_empty_memory(memory):
    none = memory.select([])
    assert (none.lengths, none.doc_ids, list(none)) == ((), (), [])
    assert none.values.shape == (0, 2)


def test_ids_are_optional(memory):
    assert Memory(memory.values, memory.lengths, "hidden", "digest").select([0]).doc_ids == ()


@pytest.mark.parametrize(("shape", "lengths"), [((3, 2), (1, 1)), ((3,), (3,))])
def test_lengths_fill_the_matrix(shape, lengths):
    with pytest.raises(ValueError, match="does not hold"):
        Memory(torch.zeros(shape), lengths, "hidden", "digest")
