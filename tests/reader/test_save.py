"""Fetched memory is written to a file of arrays, each named by its document's id."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from pisco_index import Reader
from pisco_index.errors import InputError
from pisco_index.reader.save import save_memory

IDS = ["doc-3", "doc-4"]


@pytest.fixture
def memory(hidden_store):
    with Reader(hidden_store) as reader:
        return reader.fetch(IDS)


@pytest.mark.parametrize(("suffix", "load"), [(".npz", np.load), (".safetensors", load_file)])
def test_arrays_are_named_by_id(memory, tmp_path, suffix, load):
    path = tmp_path / f"memory{suffix}"
    save_memory(memory, path)
    arrays = load(path)
    assert sorted(arrays) == IDS
    for doc_id, values in zip(IDS, memory, strict=True):
        np.testing.assert_array_equal(arrays[doc_id], values.numpy())


def test_odd_ids_are_names_too(memory, tmp_path):
    odd = replace(memory, doc_ids=("file", "a/../b c"))
    save_memory(odd, tmp_path / "odd.npz")
    assert sorted(np.load(tmp_path / "odd.npz")) == ["a/../b c", "file"]
    assert [path.name for path in tmp_path.iterdir()] == ["odd.npz"]


def test_refusals(memory, tmp_path):
    with pytest.raises(InputError, match=r"use one of \.npz, \.safetensors"):
        save_memory(memory, tmp_path / "memory.pt")
    with pytest.raises(InputError, match="given twice"):
        save_memory(replace(memory, doc_ids=("a", "a")), tmp_path / "memory.npz")
