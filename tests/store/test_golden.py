"""Stores of every format version that was ever released stay readable, and of every codec.

``python tests/store/test_golden.py FOLDER`` makes a new one, for a new version or new codecs; those that are there are
never remade. ``v1`` was made when there were two codecs and no calibration, ``v1-search`` is the first with an index,
``v1-fisher`` the first with the ``fisher`` codecs.
"""

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pisco_index.store import (
    CODECS,
    CONTENTS,
    FORMAT_VERSION,
    Fingerprint,
    Store,
    StoreMeta,
    codec_by_name,
    commit,
    describe,
    done_shards,
    encode,
    is_calibrated,
    keep_index,
    memory_rows,
    rejected_rows,
    search_index,
    text_hash,
    write_fragment,
)

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir()) if GOLDEN.exists() else []

# A width that is no power of two, and memory of which no two channels are alike.
DIM = 24
SENSITIVITY = np.diag(np.linspace(1, 0.01, DIM)) + 0.1
SAMPLE = (np.random.default_rng(5).standard_normal((500, DIM)) * np.linspace(4, 0.2, DIM) + np.arange(DIM)).astype("f4")


def write_golden(folder: Path) -> None:
    """Make ``folder/store`` and ``folder/expected.json``, with a document in each codec and one without vectors."""
    calibrations = {codec.name: codec.calibrate(SAMPLE, SENSITIVITY) for codec in CODECS}
    meta = StoreMeta(
        fingerprint=Fingerprint({"compressor": "c0ffee", "rate": "16"}),
        stage="hidden",
        dim=DIM,
        codec="int8",
        checkpoint={"name": "golden", "rate": 16},
        package_version="0.1.0",
        created_at=datetime(2025, 1, 1, tzinfo=UTC),
        optional_columns=("title",),
    )
    kept = {each.asset: each.to_bytes() for name, each in calibrations.items() if each is not None and name != "int8"}
    first = calibrations["int8"]
    assert first is not None
    assets = {"connector": bytes(range(256)), first.asset: first.to_bytes(), **kept}
    store = Store.create(folder / "store", meta=meta, assets=assets, further_columns=(CONTENTS,))
    memory = {f"in {codec.name}": SAMPLE[3 * n : 3 * n + 3] for n, codec in enumerate(CODECS)}
    memory |= {"Zürich 日本": SAMPLE[30:31], "empty": SAMPLE[:0], "strange": np.full((1, DIM), np.inf, np.float32)}
    memory["far"] = SAMPLE[31:34] + np.eye(3, DIM, 11, dtype=np.float32) * [[0], [80], [0]]
    names = [*(codec.name for codec in CODECS), "int4", "int8", "int8", "fisher2"]
    payloads = [
        encode(doc_id, values, codec_by_name(name), calibrations[name])
        for (doc_id, values), name in zip(memory.items(), names, strict=True)
    ]
    ids = [*memory, "poison"]
    rows = memory_rows(
        doc_ids=ids,
        tokens_total=[40] * len(ids),
        tokens_fed=[30] * len(ids),
        payloads=[*payloads, None],
        text_hashes=[text_hash(i) for i in ids],
        errors=[*[None] * len(memory), "crashed twice"],
        titles=["Plain", *[None] * len(memory)],
        contents=ids,
    )
    rejected = rejected_rows(sources=["corpus.jsonl:6"], doc_ids=["dup"], errors=["the id occurs twice"])
    shards = [
        write_fragment(store.uri, 0, rows.slice(0, 2)),
        write_fragment(store.uri, 1, rows.slice(2), rejected),
        write_fragment(store.uri, 2, rows.slice(0, 0)),
    ]
    commit(store, shards[:1])
    commit(store, shards[1:])
    keep_index(store.uri)
    store = store.refresh()
    found = describe(store).to_dict()
    decoded = {doc_id: store.fetch([doc_id]).memory()[0] for doc_id in memory}
    expected = {
        "memory": {doc_id: values.tolist() for doc_id, values in decoded.items()},
        # Sums of the calibrated codecs differ in their last bits from one machine to another.
        "tolerance": 1e-5,
        "ids": ids,
        "failed": {"poison": "crashed twice"},
        "title": {ids[0]: "Plain", ids[1]: None},
        "shards": [0, 1, 2],
        "found": {word: _found(store, word) for word in ("int8", "zurich", "poisons")},
        "info": {k: v for k, v in found.items() if k not in ("uri", "disk_bytes")},
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


def _found(store: Store, word: str) -> list[str]:
    hits = store.table.scanner(columns=["doc_id", "_score"], full_text_query=word, prefilter=True)
    return sorted(hits.to_table().column("doc_id").to_pylist())


@pytest.fixture(params=VERSIONS)
def golden(request, tmp_path):
    """A copy, since opening must not depend on the place, and a golden store is never touched."""
    folder = tmp_path / "copy"
    shutil.copytree(GOLDEN / request.param, folder)
    return Store.open(folder / "store"), json.loads((folder / "expected.json").read_text())


def test_there_is_a_golden_store_of_the_present_version():
    assert f"v{FORMAT_VERSION}" in VERSIONS


def test_its_memory_is_what_it_was(golden):
    store, expected = golden
    rows = store.fetch(list(expected["memory"]))
    values, lengths = rows.memory()
    assert lengths.tolist() == [len(memory) for memory in expected["memory"].values()]
    flat = [vector for memory in expected["memory"].values() for vector in memory]
    tolerance = expected.get("tolerance", 0)
    np.testing.assert_allclose(values, np.array(flat, np.float32), rtol=tolerance, atol=tolerance)


def test_there_is_a_golden_payload_of_every_codec_and_it_is_near_what_was_stored():
    store = Store.open(GOLDEN / "v1-fisher" / "store")
    for n, codec in enumerate(CODECS):
        rows = store.fetch([f"in {codec.name}"])
        assert rows.payloads[0][3] == codec.codec_id
        error = np.abs(rows.memory()[0] - SAMPLE[3 * n : 3 * n + 3]) / SAMPLE.std(axis=0)
        assert error.max() < {"fp32": 1e-7, "int8": 0.03, "int4": 1.0}.get(codec.name, 3 if is_calibrated(codec) else 2)


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


def test_it_finds_what_it_found(golden):
    store, expected = golden
    for word, ids in expected.get("found", {}).items():
        assert _found(store, word) == ids


def test_a_build_can_go_on_in_it(golden):
    store, expected = golden
    rows = memory_rows(
        doc_ids=["new"],
        tokens_total=[1],
        tokens_fed=[1],
        payloads=[
            encode("new", np.ones((1, store.meta.dim)), codec_by_name(store.meta.codec), store.own_calibration())
        ],
        text_hashes=[bytes(16)],
        errors=[None],
    )
    commit(store, [write_fragment(store.uri, 3, rows)])
    assert list(store.refresh().ids()) == [*expected["ids"], "new"]
    is_searchable = "found" in expected
    assert keep_index(store.uri).action == ("extended" if is_searchable else "none")
    assert (search_index(store.refresh().table) is not None) == is_searchable


if __name__ == "__main__":
    write_golden(Path(sys.argv[1]))
