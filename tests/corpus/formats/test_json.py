"""JSON lines and objects: their fields, and records that cannot be used."""

import codecs
import json
import re
from collections import Counter

import pytest

from pisco_index.corpus import Document, framing


@pytest.mark.parametrize(
    ("record", "document"),
    [
        (
            {"_id": "4983", "title": "T", "text": "t", "metadata": {"u": 1}},
            Document("4983", "t", "T", {"metadata": {"u": 1}}),
        ),
        ({"id": "doc1", "contents": "t"}, Document("doc1", "t")),
        ({"docid": "msmarco_1", "url": "u", "title": "", "body": "t"}, Document("msmarco_1", "t", None, {"url": "u"})),
        ({"pid": "p", "passage": "t", "docid": "d"}, Document("p", "t", None, {"docid": "d"})),
        ({"id": 7, "text": ""}, Document("7", "")),
        ({"id": "a", "text": "t", "title": None}, Document("a", "t")),
    ],
    ids=["BEIR", "Pyserini", "MS MARCO v2", "MS MARCO v2 passages", "an integer id and empty text", "null title"],
)
def test_fields_are_recognised(write, documents, record, document):
    assert documents(write("corpus.jsonl", json.dumps(record))) == [document]


def test_kilt_paragraphs_are_joined_without_their_markers(write, documents):
    record = {
        "_id": "12",
        "wikipedia_id": "12",
        "wikipedia_title": "Anarchism",
        "text": ["Anarchism\n", "It is a philosophy.\n", "Section::::History.\n", "BULLET::::- An item\n"],
    }
    (document,) = documents(write("kilt_knowledgesource.json", json.dumps(record)))
    assert (document.doc_id, document.title) == ("12", "Anarchism")
    assert document.text == "Anarchism\nIt is a philosophy.\nHistory.\nAn item"


def test_configured_fields_win(write, documents):
    path = write("c.jsonl", '{"id": "no", "text": "no", "key": "k", "abstract": "a", "heading": "h"}')
    found = documents(path, id_field="key", text_field="abstract", title_field="heading")
    assert found == [Document("k", "a", "h", {"id": "no", "text": "no"})]


def test_records_say_where_they_are(write, sources):
    (source,) = sources(write("c.jsonl", '\n{"id": "a", "text": "été"}\r\n\n{"id": "b", "text": ""}'))
    first, second = source.scan(Counter())
    assert (first.doc_id, first.characters, first.number) == ("a", 3, 2)
    assert (second.doc_id, second.characters, second.number) == ("b", 0, 4)


def test_an_object_a_file(write, documents):
    write("folder/b.json", '{"id": "b",\n "contents": "two"}')
    path = write("folder/a.json", '{"id": "a", "contents": "one"}\n').parent
    assert documents(path) == [Document("a", "one"), Document("b", "two")]


GOOD = '{"id": "a", "text": "t"}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD + '{"id": "b", "text" "t"}', r"c\.jsonl, line 2, column 20: broken JSON \(.*\)"),
        (GOOD + '{"id": "b", "text": "\\ud800"}', r"c\.jsonl, line 2: 'text' has half of a surrogate pair, '\\ud800'"),
        (
            (GOOD + '{"id": "b", "text": "').encode() + b'\xff"}',
            r"c\.jsonl, line 2: invalid UTF-8, byte 0xff at byte 22",
        ),
        (GOOD + '["b", "t"]', r"c\.jsonl, line 2: a JSON array stands here instead of an object"),
        (GOOD + '{"id": "b", "body": "t"}', r"c\.jsonl, line 2: no field 'text'; found 'id', 'body'"),
        (GOOD + '{"text": "t"}', r"c\.jsonl, line 2: no field 'id'; found 'text'"),
        (GOOD + '{"id": "b", "text": null}', r"c\.jsonl, line 2: 'text' must be a string .* not null"),
        (GOOD + '{"id": "b", "text": 3}', r"c\.jsonl, line 2: 'text' must be a string .* not the number 3"),
        (GOOD + '{"id": "b", "text": "t", "title": []}', r"c\.jsonl, line 2: 'title' must be a string or a number"),
        (GOOD + '{"id": " ", "text": "t"}', r"c\.jsonl, line 2: the id is empty"),
        (GOOD + '{"id": 1.5, "text": "t"}', r"c\.jsonl, line 2: the id 'id' must be .* not the number 1\.5"),
        (GOOD + '{"id": "%s", "text": "t"}' % ("x" * 513), r"c\.jsonl, line 2: the id .* has 513 bytes, but at most"),
        ('{"key": "a", "text": "t"}', r"c\.jsonl, line 1: no field for the id .*; found 'key', 'text'\. Set id_field"),
        (
            '{"id": "a", "words": "t"}',
            r"c\.jsonl, line 1: no field for the text .*; found 'id', 'words'\. Set text_field",
        ),
    ],
)
def test_a_broken_line_is_refused_with_its_place(write, refusal, data, message):
    assert re.search(message, refusal(write("c.jsonl", data)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('[{"id": "a", "text": "t"},\n {"id": "b", "text": "t"', "line 2: the object that begins here is never closed"),
        ('[{"id": "a", "text": "t"}', "near line 1: nothing stands where a comma"),
        ('[{"id": "a", "text": "t"}] tail', "near line 1: ']tail' stands where"),
        ('[\n{"id": "a",\n "text" "t"}]', "line 3, column 9: broken JSON"),
        ('["a", "b"]', 'near line 1: \'["a","b"]\' stands where'),
        ('[{"id": "a", "text": "t"},\n{"id": "b"}]', "line 2, object 2: no field 'text'"),
    ],
)
def test_a_broken_array_is_refused_with_its_place(write, refusal, data, message):
    assert f"c.json, {message}" in refusal(write("c.json", data))


def test_a_configured_field_that_is_missing_is_named(write, refusal):
    message = refusal(write("c.jsonl", GOOD), id_field="key")
    assert "no field 'key' for the id; found 'id', 'text'" in message


def test_an_endless_line_is_refused(write, refusal, monkeypatch):
    monkeypatch.setattr(framing, "MAX_RECORD_BYTES", 2 << 20)
    path = write("c.jsonl", GOOD + '{"id": "b", "text": "' + "x" * (5 << 20))
    assert "c.jsonl, line 2: a record of more than 2 MiB begins here" in refusal(path)


def test_an_empty_corpus_has_no_records(write, documents):
    for name, data in (("a.jsonl", ""), ("b.jsonl", "\n \n"), ("c.json", "[]"), ("d.json", codecs.BOM_UTF8 + b"[ ]\n")):
        assert documents(write(name, data)) == []


def test_odd_characters_are_text(write, documents):
    text = "a\x00b\u2028c\x85d\U0001f600 \ufeff"
    assert documents(write("c.jsonl", json.dumps({"id": "a", "text": text}, ensure_ascii=False)))[0].text == text
