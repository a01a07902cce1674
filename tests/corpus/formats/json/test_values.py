"""Numbers as they are written, and values that are no JSON by the letter."""

import json

import pytest

from pisco_index.corpus import Document


@pytest.mark.parametrize(
    ("written", "title"),
    [
        *((number, number) for number in ("1984", "0", "-0", "1.50", "1984.0", "1e5", "1E+5", "-0.0", "1e999")),
        *((number, number) for number in ("18446744073709551616", "0.1000000000000000055511151231257827")),
        ('""', None),
        ("null", None),
        ("NaN", None),
    ],
)
def test_a_title_that_is_a_number_is_its_text(write, documents, written, title):
    path = write("c.jsonl", f'{{"id": "a", "title": {written}, "text": "t"}}\n{{"id": "b", "title": "B", "text": "t"}}')
    assert documents(path) == [Document("a", "t", title), Document("b", "t", "B")]


@pytest.mark.parametrize(
    "written",
    ["7", "0", "-0", "18446744073709551615", "18446744073709551616", "-9223372036854775809", "9" * 39, "9" * 512],
)
def test_an_integer_id_is_its_digits(write, documents, written):
    assert documents(write("c.jsonl", f'{{"id": {written}, "text": "t"}}')) == [Document(written, "t")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('"id": 1e3, "text": "t"', "the id 'id' must be a string or an integer, not the number 1e3"),
        ('"id": 7.0, "text": "t"', "the id 'id' must be a string or an integer, not the number 7.0"),
        ('"id": NaN, "text": "t"', "the id 'id' must be a string or an integer, not the number NaN"),
        ('"id": true, "text": "t"', "the id 'id' must be a string or an integer, not boolean"),
        ('"id": +1, "text": "t"', "broken JSON"),
        (f'"id": {"9" * 513}, "text": "t"', "has 513 bytes, but at most 512"),
        (f'"id": {"9" * 5000}, "text": "t"', "has 5000 bytes, but at most 512"),
        ('"id": "b", "text": NaN', "'text' must be a string or a list of strings, not the number NaN"),
        ('"id": "b", "text": 1.50', "'text' must be a string or a list of strings, not the number 1.50"),
        ('"id": "b", "text": ["t", null]', "'text' must be a string or a list of strings, not array"),
        ('"id": "b", "text": "t", "title": true', "'title' must be a string or a number, not boolean"),
        (
            '"id": "b", "text": "t", "title": -Infinity',
            "'title' must be a string or a number, not the number -Inf",
        ),
        ('"id": "b", "text": {"en": "t"}', "not an object; perhaps one of its fields is meant: 'text.en'"),
        ('"id": "b", "text": ["t", "\\ud800"], "u": NaN', "'text' has half of a surrogate pair, '\\ud800'"),
    ],
)
def test_what_is_no_name_or_text_is_refused_as_it_is_written(write, refusal, record, message):
    found = refusal(write("c.jsonl", f'{{"id": "a", "text": "t"}}\n{{{record}}}\n'))
    assert found.startswith("c.jsonl, line 2")
    assert message in found


@pytest.mark.parametrize("layout", ["{a}\n{b}", "[{a},\n{b}]", "{a}{b}"])
@pytest.mark.parametrize(
    "value", [b"NaN", b"-Infinity", b'[1, {"a": Infinity}]', b"1e999", b"9" * 5000, b'"\\udc80"', b'"a\tb"', b'"\xff"']
)
def test_a_value_that_nobody_needs_harms_nobody(write, documents, layout, value):
    a, b = (b'{"id": "%s", "text": "\xc3\xa9", "score": %s}' % (name, value) for name in (b"a", b"b"))
    found = documents(write("c.json", layout.encode().replace(b"{a}", a).replace(b"{b}", b)))
    assert [(each.doc_id, each.text) for each in found] == [("a", "é"), ("b", "é")]


def test_a_deep_value_is_refused(write, refusal):
    assert "c.jsonl, line 1" in refusal(write("c.jsonl", '{"id": "a", "text": "t", "deep": %s}' % ("[" * 5000)))


@pytest.mark.parametrize(
    ("record", "fields", "document"),
    [
        ({"_id": "a", "_source": {"title": "T", "text": "t"}}, {}, ("a", "T", "t")),
        ({"id": "a", "doc": {"_id": "b", "text": "t"}}, {}, ("a", None, "t")),
        ({"_source": {"id": 7, "text": "t"}}, {}, ("7", None, "t")),
        ({"_id": {"$oid": "66f0"}, "text": "t"}, {}, ("66f0", None, "t")),
        ({"id": "a", "page": {"title": "T", "body": {"en": "t"}}}, {"text_field": "page.body.en"}, ("a", None, "t")),
        ({"id": "a", "page": {"title": "T", "body": "t"}}, {"text_field": "page.body"}, ("a", "T", "t")),
        ({"id": "a", "page.body": "t", "page": {"body": "u"}}, {"text_field": "page.body"}, ("a", None, "t")),
        ({"id": "a", "text": "t", "doc": {"title": "U"}}, {}, ("a", None, "t")),
    ],
)
def test_fields_inside_of_fields(write, documents, record, fields, document):
    (found,) = documents(write("c.json", json.dumps(record)), **fields)
    assert (found.doc_id, found.title, found.text) == document


def test_a_title_inside_that_the_first_record_lacks_is_read(write, documents):
    records = [{"_id": n, "_source": {"text": "t"} | ({"title": "T"} if n else {})} for n in range(2)]
    found = documents(write("c.jsonl", "\n".join(map(json.dumps, records))))
    assert [each.title for each in found] == [None, "T"]
