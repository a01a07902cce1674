"""Tables and lists are read back as they were written, and any lines give rows, or one error that names the place."""

import codecs
import csv
import gzip
import io
from collections import Counter

from hypothesis import assume, given
from hypothesis import strategies as st

from pisco_index.configs.corpus import CorpusConfig
from pisco_index.corpus import open_corpus, open_source
from pisco_index.corpus.ids import read_ids
from pisco_index.errors import CorpusError, InputError
from pisco_index.reader.questions.lines import TextLines

from .fuzzing import check_any, fuzz

# Few characters, so that those which mean something often meet.
odd = st.sampled_from([*'"""\t\n\r,ab1 ', "\ufeff", "\u2028", "\x85", "\f", "\v", "é", "\x1c"])
prose = st.text(odd.filter(lambda character: character not in "\t\n"), max_size=12)
cells = st.text(odd, max_size=12) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6
)
bodies = st.lists(st.tuples(cells, cells), min_size=1, max_size=8)
ENCODERS = {
    "utf-8": str.encode,
    "marked": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "gzip": lambda text: gzip.compress(text.encode()),
}
PIECES = [
    *(b"id", b"text", b"title", b"docno", b"d1", b"d2", b'"', b'""', b"\t", b"\t", b"\n", b"\n", b"\r", b"\r\n"),
    *(b"\xef\xbb\xbf", b"\xff", b"\0", b"a b", b",", b"[", b"{", b"<a>", b" "),
]
encoders = st.sampled_from(list(ENCODERS.values()))


def rows_of(path, **config):
    """Rows of a table as they are read in two parts, after scanning it."""
    (source,) = open_corpus([path], CorpusConfig(**config)).sources
    records = list(source.scan(Counter()))
    middle = records[len(records) // 2].position if records else 0
    again = open_source(source.spec)
    documents = [*again.read(0, middle), *again.read(middle, None)]
    assert [document.doc_id for document in documents] == [record.doc_id for record in records]
    return [(document.doc_id, document.text, document.title or "") for document in documents]


def numbered(bodies):
    return [(f"d{number}", text, title) for number, (text, title) in enumerate(bodies)]


@fuzz(100)
@given(
    bodies=bodies,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    ending=st.sampled_from(["\n", "\r\n"]),
    encode=encoders,
)
def test_quoted_tables_are_read_back(tmp_path, bodies, quoting, ending, encode):
    rows, lines = numbered(bodies), io.StringIO(newline="")
    # csv writers do not quote a carriage return if it does not end their lines.
    assume(ending == "\r\n" or not any(cell.endswith("\r") for row in rows for cell in row))
    csv.writer(lines, delimiter="\t", quoting=quoting, lineterminator=ending).writerows(
        [("id", "text", "title"), *rows]
    )
    path = tmp_path / "corpus.tsv"
    path.write_bytes(encode(lines.getvalue()))
    assert rows_of(path, quoting="csv") == rows
    try:
        assert rows_of(path) == rows
    except CorpusError as error:
        # Lines inside a cell with tabs and line feeds may be rows of their own.
        assert any("\t" in cell and "\n" in cell for row in rows for cell in row)
        assert "set quoting: csv" in str(error)  # noqa: PT017


@fuzz(100)
@given(
    bodies=st.lists(st.tuples(prose, prose), min_size=1, max_size=8),
    header=st.booleans(),
    ending=st.sampled_from(["\n", "\r\n"]),
    encode=encoders,
)
def test_tables_without_quoting_lose_no_row(tmp_path, bodies, header, ending, encode):
    rows = numbered(bodies)
    assume(not any(row[2].endswith("\r") for row in rows))
    path = tmp_path / "corpus.tsv"
    lines = ["id\ttext\ttitle"] * header + ["\t".join(row) for row in rows]
    path.write_bytes(encode(ending.join([*lines, ""])))
    columns = None if header else ["id", "text", "title"]
    assert rows_of(path, columns=columns, quoting="none") == rows
    try:
        found = rows_of(path, columns=columns)
    except CorpusError as error:
        assert "set quoting: none" in str(error)  # noqa: PT017  both outcomes are right
        return
    assert [row[0] for row in found] == [row[0] for row in rows]
    # A cell that csv writers would have written as it is may be taken for theirs.
    for row, read in zip(rows, found, strict=True):
        assert all(cell in (wanted, wanted[1:-1].replace('""', '"')) for wanted, cell in zip(row, read, strict=True))


@fuzz(100)
@given(
    data=st.lists(
        st.sampled_from(PIECES),
        min_size=1,
        max_size=30,
    ).map(b"".join),
    header=st.none() | st.booleans(),
    columns=st.sampled_from([None, ["id", "text"], ["id", "text", "title"]]),
    quoting=st.sampled_from(["auto", "csv", "none"]),
    corpus_format=st.sampled_from(["auto", "tsv"]),
    cuts=st.lists(st.integers(0, 9), max_size=3),
)
def test_any_lines_of_a_table(tmp_path, data, header, columns, quoting, corpus_format, cuts):
    path = tmp_path / "corpus.tsv"
    path.write_bytes(data + b"x")
    check_any(path, cuts, header=header, columns=columns, quoting=quoting, format=corpus_format)


ids = st.lists(
    st.text(odd.filter(lambda character: character != "\n"), min_size=1, max_size=6).filter(
        lambda each: each.strip("\ufeff") == each and each.strip() and not each.endswith("\r")
    ),
    min_size=1,
    max_size=8,
)


@fuzz(100)
@given(ids=ids, mark=st.sampled_from(["", "\ufeff"]), ending=st.sampled_from(["\n", "\r\n"]), encode=encoders)
def test_lists_are_read_back(tmp_path, ids, mark, ending, encode):
    path = tmp_path / "ids.txt"
    path.write_bytes(encode("".join(f"{mark}{each}{ending}" for each in ids)))
    assert read_ids(path) == ids
    path.write_bytes(encode("".join(f"{mark}q {each}{ending}" for each in ids)))
    assert [line for _, line in TextLines(path)] == [f"q {each}" for each in ids]


@fuzz(100)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_list_or_refused(tmp_path, data):
    path = tmp_path / "ids.txt"
    path.write_bytes(data)
    try:
        assert all(read_ids(path))
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017  both outcomes are right
    try:
        assert all(line.strip() for _, line in TextLines(path))
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017  both outcomes are right
