"""docs/format.md is enough to write a reader: examples/read_store.py reads what this package writes."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from pisco_index.store import CODECS, Store, commit, write_fragment
from pisco_index.store.codecs.record import HEADER_BYTES

ROOT = Path(__file__).parents[2]
DOCUMENT, EXAMPLE = ROOT / "docs" / "format.md", ROOT / "examples" / "read_store.py"


@pytest.fixture
def reader():
    return runpy.run_path(str(EXAMPLE))


def test_its_reader_reads_a_store(reader, store, rows_of, memory_of):
    ids = [f"doc-{i}" for i in range(40)]
    commit(store, [write_fragment(store.uri, 0, rows_of([*ids, "bad"], failed={"bad"}))])
    meta, memory = reader["read_store"](store.uri)
    assert (meta["format_version"], meta["stage"], meta["dim"]) == (1, "hidden", 8)
    assert list(memory) == ids
    for doc_id, values in memory.items():
        np.testing.assert_array_equal(values, memory_of(doc_id))


def test_its_reader_reads_the_golden_store(reader):
    _, memory = reader["read_store"](str(Path(__file__).parent / "golden" / "v1" / "store"))
    assert sorted(memory) == ["Zürich 日本", "empty", "half", "plain"]
    assert memory["plain"][0, 0] == np.float32(0.1)


def test_its_reader_decodes_every_codec(reader):
    store = Store.open(Path(__file__).parent / "golden" / "v1-fisher" / "store")
    _, memory = reader["read_store"](store.uri)
    assert {f"in {codec.name}" for codec in CODECS} < memory.keys()
    for doc_id, values in memory.items():
        expected, _ = store.fetch([doc_id]).memory()
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_it_lists_every_codec():
    text = DOCUMENT.read_text()
    assert f"header of {HEADER_BYTES} bytes" in text
    for codec in CODECS:
        assert f"| {codec.codec_id} | `{codec.name}` |" in text
