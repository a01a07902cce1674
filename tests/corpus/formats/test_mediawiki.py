"""Wikimedia exports: the pages that are kept, their ids and their passages."""

import bz2
import codecs
import gzip
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

import pisco_index
from pisco_index.corpus import streams
from pisco_index.corpus.formats import mediawiki

DUMP = Path(pisco_index.__file__).parent.parent / "shared/data/enwiki-sample.xml.bz2"
needs_dump = pytest.mark.skipif(not DUMP.exists(), reason=f"no real dump at {DUMP}")

HEADER = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <namespaces>
      <namespace key="-2" case="first-letter">Medium</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Diskussion</namespace>
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""


def page(page_id, title, text, ns=0, extra="", model="wikitext"):
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{ns}</ns>\n    <id>{page_id}</id>\n    {extra}"
        f"<revision><id>9{page_id}</id><model>{model}</model>"
        f'<text xml:space="preserve">{escape(text)}</text></revision>\n  </page>\n'
    )


def export(*pages):
    return HEADER + "".join(pages) + "</mediawiki>\n"


@pytest.fixture
def dump_bytes():
    return bz2.decompress(DUMP.read_bytes())


def test_pages_become_passages_with_their_title(write, documents):
    words = " ".join(f"w{number}" for number in range(250))
    path = write("dewiki.xml", export(page(10, "A & B", f"'''A''' {words}")))
    found = documents(path)
    assert [document.doc_id for document in found] == ["10#0", "10#1", "10#2"]
    assert [len(document.text.split()) for document in found] == [100, 100, 51]
    assert {document.title for document in found} == {"A & B"}
    assert [document.doc_id for document in documents(path, passage_words=1000)] == ["10#0"]


def test_pages_left_out_are_counted(write, sources):
    path = write(
        "c.xml",
        export(
            page(1, "Kept", "prose"),
            page(2, "Moved", "#WEITERLEITUNG [[Kept]]", extra='<redirect title="Kept" />'),
            page(3, "Diskussion:Kept", "talk", ns=1),
            page(4, "Blank", " \n"),
            page(5, "Style", "a {}", model="css"),
            page(6, "Only a table", "{|\n| cell\n|}\n{{Navigation}}"),
        ),
    )
    (source,) = sources(path)
    dropped = Counter()
    records = list(source.scan(dropped))
    assert [(record.doc_id, record.number) for record in records] == [("1", 1), ("6", 6)]
    assert dropped == {"redirect": 1, "other namespace": 1, "empty article": 1, "not wikitext": 1}
    found_empty = Counter()
    assert [document.doc_id for document in source.read(0, None, dropped=found_empty)] == ["1#0"]
    assert found_empty == {"empty article": 1}
    (source,) = sources(path, namespaces=[1])
    assert [record.doc_id for record in source.scan(Counter())] == ["3"]


def test_text_without_blanks_is_cut_too(write, documents):
    path = write("jawiki.xml", export(page(1, "猫", "吾輩は猫である。名前はまだ無い。" * 100)))
    found = documents(path)
    assert len(found) == 8
    assert max(len(document.text) for document in found) == 200


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (export(page(1, "A", "x")).replace("</mediawiki>", ""), "the export ends before </mediawiki>"),
        (export(page(1, "A", "x"))[:-40], "the export ends before </mediawiki>"),
        (export(page(1, "A", "x"), page(2, "Two", "&").replace("&amp;", "&bad;")), "page 2 ('Two'): broken XML"),
        (export(page("", "A", "x")), "page 1 ('A'): the id is empty"),
        (export("<page><title>A</title><ns>0</ns><id>1</id></page>"), "page 1 ('A'): the page has no revision"),
        ("<?xml version='1.0' encoding='ISO-8859-1'?>" + export(), "the XML is in ISO-8859-1"),
        (export(page(1, "A", "x")).encode().replace(b">x<", b">\xff<"), "page 1 ('A'): broken XML"),
    ],
)
def test_a_broken_export_is_refused_with_its_place(write, refusal, data, message):
    assert message in refusal(write("c.xml", data))


def test_entities_of_a_document_type_are_never_expanded(write, refusal):
    bomb = '<!DOCTYPE mediawiki [<!ENTITY a "aaaaaaaaaa">]>\n' + export(page(1, "A", "X").replace("X", "&a;"))
    assert "page 1 ('A'): broken XML (undefined entity" in refusal(write("c.xml", bomb))


@pytest.mark.parametrize("count", [1, 7, 300])
def test_any_partition_gives_the_same_passages(write, sources, read_in_shards, documents, count):
    pages = [page(n, f"T{n}", " ".join(f"w{n}" for _ in range(n * 37 % 500))) for n in range(1, count + 1)]
    path = write("c.xml", export(*pages))
    (source,) = sources(path)
    assert read_in_shards(source, [0, 1, 2, 5, 50, 51, 299], order=[5, 1, 0, 3, 2, 4, 6, 7]) == documents(path)


@needs_dump
def test_the_real_dump(sources, documents):
    (source,) = sources(DUMP)
    dropped = Counter()
    records = list(source.scan(dropped))
    assert len(records) == 106
    assert dropped == {"redirect": 100}
    found = documents(DUMP)
    assert len({document.doc_id for document in found}) == len(found) > 4000
    assert found[0].doc_id == "12#0"
    assert found[0].title == "Anarchism"
    assert found[0].text.startswith("Anarchism is a political philosophy that advocates self-governed societies")
    assert not [d for d in found if any(mark in d.text for mark in ("{{", "[[", "]]", "<ref", "File:", "__"))]


@needs_dump
def test_the_real_dump_in_other_wrappings(write, sources, documents, read_in_shards, dump_bytes, monkeypatch):
    # Cleaning is slow and has nothing to do with the wrapping: here the passages are pieces of the wikitext.
    monkeypatch.setattr(mediawiki, "prose", lambda wikitext, _: wikitext)
    expected = documents(DUMP)
    text = dump_bytes.decode()
    streams_of_pages = dump_bytes.split(b"  <page>")
    multistream = bz2.compress(streams_of_pages[0]) + b"".join(
        bz2.compress(b"".join(b"  <page>" + one for one in streams_of_pages[begin : begin + 10]))
        for begin in range(1, len(streams_of_pages), 10)
    )
    monkeypatch.setattr(streams, "POINT_SPACING", 200_000)
    for name, data in {
        "plain.xml": dump_bytes,
        "utf16le.xml": codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
        "utf16be.xml": codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        "one.xml.gz": gzip.compress(dump_bytes, 1),
        "multistream.xml.bz2": multistream,
    }.items():
        (source,) = sources(write(name, data))
        assert read_in_shards(source, [20, 53, 90], order=[2, 0, 3, 1]) == expected, name
        assert (len(source.spec["file"]["points"]) > 10) == (name not in ("plain.xml", "one.xml.gz")), name
