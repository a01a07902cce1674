"""Records and files made to exhaust memory or time, or to reach beyond themselves, have a plain outcome."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mwparserfromhell.parser
import pytest
import zstandard
from mwparserfromhell.parser.tokenizer import Tokenizer

import pisco_index
from pisco_index.corpus import streams
from pisco_index.corpus.formats.wikitext import prose

from .test_fuzz import COMPRESS, HEADER, as_export, as_jsonl, as_quoted_tsv, as_tsv, page, read

EMPTY_DOCUMENTS = int(os.environ.get("PISCO_INDEX_EMPTY_DOCUMENTS", "100000"))
"""A million where there is time."""


@pytest.mark.parametrize("write", [as_jsonl, as_tsv, as_quoted_tsv])
def test_a_line_that_is_too_long_is_passed_over(tmp_path, write, monkeypatch):
    monkeypatch.setattr(streams, "MAX_RECORD_BYTES", 2 << 20)
    path = tmp_path / "corpus"
    path.write_bytes(write(["a", "x" * (5 << 20), "b", "y" * (5 << 20)]))
    for cuts in ((), range(4)):
        documents, rejected = read(path, cuts, on_error="skip")
        assert [document.doc_id for document in documents] == ["d0", "d2"]
        assert [each.reason for each in rejected] == ["too long", "too long"]


def test_a_page_that_is_too_long_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_RECORD_BYTES", 2 << 20)
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


@pytest.mark.parametrize("compression", ["gzip", "bz2", "zstd"])
def test_blocks_are_small_however_much_a_file_decompresses_to(tmp_path, compression):
    path = tmp_path / "bomb"
    path.write_bytes(COMPRESS[compression](b"x" * (40 << 20)))
    stream = streams.ByteStream(streams.TextFile(str(path), "bomb", compression))
    blocks = []
    while block := stream.read():
        blocks.append(len(block))
    stream.close()
    assert sum(blocks) == 40 << 20
    assert max(blocks) <= 1 << 20


MEASURE = """
import sys
from collections import Counter
from pathlib import Path
from pisco_index.configs.corpus import CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.pipeline.planning.plan import plan_corpus

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
    """What is opened and connected to while a test runs."""
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
    assert [(document.doc_id, document.text) for document in documents] == [("a", ""), ("e", "a\0b")]
    assert [each.reason for each in rejected] == ["broken JSON", "missing field", "broken JSON", "broken JSON"]
    assert max(len(each.error) for each in rejected) <= 1001
    xml = tmp_path / "dump.xml"
    nested = page(1, "x").replace("<ns>", "<a>" * 200_000 + "</a>" * 200_000 + "<ns>")
    xml.write_text(f"{HEADER}{nested}</mediawiki>")
    documents, rejected = read(xml, on_error="skip")
    assert len(documents) + len(rejected) == 1


UNCLOSED = [
    "{{a|b ",
    "[[a|b ",
    "[[File:x|a ",
    "<b>a ",
    "<div class=",
    "<b a='",
    "[http://a b ",
    "\n{|a",
    "{{a [[b <i>c ",
]


@pytest.mark.parametrize("opening", UNCLOSED)
def test_wikitext_is_cleaned_in_time_linear_in_its_length(opening, monkeypatch):
    steps = [0]
    read_one = Tokenizer._read

    def counted(*arguments, **options):
        steps[0] += 1
        return read_one(*arguments, **options)

    monkeypatch.setattr(mwparserfromhell.parser, "use_c", False)
    monkeypatch.setattr(Tokenizer, "_read", counted)

    def work(times):
        steps[0] = 0
        prose(opening * times, frozenset())
        return steps[0]

    assert work(400) < 5 * work(100) + 1000


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("{{" * 50_000 + "x" + "}}" * 50_000, ""),
        ("\n{|\n|a" * 20_000 + "\n|}" * 20_000 + "\nx", "x"),
        ("{{a}{{b}}} x {{c|{d}}} y {{e}} z", "x } y z"),
        ("{|\n|a\n|}{|\n|b\n|} after", "after"),
        ("a [[t|b <i>c]] d {{ e [//x f\n] g <b h", "a b <i>c d {{ e [//x f\n] g <b h"),
        ("a &#xD800; b &#x1F600; c", "a b \U0001f600 c"),
    ],
)
def test_wikitext_with_open_ends(wikitext, text):
    assert prose(wikitext, frozenset()) == text
