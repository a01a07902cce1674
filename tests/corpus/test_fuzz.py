"""Any bytes are read as documents and rejected records, or refused with one error that names the place."""

import bz2
import csv
import gzip
import io
import json
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pisco_index.corpus import compression as compressions
from pisco_index.corpus import streams
from pisco_index.errors import CorpusError

from .fuzzing import check_any, fuzz, read

COMPRESS = {"none": lambda data: data, "gzip": gzip.compress, "bz2": bz2.compress, "zstd": zstandard.compress}
HEADER = '<mediawiki>\n<siteinfo><namespaces><namespace key="6">Datei</namespace></namespaces></siteinfo>\n'


def page(number, text):
    return (
        f"<page><title>T{number}</title><ns>0</ns><id>{number}</id><revision><model>wikitext</model>"
        f"<text>{escape(text)}</text></revision></page>\n"
    )


def table_of(texts):
    return pa.table({"id": [f"d{n}" for n in range(len(texts))], "text": pa.array(texts, pa.string())})


def as_jsonl(texts):
    return "\n".join(json.dumps({"id": f"d{n}", "text": text}) for n, text in enumerate(texts)).encode()


def as_json(texts):
    return json.dumps([{"id": f"d{n}", "text": text} for n, text in enumerate(texts)], indent=1).encode()


def as_tsv(texts):
    return "\n".join(f"d{n}\t{' '.join(text.split())}" for n, text in enumerate(texts)).encode()


def as_quoted_tsv(texts):
    lines = io.StringIO(newline="")
    rows = csv.writer(lines, delimiter="\t")
    rows.writerow(("id", "text"))
    rows.writerows((f"d{n}", text) for n, text in enumerate(texts))
    return lines.getvalue().encode()


def as_export(texts):
    return (HEADER + "".join(page(n, text) for n, text in enumerate(texts)) + "</mediawiki>\n").encode()


def as_parquet(texts):
    buffer = io.BytesIO()
    pq.write_table(table_of(texts), buffer, row_group_size=3, use_dictionary=len(texts) % 2 == 0)
    return buffer.getvalue()


def as_arrow(texts):
    buffer, table = io.BytesIO(), table_of(texts)
    with (pa.ipc.new_stream if len(texts) % 2 else pa.ipc.new_file)(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return buffer.getvalue()


WRITERS = {
    "jsonl": ("jsonl", as_jsonl),
    "json": ("json", as_json),
    "tsv": ("tsv", as_tsv),
    "quoted tsv": ("tsv", as_quoted_tsv),
    "export": ("mediawiki", as_export),
    "parquet": ("parquet", as_parquet),
    "arrow": ("arrow", as_arrow),
}


TOKENS = [
    *(b"<page>", b"</page>", b"</revision>", b"<ns>", b"&a;", b"&#xD800;", b"{{", b"[[", b"{|", b"<b a='", b"]]>"),
    *(b'"', b"{", b"}", b"[", b"]", b",", b"\\ud800", b"null", b"1e999", b"9" * 30, b"[" * 3000),
    *(b"\n", b"\r", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe"),
]
changes = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "cut", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=20),
    ),
    min_size=1,
    max_size=4,
)
some_texts = st.lists(
    st.sampled_from(["", "a text", "été\nline", 'a "quote"', "{{t|x}} [[a|b]] c", "word " * 30]), min_size=1, max_size=9
)


def changed(data, edits):
    for kind, share, token in edits:
        place = int(share * len(data))
        match kind:
            case "set":
                data = data[:place] + token + data[place + len(token) :]
            case "insert":
                data = data[:place] + token + data[place:]
            case "delete":
                data = data[:place] + data[place + 7 * len(token) :]
            case "cut":
                data = data[:place]
            case "repeat":
                data = data[:place] + data[place // 2 :]
    return data


@pytest.fixture
def close_points(monkeypatch):
    """A member table with an entry for every member, and pieces of a few bytes, so that small files have many."""
    monkeypatch.setattr(streams, "POINT_SPACING", 1)
    monkeypatch.setattr(streams, "_PIECE", 32)


@pytest.mark.fault(
    "A corpus file holds arbitrary bytes.",
    "It gives documents and rejected records, or one error.",
)
@pytest.mark.usefixtures("close_points")
@pytest.mark.parametrize("kind", WRITERS)
@fuzz(25)
@given(
    texts=some_texts,
    edits=changes,
    compression=st.sampled_from(list(COMPRESS)),
    member_bytes=st.integers(20, 400),
    edits_come_first=st.booleans(),
    words=st.sampled_from([None, 10]),
    cuts=st.lists(st.integers(0, 9), max_size=3),
)
def test_damaged_files(tmp_path, kind, texts, edits, compression, member_bytes, edits_come_first, words, cuts):
    corpus_format, write = WRITERS[kind]
    data = write(texts)
    if edits_come_first:
        data = changed(data, edits)
    if corpus_format not in ("parquet", "arrow"):
        members = (data[begin : begin + member_bytes] for begin in range(0, len(data), member_bytes))
        data = b"".join(map(COMPRESS[compression], members))
    if not edits_come_first:
        data = changed(data, edits)
    path = tmp_path / "corpus.bin"
    path.write_bytes(data or b"\n\xff")
    check_any(path, cuts, format=corpus_format, passage_words=words)


@pytest.mark.fault(
    "A corpus file holds arbitrary bytes.",
    "It gives documents and rejected records, or one error.",
)
@fuzz(100)
@given(
    beginning=st.sampled_from(
        [
            b"",
            b"{",
            b"[{",
            b"<mediawiki>",
            b"<page>",
            b"PAR1",
            b"ARROW1",
            b"\xff" * 4,
            *compressions.MAGIC.values(),
            b"\xff\xfe",
        ]
    ),
    data=st.binary(min_size=1, max_size=200),
)
def test_any_bytes(tmp_path, beginning, data):
    path = tmp_path / "corpus.bin"
    path.write_bytes(beginning + data + b".")
    check_any(path, (), format="auto")


# One record spoiled in one way


def spoiled_json(n, how):
    return {
        "broken": f'{{"id": "d{n}", "text" "x"}}',
        "surrogate": f'{{"id": "d{n}", "text": "\\ud800"}}',
        "no id": '{"text": "x"}',
        "empty id": '{"id": "", "text": "x"}',
        "long id": json.dumps({"id": "x" * 600, "text": "x"}),
        "null text": f'{{"id": "d{n}", "text": null}}',
        "number for a text": f'{{"id": "d{n}", "text": 1}}',
        "title": f'{{"id": "d{n}", "text": "x", "title": []}}',
        "deep": f'{{"id": "d{n}", "text": {"[" * 5000}{"]" * 5000}}}',
        "no UTF-8": f'{{"id": "d{n}", "text": "\udcff"}}',
    }[how]


def spoiled_line(n, how):
    return {
        "columns": f"d{n}\ta\tb",
        "one column": f"d{n}",
        "empty id": "\tx",
        "long id": "x" * 600 + "\tx",
        "no UTF-8": f"d{n}\t\udcff",
        "quoting": f'd{n}\t"a" b',
        "no end of a quote": f'd{n}\t"a',
    }[how]


def spoiled_page(n, how):
    whole = page(n, "x")
    return {
        "entity": whole.replace(">x<", ">&bad;<"),
        "no end": whole.replace("</page>", ""),
        "no end of the text": whole.replace("</text>", ""),
        "no id": whole.replace(f"<ns>0</ns><id>{n}</id>", "<ns>0</ns>"),
        "no revision": f"<page><title>T</title><ns>0</ns><id>{n}</id></page>\n",
        "namespace": whole.replace("<ns>0<", "<ns>zero<"),
        "no UTF-8": whole.replace(">x<", ">\udcff<"),
    }[how]


JSON_WAYS = ["broken", "surrogate", "no id", "empty id", "long id", "null text", "number for a text", "title", "deep"]
LINE_WAYS = ["columns", "one column", "empty id", "long id", "no UTF-8"]
PAGE_WAYS = ["entity", "no end", "no end of the text", "no id", "no revision", "namespace", "no UTF-8"]


def spoiled_file(kind, hows):
    """A file of records, each spoiled in its way or sound where that is None."""
    if kind == "export":
        return (
            HEADER
            + "".join(page(n, "x") if how is None else spoiled_page(n, how) for n, how in enumerate(hows))
            + ("</mediawiki>")
        )
    if kind in ("tsv", "quoted tsv"):
        lines = [f"d{n}\tx" if how is None else spoiled_line(n, how) for n, how in enumerate(hows)]
        return "\n".join(["id\ttext", *lines] if kind == "quoted tsv" else lines)
    lines = [f'{{"id": "d{n}", "text": "x"}}' if how is None else spoiled_json(n, how) for n, how in enumerate(hows)]
    return "\n".join(lines) if kind == "jsonl" else "[" + ",\n".join(lines) + "]"


def ways_of(kind):
    return {
        "export": PAGE_WAYS,
        "tsv": LINE_WAYS,
        "quoted tsv": [*LINE_WAYS, "quoting", "no end of a quote"],
        "jsonl": [*JSON_WAYS, "no UTF-8"],
        "json": [*JSON_WAYS, "no UTF-8"],
    }[kind]


@pytest.mark.parametrize("kind", ["jsonl", "json", "tsv", "quoted tsv", "export"])
@fuzz(25)
@given(data=st.data(), cuts=st.lists(st.integers(0, 9), max_size=3), compression=st.sampled_from(list(COMPRESS)))
def test_spoiled_records_are_rejected_and_no_others(tmp_path, kind, data, cuts, compression):
    hows = data.draw(st.lists(st.none() | st.sampled_from(ways_of(kind)), min_size=1, max_size=9))
    path = tmp_path / "corpus.bin"
    path.write_bytes(COMPRESS[compression](spoiled_file(kind, hows).encode(errors="surrogateescape")))
    config = {"format": WRITERS[kind][0], "columns": ["id", "text"] if kind == "tsv" else None}
    documents, rejected = read(path, cuts, on_error="skip", **config)
    sound = [n for n, how in enumerate(hows) if how is None]
    prefix, suffix = ("", "#0") if kind == "export" else ("d", "")
    assert [document.doc_id for document in documents] == [f"{prefix}{n}{suffix}" for n in sound]
    assert len(rejected) == len(hows) - len(sound)
    _, in_one = read(path, on_error="skip", **config)
    shift = 2 if kind == "quoted tsv" else 1
    named = [int("".join(filter(str.isdigit, each.source.split(",")[1].split("(")[0]))) for each in in_one]
    assert named == [n + shift for n, how in enumerate(hows) if how is not None]
    if rejected:
        with pytest.raises(CorpusError, match=f"corpus.bin, (line|page) {named[0]}\\b"):
            read(path, cuts, **config)


@pytest.mark.parametrize("kind", ["parquet", "stream"])
def test_spoiled_rows_are_rejected_and_no_others(tmp_path, kind):
    ids = pa.array(["a", None, "", "d", "x" * 600, "f", "g", "h"])
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in range(9)))
    texts = pa.Array.from_buffers(pa.string(), 8, [None, offsets, pa.py_buffer(b"abcdef\xffh")])
    titles = pa.array(["T", "T", "T", None, "T", "", "T", "T"])
    table = pa.table({"id": ids, "text": texts, "title": titles})
    path = tmp_path / "table"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=3)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    for cuts in ((), (1, 4), range(8)):
        documents, rejected = read(path, cuts, on_error="skip")
        assert [(d.doc_id, d.text, d.title) for d in documents] == [
            ("a", "a", "T"),
            ("d", "d", None),
            ("f", "f", None),
            ("h", "h", "T"),
        ]
        assert [(each.source, each.reason) for each in rejected] == [
            ("table, row 2", "missing value"),
            ("table, row 3", "unusable id"),
            ("table, row 5", "unusable id"),
            ("table, row 7", "invalid UTF-8"),
        ]
    with pytest.raises(CorpusError, match="table, row"):
        read(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "tsv", "quoted tsv", "export"])
@pytest.mark.parametrize("compression", ["gzip", "bz2", "zstd"])
def test_a_truncated_file_ends_in_one_rejected_record(tmp_path, kind, compression):
    texts = [f"{n * 7919 % 10007} " * 50 for n in range(300)]
    corpus_format, write = WRITERS[kind]
    data = b"".join(COMPRESS[compression](part) for part in (write(texts)[:40000], write(texts)[40000:]))
    path = tmp_path / "corpus.z"
    path.write_bytes(data[: len(data) * 3 // 4])
    documents, rejected = read(path, (10, 100), on_error="skip", format=corpus_format)
    ids = [document.doc_id.removeprefix("d").partition("#")[0] for document in documents]
    assert ids == [str(n) for n in range(len(ids))]
    assert 100 < len(ids) < 300
    (rest,) = rejected
    assert (rest.source, rest.reason, rest.position) == ("corpus.z", "damaged file", None)
    assert "truncated" in rest.error
