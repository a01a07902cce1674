"""Objects that are not one per line: beside each other, in arrays, and under their ids."""

import gzip
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ...fuzzing import check_any, fuzz, read

A, B, C = (json.dumps({"id": name, "text": f'{{["{name}'}) for name in "abc")
K, L = (f'"{name}": {json.dumps({"title": "T", "text": f"}}{name}"})}' for name in "kl")


@pytest.mark.parametrize(
    "data",
    [
        A + B + C,
        f"{A} {B}\t{C}\n",
        f"{A}, {B},{C}",
        f"{A},\n{B},\n{C},\n",
        f"{A}\n{B}{C}\n",
        f"{A}\n{B} , {C}",
        f"{A}{B}\n\n{C}",
        f"[{A}{B}\n{C}]",
        f"[{A},{B},{C},]",
        f"[{A}]\n[{B},{C}]\n",
        f"[{A},\n{B}],\n[{C}]",
        f"\x1e{A}\n\x1e{B}\n\x1e{C}\n",
        f"\ufeff{A}{B}\n\ufeff{C}",
    ],
)
@pytest.mark.parametrize("wrap", [str.encode, lambda text: gzip.compress(text.encode())], ids=["plain", "gzip"])
def test_separators_do_not_matter(write, data, wrap):
    path = write("c.json", wrap(data))
    for cuts in ((), (1,), (0, 1, 2)):
        documents, _ = read(path, cuts)
        assert [(each.doc_id, each.text) for each in documents] == [(name, f'{{["{name}') for name in "abc"]


@pytest.mark.parametrize(
    "data",
    [
        f"{{{K}, {L}}}",
        f"{{\n  {K},\n  {L}\n}}\n",
        f"{{{K}}}\n{{{L}}}\n",
        f"{{{K}}}{{{L}}}",
        f"{{{K},{L},}}",
    ],
)
def test_records_keyed_by_id(write, data):
    for cuts in ((), (1,), (0, 1)):
        documents, _ = read(write("c.json", data), cuts)
        assert [(each.doc_id, each.title, each.text) for each in documents] == [("k", "T", "}k"), ("l", "T", "}l")]


def test_keys_are_ids_unless_a_field_is_configured(write, documents):
    path = write("c.json", json.dumps({"k": {"id": "a", "words": "t"}, "l": {"id": "b", "words": "u"}}))
    assert [each.doc_id for each in documents(path, text_field="words")] == ["k", "l"]
    assert [each.doc_id for each in documents(path, text_field="words", id_field="id")] == ["a", "b"]


def test_an_index_is_not_taken_for_ids(write, documents, refusal):
    path = write("c.json", json.dumps({"0": {"docid": "a", "text": "t"}, "1": {"docid": "b", "text": "u"}}))
    assert "stands under '0', and its field 'docid' holds 'a'. Set id_field to 'docid'" in refusal(path)
    assert [each.doc_id for each in documents(path, id_field="docid")] == ["a", "b"]
    assert [each.doc_id for each in documents(path, id_field="_id")] == ["0", "1"]
    path = write("c.json", json.dumps({"0": {"id": 0, "text": "t"}, "1": {"id": 1, "text": "u"}}))
    assert [each.doc_id for each in documents(path)] == ["0", "1"]


def test_a_large_object_of_records_is_read_in_pieces(write):
    records = {f"é{n}": {"text": f"{n} " * 2000} for n in range(400)}
    documents, _ = read(write("c.json", json.dumps(records)), range(0, 400, 37))
    assert {each.doc_id: {"text": each.text} for each in documents} == records


def test_values_that_are_no_records_are_rejected(write):
    path = write("c.json", f'{{{K}, {L}, "m": null, "n": 3, "o": "s", "p": true, "q": {{"text": "t"}}}}')
    padding = ", ".join(f'"x{n}": {{"text": "t"}}' for n in range(60))
    path = write("c.json", f'{{{padding}, "m": null, "n": 3, "o": "s", "q": {{"text": "u"}}}}')
    documents, rejected = read(path, (1, 59, 60, 62), on_error="skip")
    assert [each.doc_id for each in documents] == [*(f"x{n}" for n in range(60)), "q"]
    assert [each.reason for each in rejected] == ["wrong type"] * 3


@pytest.mark.parametrize(
    ("record", "advice"),
    [
        ({"took": 1, "hits": {"hits": [{"_id": "a"}]}}, "holds its records in the array 'hits.hits'"),
        (
            {"version": 1, "k": {"text": "t"}, "l": {"text": "u"}},
            "holds records keyed by id beside other values, e.g. 'k'",
        ),
        ({"docs": {"k": {"text": "t"}, "l": {"text": "u"}}}, "holds records keyed by id in 'docs', e.g. "),
        ({"docs": {"k": {"text": "t", "title": "T"}, "l": {"text": "u"}}}, "keyed by id in 'docs', e.g. 'k'"),
        ({"id": {"0": "k", "1": "l"}, "text": {"0": "t", "1": "u"}}, "'id' and 'text' hold whole columns. Write one"),
        ({"id": ["k", "l"], "text": ["t", "u"]}, "'id' and 'text' hold whole columns. Write one"),
        ({"a": {"id": 1, "words": "t"}}, "found 'a', 'a.id', 'a.words'. Set"),
        (
            {"id": 1, "en": {"text": "t"}, "de": {"text": "u"}},
            "'en.text', 'de.text'. Set text_field",
        ),
    ],
)
def test_advice_on_fields_can_be_followed(write, refusal, record, advice):
    assert advice in refusal(write("c.json", json.dumps(record)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (f"{A}\n{B}{{'id'}}", f"c.json, line 2, column {len(B) + 2}: broken JSON"),
        (f"{A}\n{B} tail", f"c.json, line 2, column {len(B) + 2}: broken JSON"),
        (f"{A}\n{B}[1]", "c.json, line 2, object 2: a JSON array stands here"),
        (f"{A}{B} tail", "c.json, near line 1: 'tail' stands where"),
        (f"{A}{B},,{C}", "c.json, near line 1: ',,' stands where"),
        (f"[{A}],,[{B}]", "c.json, near line 1: '],,[' stands where"),
        (f"{{{K}, {L}", "c.json, near line 1: nothing stands where"),
        (f'{{{K}, "l": {{"text": "t"', "c.json, line 1: the object that begins here is never closed"),
        (f'{{{K}, {L}, "m" 3}}', "c.json, near line 1: '\"m\" 3}' stands where"),
    ],
)
def test_what_is_between_is_not_lost(write, refusal, data, message):
    assert message in refusal(write("c.json", data))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.sampled_from(["0", "-0", "7", "1.50", "1e5", "NaN", "-Infinity", "18446744073709551616", "1e999"])
values = st.recursive(
    st.sampled_from(["null", "true", '"\\udc00"', '"}{"']) | numbers | texts.map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda held: f"[{', '.join(held)}]")
        | st.lists(st.tuples(texts.map(json.dumps), inner), max_size=3).map(
            lambda held: "{" + ",".join(f"{name}:{value}" for name, value in held) + "}"
        )
    ),
    max_leaves=6,
)
titles = (
    st.none()
    | texts.map(lambda text: (json.dumps(text, ensure_ascii=False), text or None))
    | numbers.map(lambda number: (number, {"NaN": None}.get(number, number))).filter(
        lambda pair: pair[1] != "-Infinity"
    )
)
records = st.lists(st.tuples(texts, titles, values), min_size=1, max_size=8)


def object_of(text, title, value, **own):
    members = [*(f'"{name}": {json.dumps(each)}' for name, each in own.items())]
    members += [f'"text": {json.dumps(text, ensure_ascii=False)}', f'"more": {value}']
    if title is not None:
        members.append(f'"title": {title[0]}')
    return "{" + ", ".join(members) + "}"


@fuzz(150)
@given(
    records=records,
    layout=st.sampled_from(["objects", "array", "keyed"]),
    separators=st.lists(st.sampled_from(["\n", "", ",", " \r\n", " ,\n", ",\t", "\n\n"]), min_size=8, max_size=8),
    joined=st.sets(st.integers(0, 7)),
    ending=st.sampled_from(["", "\n", ",", " ,\r\n"]),
    wrap=st.sampled_from([bytes, gzip.compress]),
    cuts=st.lists(st.integers(0, 9), max_size=4),
)
def test_what_is_written_is_read(tmp_path, records, layout, separators, joined, ending, wrap, cuts):
    opening, closing = {"objects": ("", ""), "array": ("[", "]"), "keyed": ("{", "}")}[layout]
    data = opening
    for number, record in enumerate(records):
        between = separators[number] if number else ""
        if number in joined and number:
            data += f"{closing}{between}{opening}"
        else:
            data += between
        data += f'"d{number}": {object_of(*record)}' if layout == "keyed" else object_of(*record, id=f"d{number}")
    data += (ending if layout == "objects" else ending.replace("\n", "")) + closing
    path = tmp_path / "corpus.json"
    path.write_bytes(wrap(data.encode(errors="surrogatepass")))
    documents, _ = read(path, cuts)
    expected = [(f"d{n}", text, title and title[1]) for n, (text, title, _) in enumerate(records)]
    assert [(each.doc_id, each.text, each.title) for each in documents] == expected


@fuzz(150)
@given(
    pieces=st.lists(
        st.sampled_from([A, B, C, K, L, "{", "}", "[", "]", ",", ":", '"', "\n", "\x1e", "\ufeff", "null", "\\"]),
        max_size=9,
    ),
    beginning=st.sampled_from([A, f"{{{K}", "[", A + B, '{"index": {"_id": "1"}}\n']),
    layout=st.sampled_from(["auto", "json", "jsonl"]),
    cuts=st.lists(st.integers(0, 9), max_size=3),
)
@example(pieces=["\ufeff"], beginning=A, layout="auto", cuts=[1])
@example(pieces=[",", ",", A], beginning=A, layout="auto", cuts=[1])
@example(pieces=["\n", "\ufeff", A, A], beginning=A, layout="auto", cuts=[2])
def test_any_tokens_are_read_or_refused(tmp_path, pieces, beginning, layout, cuts):
    path = tmp_path / "corpus.json"
    path.write_text(beginning + "".join(pieces))
    check_any(path, cuts, format=layout)
