"""Stores of every format version that was ever released stay readable.

``python tests/store/test_golden.py FOLDER`` makes a new one, for a new version; those that are there are never remade.
"""

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pisco_index.store import (
    FORMAT_VERSION,
    Fingerprint,
    Store,
    StoreMeta,
    codec_by_name,
    commit,
    describe,
    done_shards,
    encode,
    memory_rows,
    rejected_rows,
    text_hash,
    write_fragment,
)

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir()) if GOLDEN.exists() else []

DOCUMENTS = {
    "plain": ("fp32", [[0.1, -2.5, 3e-9, 4.0], [5.0, -6.0, 7.25, 1e9]]),
    "half": ("bf16", [[1.0, -0.5, 0.375, -0.0], [2.0, 4.0, -8.0, 96.0], [0.25, 0.0, 1.5, -3.0]]),
    "Zürich 日本": ("bf16", [[-1.0, 2.0, -4.0, 8.0]]),
    "empty": ("bf16", []),
}


def write_golden(folder: Path) -> None:
    """Make ``folder/store`` and ``folder/expected.json``."""
    meta = StoreMeta(
        fingerprint=Fingerprint({"compressor": "c0ffee", "rate": "16"}),
        stage="hidden",
        dim=4,
        codec="bf16",
        checkpoint={"name": "golden", "rate": 16},
        package_version="0.1.0",
        created_at=datetime(2025, 1, 1, tzinfo=UTC),
        optional_columns=("title",),
    )
    store = Store.create(folder / "store", meta=meta, assets={"connector": bytes(range(256))})
    memory = {doc_id: np.array(values, np.float32).reshape(-1, 4) for doc_id, (_, values) in DOCUMENTS.items()}
    ids = [*DOCUMENTS, "poison"]
    payloads = [encode(i, memory[i], codec_by_name(codec)) for i, (codec, _) in DOCUMENTS.items()]
    rows = memory_rows(
        doc_ids=ids,
        tokens_total=[40, 90, 20, 0, 7],
        tokens_fed=[40, 64, 20, 0, 0],
        payloads=[*payloads, None],
        text_hashes=[text_hash(i) for i in ids],
        errors=[None, None, None, None, "crashed twice"],
        titles=["Plain", None, "Zürich", None, None],
    )
    rejected = rejected_rows(sources=["corpus.jsonl:6"], doc_ids=["dup"], errors=["the id occurs twice"])
    shards = [
        write_fragment(store.uri, 0, rows.slice(0, 2)),
        write_fragment(store.uri, 1, rows.slice(2), rejected),
        write_fragment(store.uri, 2, rows.slice(0, 0)),
    ]
    commit(store, shards[:1])
    commit(store, shards[1:])
    found = describe(store.refresh()).to_dict()
    expected = {
        "memory": {doc_id: values.tolist() for doc_id, values in memory.items()},
        "ids": ids,
        "failed": {"poison": "crashed twice"},
        "title": {"plain": "Plain", "half": None},
        "shards": [0, 1, 2],
        "info": {k: v for k, v in found.items() if k not in ("uri", "disk_bytes")},
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


@pytest.fixture(params=VERSIONS)
def golden(request, tmp_path):
    """A copy, since opening must not depend on the place, and a golden store is never touched."""
    folder = tmp_path / "copy"
    shutil.copytree(GOLDEN / request.param, folder)
    return Store.open(folder / "store"), json.loads((folder / "expected.json").read_text())


def test_there_is_a_golden_store_of_the_present_version():
    assert f"v{FORMAT_VERSION}" in VERSIONS


def test_its_memory_is_exact(golden):
    store, expected = golden
    rows = store.fetch(list(expected["memory"]))
    values, lengths = rows.memory()
    assert lengths.tolist() == [len(memory) for memory in expected["memory"].values()]
    flat = [vector for memory in expected["memory"].values() for vector in memory]
    np.testing.assert_array_equal(values, np.array(flat, np.float32))


def test_its_rows_are_all_there(golden):
    store, expected = golden
    assert list(store.ids()) == expected["ids"]
    assert store.fetch(list(expected["title"]), columns=["title"]).columns["title"] == list(expected["title"].values())
    assert done_shards(store) == set(expected["shards"])
    assert store.asset("connector") == bytes(range(256))


def test_it_describes_itself_as_it_did(golden):
    store, expected = golden
    found = json.loads(json.dumps(describe(store).to_dict()))
    assert {key: found[key] for key in expected["info"]} == expected["info"]


def test_a_build_can_go_on_in_it(golden):
    store, expected = golden
    rows = memory_rows(
        doc_ids=["new"],
        tokens_total=[1],
        tokens_fed=[1],
        payloads=[encode("new", np.ones((1, store.meta.dim)), codec_by_name(store.meta.codec))],
        text_hashes=[bytes(16)],
        errors=[None],
    )
    commit(store, [write_fragment(store.uri, 3, rows)])
    assert list(store.refresh().ids()) == [*expected["ids"], "new"]


if __name__ == "__main__":
    write_golden(Path(sys.argv[1]))
