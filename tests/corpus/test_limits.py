"""Records and files made to exhaust memory or time, or to reach beyond the file, are documents or rejected."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

import pisco_index
from pisco_index.corpus import framing

from .test_fuzz import HEADER, as_export, as_jsonl, as_quoted_tsv, as_tsv, page, read

EMPTY_DOCUMENTS = int(os.environ.get("PISCO_INDEX_EMPTY_DOCUMENTS", "100000"))
"""Set it to a million if there is time."""


@pytest.mark.parametrize("write", [as_jsonl, as_tsv, as_quoted_tsv])
def test_a_line_that_is_too_long_is_skipped(tmp_path, write, monkeypatch):
    monkeypatch.setattr(framing, "MAX_RECORD_BYTES", 2 << 20)
    path = tmp_path / "corpus"
    path.write_bytes(write(["a", "x" * (5 << 20), "b", "y" * (5 << 20)]))
    for cuts in ((), range(4)):
        documents, rejected = read(path, cuts, on_error="skip")
        assert [document.doc_id for document in documents] == ["d0", "d2"]
        assert [each.reason for each in rejected] == ["too long", "too long"]


def test_a_page_that_is_too_long_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(framing, "MAX_RECORD_BYTES", 2 << 20)
    path = tmp_path / "corpus"
    endless = "<page>" + "x" * (5 << 20)
    path.write_bytes(
        as_export(["a", "x" * (5 << 20), "b"]).replace(b"</mediawiki>", f"{endless}{page(3, 'c')}".encode())
    )
    with path.open("ab") as file:
        file.write(b"</mediawiki>")
    for cuts in ((), range(5)):
        documents, rejected = read(path, cuts, on_error="skip")
        assert [document.doc_id for document in documents] == ["0#0", "2#0", "3#0"]
        assert [each.reason for each in rejected] == ["too long", "too long"]


MEASURE = """
import sys
from pathlib import Path
from pisco_index.configs.corpus import CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.pipeline.planning.planner import plan_corpus

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10

before = peak()
for path in sys.argv[1:]:
    corpus = open_corpus([path], CorpusConfig(on_error="skip"))
    plan = plan_corpus(corpus, shard_documents=1000)
    documents = sum(1 for source in corpus.sources for _ in source.read(0, None))
    print(plan.records, documents, sum(plan.rejected.values()), len(plan.shards), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
def test_memory_is_bounded(tmp_path):
    empty, large, bomb = (tmp_path / name for name in ("empty.jsonl", "large.jsonl", "bomb.jsonl.zst"))
    record = b'{"id": "%d", "text": ""}\n'
    empty.write_bytes(b"".join(record % n for n in range(EMPTY_DOCUMENTS)))
    text = json.dumps("some words " * 1_000_000).encode()
    large.write_bytes(b"".join(b'{"id": "%d", "text": %s}\n' % (n, text) for n in range(4)))
    bomb.write_bytes(zstandard.compress(record % 1 + b"x" * (160 << 20) + b"\n" + record % 2))
    command = [sys.executable, "-c", MEASURE, *map(str, (empty, large, bomb))]
    environment = {**os.environ, "PYTHONPATH": str(Path(pisco_index.__file__).parents[1])}
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    (*first, for_empty), (*second, for_large), (*third, for_bomb) = (
        map(int, line.split()) for line in finished.stdout.splitlines()
    )
    assert first == [EMPTY_DOCUMENTS, EMPTY_DOCUMENTS, 0, EMPTY_DOCUMENTS // 1000]
    assert second == [4, 4, 0, 4]
    assert third == [2, 2, 1, 1]
    assert for_empty < 100
    assert for_large < 150
    # The compressor's output of 32 MiB, and the line of 64 MiB until it is given up.
    assert for_bomb < 300


@pytest.fixture
def reached():
    """Record the files that are opened and the sockets that are used while a test runs."""
    seen, is_on = [], [True]

    def hook(event, arguments):
        if is_on[0] and (event == "open" or event.startswith("socket.")):
            seen.append((event, str(arguments[0])))

    sys.addaudithook(hook)
    yield seen
    is_on[0] = False


def test_entities_are_not_expanded_and_nothing_else_is_read(tmp_path, reached):
    declared = (
        "<!DOCTYPE mediawiki SYSTEM 'http://localhost:9/mediawiki.dtd' [\n"
        "<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;'><!ENTITY file SYSTEM 'file:///etc/passwd'>\n"
        "<!ENTITY net SYSTEM 'http://localhost:9/'> <!ENTITY % remote SYSTEM 'http://localhost:9/'> %remote; ]>\n"
    )
    names = ["b", "file", "net", "amp"]
    pages = "".join(page(n, "X").replace(">X<", f">x &{name};<") for n, name in enumerate(names))
    path = tmp_path / "dump.xml"
    path.write_text(
        declared + HEADER + pages + page(9, "x").replace("<page>", "<page><!DOCTYPE page>") + "</mediawiki>"
    )
    reached.clear()
    documents, rejected = read(path, on_error="skip")
    assert [document.text for document in documents] == ["x &"]
    assert [each.reason for each in rejected] == ["broken XML"] * 4
    assert {place for event, place in reached if event == "open"} <= {str(path)}
    assert not [event for event, _ in reached if event.startswith("socket.")]


def test_deep_and_wide_records_are_documents_or_rejected(tmp_path):
    path = tmp_path / "corpus.jsonl"
    deep, wide = "[" * 200_000 + "]" * 200_000, ",".join(f'"k{n}": 0' for n in range(100_000))
    path.write_text(
        f'{{"id": "a", "text": ""}}\n{{"id": "b", "text": "", "x": {deep}}}\n{{"id": "c", {wide}}}\n'
        f'{{"id": {"9" * 5000}, "text": ""}}\n{{"id": "d", "text": "a\\u0000b\0c"}}\n{{"id": "e", "text": "a\\u0000b"}}'
    )
    documents, rejected = read(path, on_error="skip")
    assert [(document.doc_id, document.text) for document in documents] == [
        ("a", ""),
        ("d", "a\0b\0c"),
        ("e", "a\0b"),
    ]
    assert [each.reason for each in rejected] == ["broken JSON", "missing field", "unusable id"]
    assert max(len(each.error) for each in rejected) <= 1001
    xml = tmp_path / "dump.xml"
    nested = page(1, "x").replace("<ns>", "<a>" * 200_000 + "</a>" * 200_000 + "<ns>")
    xml.write_text(f"{HEADER}{nested}</mediawiki>")
    documents, rejected = read(xml, on_error="skip")
    assert len(documents) + len(rejected) == 1
