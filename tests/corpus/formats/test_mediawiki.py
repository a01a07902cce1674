"""Wikimedia exports: the pages that are kept, their ids and their passages."""

import bz2
import codecs
import gzip
import json
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pisco_index
from pisco_index.corpus import framing, open_source, streams
from pisco_index.corpus.formats import mediawiki
from pisco_index.errors import CorpusError

from ..fuzzing import fuzz

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
    assert [document.doc_id for document in source.read(0, None)] == ["1#0"]
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
    monkeypatch.setattr(streams, "POINT_SPACING", 100_000)
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


# Exports of old versions, and of a wiki's history


def old_page(page_id, title, text):
    return f"<page><title>{title}</title><id>{page_id}</id><revision><text>{escape(text)}</text></revision></page>\n"


def test_old_exports_say_namespaces_and_redirects_in_titles_and_texts(write, sources):
    pages = [
        *(
            old_page(n, title, "text")
            for n, title in enumerate(["2001: A", "Datei:B", "Bild:B", "Template:B", "user_B"])
        ),
        old_page(10, "Moved", "#WEITERLEITUNG [[A]]"),
        old_page(11, "Hash", "#REDIRECT is a word"),
    ]
    path = write("old.xml", export(*pages))
    dropped = Counter()
    (source,) = sources(path)
    assert [record.doc_id for record in source.scan(dropped)] == ["0", "4", "11"]
    assert dropped == {"other namespace": 3, "redirect": 1}
    bare = (
        '<mediawiki version="0.1" xml:lang="fr">' + old_page(1, "Catégorie: A", "x") + old_page(2, "Wikipedia:B", "x")
    )
    (source,) = sources(write("bare.xml", bare + old_page(3, "Kategorie: C", "x") + "</mediawiki>"))
    assert [record.doc_id for record in source.scan(Counter())] == ["3"]


def revision(number, time, text="text"):
    return f"<revision><id>{number}</id><timestamp>{time}</timestamp><text>{escape(text)}</text></revision>"


def history_page(page_id, *revisions, title=None, extra=""):
    title = title or f"Title {page_id}"
    return f"<page><title>{title}</title><ns>0</ns><id>{page_id}</id>{extra}{''.join(revisions)}</page>\n"


def read_newest(source):
    """Scan a source as a plan does, and return (page id, text) of its documents and the counts of the last scan."""
    for _ in range(2):
        dropped = Counter()
        records = [record.doc_id for record in source.scan(dropped)]
        if not source.keep_newest():
            break
    again = open_source(json.loads(json.dumps(source.spec)))
    found = [(document.doc_id.partition("#")[0], document.text) for document in again.read(0, None)]
    assert [page_id for page_id, _ in found] == records
    return found, dropped


def test_of_a_history_the_newest_revisions_are_kept(write, sources):
    path = write(
        "history.xml",
        export(
            history_page(1, revision(1, "2019", "old"), revision(3, "2021", "new"), revision(2, "2020", "middle")),
            history_page(2, revision(5, "", "new"), revision(4, "", "old")),
            history_page(3, revision(9, "2020", "old")),
            history_page(3, revision(8, "2021", "new")),
            history_page(4, revision(10, "2020", "#REDIRECT [[A]]")),
            history_page(3, revision(7, "2019", "oldest")),
            history_page(4, revision(11, "2019", "no longer")),
        ),
    )
    (source,) = sources(path)
    found, dropped = read_newest(source)
    assert found == [("1", "new"), ("2", "new"), ("3", "new")]
    assert dropped == {"older revision": 6, "redirect": 1}


def test_a_page_with_a_long_history_is_read_in_bounded_memory(write, sources, monkeypatch):
    monkeypatch.setattr(framing, "MAX_RECORD_BYTES", 3000)
    monkeypatch.setattr(streams, "_PIECE", 700)
    versions = [revision(n, f"20{n % 90:02}", f"text {n} " * 20) for n in range(10, 100)]
    long = history_page(3, revision(1, "2020", "too long " * 400))
    path = write("history.xml", export(history_page(1, *versions), history_page(2, revision(5, "2020")), long))
    (source,) = sources(path, on_error="skip")
    rejected, dropped = [], Counter()
    positions = [record.position for record in source.scan(dropped, rejected.append)]
    assert dropped == {"older revision": len(versions) - 1}
    assert [path.read_bytes()[position:].startswith(b"<page>") for position in positions] == [True, True]
    assert [document.text for document in source.read(positions[0], positions[1])] == [("text 89 " * 20).strip()]
    assert [document.doc_id for document in source.read(positions[1], None)] == ["2#0"]
    assert [each.reason for each in rejected] == ["too long"]


def test_the_last_page_without_its_end_is_rejected_by_its_number(write, sources):
    whole = export(history_page(1, revision(1, "2020", "text")), history_page(2, revision(2, "2020", "more")))
    head, _, tail = whole.rpartition("</page>")
    (source,) = sources(write("c.xml", head + tail), on_error="skip")
    rejected = []
    assert [document.doc_id for document in source.read(0, None, rejected.append)] == ["1#0"]
    assert [(each.source.split(" (")[0].split(", ")[1], each.error) for each in rejected] == [
        ("page 2", "the page has no </page>. Download the file again.")
    ]


def test_a_page_whose_revisions_have_no_beginning_is_rejected(write, sources):
    pages = [history_page(n, revision(n, "2020", "text")) for n in (1, 2, 3)]
    pages[1] = pages[1].replace("<revision>", "</revision>")
    (source,) = sources(write("c.xml", export(*pages)), on_error="skip")
    rejected = []
    assert [document.doc_id for document in source.read(0, None, rejected.append)] == ["1#0", "3#0"]
    assert [each.source.split(" (")[0].split(", ")[1] for each in rejected] == ["page 2"]


def test_too_many_scattered_pages_are_refused(write, sources, monkeypatch):
    monkeypatch.setattr(mediawiki, "_MAX_SCATTERED", 1)
    (source,) = sources(write("c.xml", export(*(history_page(n % 2, revision(n, "")) for n in range(4)))))
    list(source.scan(Counter()))
    with pytest.raises(CorpusError, match=r"c\.xml: more than 1 pages occur again behind other pages\. Sort"):
        source.keep_newest()


@fuzz(100)
@given(
    versions=st.lists(st.tuples(st.sampled_from(["1", "2", "3", "999999999", "x"]), st.integers(0, 3), st.booleans())),
    cuts=st.lists(st.integers(0, 9), max_size=3),
)
def test_any_history_gives_the_newest_revisions(write, sources, read_in_shards, versions, cuts):
    pages, newest = [], {}
    for number, (page_id, time, joins) in enumerate(versions):
        text = f"text {number}"
        newest[page_id] = max(newest.get(page_id, (0, 0, "")), (time, number, text))
        if joins and pages and pages[-1][0] == page_id:
            pages[-1] = (page_id, [*pages[-1][1], revision(number, f"200{time}", text)])
        else:
            pages.append((page_id, [revision(number, f"200{time}", text)]))
    (source,) = sources(write("history.xml", export(*(history_page(page_id, *found) for page_id, found in pages))))
    found, dropped = read_newest(source)
    assert dict(found) == {page_id: text for page_id, (_, _, text) in newest.items()}
    assert dropped.get("older revision", 0) == len(versions) - len(found)
    assert sorted((d.doc_id, d.text) for d in read_in_shards(source, cuts)) == sorted((f"{n}#0", t) for n, t in found)
