"""Columns are read by what their values mean, whatever Arrow type a writer gave them."""

import datetime
import io
import json
import uuid
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ..fuzzing import fuzz, read

KINDS = ["parquet", "file", "stream"]


def written(table, kind, rows=None):
    buffer = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, buffer, row_group_size=rows)
    else:
        with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(buffer, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return buffer.getvalue()


def table_of(**columns):
    rows = max(map(len, columns.values()))
    return pa.table({"id": [f"d{n}" for n in range(rows)], "text": ["t"] * rows} | columns)


UUID_A = uuid.UUID("0f9c2f4e-8d21-4f4b-9c3e-0123456789ab")
DECIMALS = [Decimal(7), Decimal("-90071992547409930001")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        *((pa.array(DECIMALS, pa.decimal128(38, scale)), ["7", "-90071992547409930001"]) for scale in (0, 10)),
        (pa.array(DECIMALS, pa.decimal256(76, 3)), ["7", "-90071992547409930001"]),
        (pa.array([Decimal(7)], pa.decimal32(9, 0)), ["7"]),
        (pa.array([2**64 - 1, 0], pa.uint64()), ["18446744073709551615", "0"]),
        (pa.array([-1, 2], pa.int8()).dictionary_encode(), ["-1", "2"]),
        (pa.array([UUID_A.bytes], pa.uuid()), [str(UUID_A)]),
        (pa.array([UUID_A.bytes, bytes(16)], pa.binary(16)), [str(UUID_A), str(uuid.UUID(int=0))]),
        (pa.array([b"0123456789abcdef"], pa.binary(16)), ["0123456789abcdef"]),
        (pa.array([b"abc"], pa.binary(3)), ["abc"]),
        (pa.array([b"a", "é".encode()], pa.binary_view()), ["a", "é"]),
        (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["a"])), ["a"]),
        (pa.array([datetime.date(2024, 2, 29)]), ["2024-02-29"]),
        (pa.array([datetime.date(2024, 2, 29)], pa.date64()), ["2024-02-29"]),
    ],
    ids=lambda each: str(each.type) if isinstance(each, pa.Array) else None,
)
def test_ids_of_other_types(write, documents, ids, expected, kind):
    found = documents(write("c", written(table_of(id=ids), kind)))
    assert [each.doc_id for each in found] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("titles", "expected"),
    [
        (pa.nulls(2), [None, None]),
        (pa.array([None, None], pa.dictionary(pa.int8(), pa.string())), [None, None]),
        (pa.array([1917, None]), ["1917", None]),
        (pa.array([1984.0, float("nan")]), ["1984", None]),
        (pa.array([2.5, 1984.0], pa.float32()), ["2.5", "1984"]),
        (pa.array([Decimal("9.90"), None]), ["9.90", None]),
        (pa.array(["a", ""], pa.large_string()), ["a", None]),
    ],
    ids=lambda each: str(each.type) if isinstance(each, pa.Array) else None,
)
def test_titles_of_other_types(write, documents, titles, expected, kind):
    found = documents(write("c", written(table_of(title=titles), kind)))
    assert [each.title for each in found] == expected


def test_run_ends_are_decoded(write, documents):
    texts = pc.run_end_encode(pa.array(["x", "x", "y"]))
    titles = pc.run_end_encode(pa.array([None, "T", "T"]))
    found = documents(write("c", written(table_of(text=texts, title=titles), "stream")))
    assert [(each.text, each.title) for each in found] == [("x", None), ("x", "T"), ("y", "T")]


def test_shards_of_other_types_are_one_corpus(write, documents):
    for number, titles in enumerate((pa.nulls(1), pa.array(["T"]), pa.array([7]), pa.array(["T"]).dictionary_encode())):
        table = table_of(id=[f"s{number}"], title=titles)
        path = write(f"shards/part-{number}.parquet", written(table, "parquet"))
    assert [(each.doc_id, each.title) for each in documents(path.parent)] == [
        ("s0", None),
        ("s1", "T"),
        ("s2", "7"),
        ("s3", "T"),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_of_16_bytes_is_no_uuid(write, documents, kind):
    texts = pa.array(["Zürich abcdefgh".encode()], pa.binary(16))
    assert [each.text for each in documents(write("c", written(table_of(text=texts), kind)))] == ["Zürich abcdefgh"]


LISTS = [
    pa.list_(pa.string()),
    pa.large_list(pa.large_string()),
    pa.list_view(pa.string()),
    pa.large_list_view(pa.string_view()),
    pa.list_(pa.binary()),
    pa.list_(pa.dictionary(pa.int8(), pa.string())),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", LISTS, ids=str)
def test_texts_that_are_lists_are_joined_as_in_json(write, documents, of, kind):
    texts = [["It is dusty.\n", "Section::::Nobody goes there."], [], ["été"]]
    lines = "\n".join(json.dumps({"id": f"d{n}", "text": text}) for n, text in enumerate(texts))
    in_json = documents(write("c.jsonl", lines))
    assert documents(write("c", written(table_of(text=pa.array(texts, of)), kind))) == in_json
    assert in_json[0].text == "It is dusty.\nNobody goes there."


def test_lists_of_one_size_and_lists_of_nothing(write, documents):
    pairs = pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2))
    assert [each.text for each in documents(write("c", written(table_of(text=pairs), "parquet")))] == ["a\nb", "c\nd"]
    nothing = pa.array([[]], pa.list_(pa.null()))
    assert [each.text for each in documents(write("c", written(table_of(text=nothing), "stream")))] == [""]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": pa.array([Decimal("7.0"), Decimal("8.5")])}, "row 2: 'id' has a fraction, so it is no integer"),
        ({"id": pa.nulls(2)}, "row 1: 'id' is null"),
        ({"id": pa.array([b"abc", b"a\xff\xff"], pa.binary(3))}, "row 2: 'id' is not valid UTF-8"),
        ({"id": pa.array([1.0, 2.0])}, "the id column 'id' holds double, not strings or integers"),
        ({"id": pa.array([True])}, "the id column 'id' holds bool, not strings or integers"),
        ({"id": pa.array([datetime.datetime(2024, 1, 1)])}, "the id column 'id' holds timestamp[us]"),
        ({"text": pa.nulls(2)}, "row 1: 'text' is null"),
        ({"text": pa.array([["a"], ["b", None]])}, "row 2: 'text' is a list with a null"),
        ({"text": pa.array([["a"], None])}, "row 2: 'text' is null"),
        ({"text": pa.array([[b"a"], [b"\xff"]])}, "row 2: 'text' is a list with a null or with invalid UTF-8"),
        ({"text": pa.array([[1]])}, "the text column 'text' holds list<"),
        ({"text": pa.array([1984])}, "the text column 'text' holds int64, not strings or lists of strings"),
        ({"title": pa.array([1.5, float("-inf")])}, "row 2: 'title' is infinite"),
        ({"title": pa.array([True])}, "the title column 'title' holds bool, not strings or numbers"),
        ({"title": pa.array([["T"]])}, "the title column 'title' holds list<"),
    ],
)
def test_what_is_no_name_or_text_is_refused(write, refusal, columns, message, kind):
    assert f"c: {message}".replace("c: row", "c, row") in refusal(write("c", written(table_of(**columns), kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_fields_inside_of_columns(write, documents, refusal, kind):
    source = pa.array([{"title": "T", "text": "x", "n": 1}, {"title": None, "text": "y", "n": 2}, None])
    path = write("c", written(pa.table({"n": [1, 2], "_id": ["a", "b"], "_source": source[:2]}), kind))
    assert [(each.doc_id, each.title, each.text) for each in documents(path)] == [("a", "T", "x"), ("b", None, "y")]
    message = refusal(write("c", written(pa.table({"id": ["a"], "text": source[:1]}), kind)))
    assert "not strings or lists of strings. Set text_field to a field inside: 'text.title', 'text.text'" in message
    table = pa.table({"_source": source, "id": ["a", "b", "c"], "page": source})
    path = write("c", written(table, kind))
    assert "c, row 3: 'page.text' is null" in refusal(path, text_field="page.text", title_field="page.title")
    (found, _), _ = read(path, (1,), on_error="skip", text_field="page.text")
    assert (found.title, found.text) == ("T", "x")


def test_columns_of_one_name(write, documents, refusal):
    twice = pa.table([["a"], ["t"], ["u"]], ["id", "text", "text"])
    assert "several columns are named 'text'" in refusal(write("c", written(twice, "stream")))
    unused = pa.table([["a"], ["t"], [1], [2]], ["id", "text", "n", "n"])
    assert len(documents(write("c", written(unused, "stream")))) == 1


strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TEXTS = [
    (strings, of, lambda text: text)
    for of in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))
]
TEXTS += [
    (st.lists(strings, max_size=3), of, lambda parts: "\n".join(part.rstrip() for part in parts)) for of in LISTS[:4]
]
TITLES = [
    (strings, pa.string(), lambda title: title or None),
    (st.integers(-(2**63), 2**63 - 1), pa.int64(), str),
    (st.decimals(-999, 999, places=2), pa.decimal128(9, 2), str),
    (st.just(float("nan")), pa.float64(), lambda _: None),
    (st.nothing(), pa.null(), None),
]


@fuzz(60)
@given(
    data=st.data(),
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 4),
    id_type=st.sampled_from([pa.int64(), pa.decimal128(38, 0), pa.decimal256(50, 4), pa.string(), pa.uint64()]),
    text_type=st.sampled_from(TEXTS),
    title_type=st.sampled_from(TITLES),
    cuts=st.lists(st.integers(0, 9), max_size=3),
)
def test_what_is_written_is_read(tmp_path, data, kind, rows, id_type, text_type, title_type, cuts):
    values, of, as_text = text_type
    texts = data.draw(st.lists(values, min_size=1, max_size=9))
    names, title_kind, as_title = title_type
    some_titles = st.lists(st.none() | names, min_size=len(texts), max_size=len(texts))
    titles = data.draw(some_titles)
    ids = range(10**9, 10**9 + len(texts))
    written_ids = [
        str(each) if id_type == pa.string() else Decimal(each) if pa.types.is_decimal(id_type) else each for each in ids
    ]
    columns = {"id": pa.array(written_ids, id_type), "text": pa.array(texts, of), "title": pa.array(titles, title_kind)}
    path = tmp_path / "table"
    path.write_bytes(written(pa.table(columns), kind, rows))
    documents, _ = read(path, cuts)
    assert [(each.doc_id, each.text, each.title) for each in documents] == [
        (str(doc_id), as_text(text), None if title is None else as_title(title))
        for doc_id, text, title in zip(ids, texts, titles, strict=True)
    ]
