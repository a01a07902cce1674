"""Tab-separated tables with and without header and quotes."""

import csv
import gzip
import io
from collections import Counter

import pytest

from pisco_index.corpus import Document, open_source


def test_dpr_has_a_header_and_csv_quotes(write, documents):
    path = write("psgs_w100.tsv", 'id\ttext\ttitle\n1\t"""Aaron"" is\na name"\tAaron\n2\tplain\t"A ""B"""\n')
    assert documents(path) == [Document("1", '"Aaron" is\na name', "Aaron"), Document("2", "plain", 'A "B"')]


def test_ms_marco_has_neither(write, documents):
    path = write("collection.tsv", '0\tThe "Manhattan Project\n1\t"quoted" text\r\n\n2\t\n')
    assert documents(path) == [
        Document("0", 'The "Manhattan Project'),
        Document("1", '"quoted" text'),
        Document("2", ""),
    ]


def test_columns_and_quoting_can_be_set(write, documents):
    path = write("c.tsv", 'd1\thttp://u\t"T"\ttext\n')
    found = documents(path, columns=["id", "url", "title", "text"])
    assert found == [Document("d1", "text", '"T"', {"url": "http://u"})]
    assert documents(path, columns=["id", "url", "title", "text"], quoting="csv")[0].title == "T"


def test_a_header_of_own_names_is_found_by_the_configuration(write, documents):
    path = write("c.tsv", "key\tabstract\tyear\nk\tsome text\t1999\n")
    assert documents(path, id_field="key", text_field="abstract") == [
        Document("k", "some text", None, {"year": "1999"})
    ]


def test_records_begin_where_their_rows_do(write, sources):
    (source,) = sources(write("c.tsv", 'id\ttext\na\t"x\ny"\nb\tz\n'))
    assert list(source.scan(Counter())) == [(8, "a", 3, 2), (16, "b", 1, 4)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1\tone\n2\ttwo\tmore\n", "c.tsv, line 2: expected 2 columns (id, text) but found 3"),
        (b"1\tone\n2\n", "c.tsv, line 2: expected 2 columns (id, text) but found 1"),
        (b"1\tone\n2\tt\xe9\n", "c.tsv, line 2: invalid UTF-8, byte 0xe9 at byte 4 of the line"),
        (b"1\tone\n\ttwo\n", "c.tsv, line 2: the id is empty"),
        (
            b"1\ttwo\tthree\n",
            "c.tsv, line 1: the table has 3 columns but no header that names an id and a text; found '1', 'two', 'th",
        ),
    ],
)
def test_a_broken_row_is_refused_with_its_place(write, refusal, data, message):
    assert message in refusal(write("c.tsv", data))


@pytest.mark.parametrize(
    "data",
    ['id\ttext\n1\t"Foo" is a word\n', 'id\ttext\n1\tx\n2\t"open\n3\tend\n', 'id\ttext\n1\t"a\n'],
)
def test_broken_quotes_are_refused_if_the_configuration_says_csv(write, refusal, documents, data):
    path = write("c.tsv", data)
    line = data[: data.index('"')].count("\n") + 1
    assert f"c.tsv, line {line}: the row that begins here has broken quoting" in refusal(path, quoting="csv")
    assert [document.text for document in documents(path)] == [row.split("\t")[1] for row in data.splitlines()[1:]]


# Headers


def test_a_header_may_have_other_names_and_capitals(write, documents):
    for header in (
        "docno\tdescription",
        "ID\tText",
        "Doc ID\tBody",
        "_id \tABSTRACT",
        '"id"\t"sentence"',
        "uuid\tContent",
    ):
        assert documents(write("c.tsv", f"{header}\nd1\tThe bell.\n")) == [Document("d1", "The bell.")], header
    assert documents(write("c.tsv", "Text\tid\nThe bell.\td1\n")) == [Document("d1", "The bell.")]


@pytest.mark.parametrize(
    "data",
    [
        "key\tlabel\nd1\tThe bell.\n",
        "docno\tfoo\nd1\tThe bell.\n",
        "Nummer\tInhalt\nd1\tThe bell rings.\nd2\tNobody rings it.\n",
    ],
)
def test_a_row_that_may_be_a_header_is_refused(write, refusal, documents, data):
    path = write("c.tsv", data)
    assert "c.tsv, line 1: the row" in refusal(path)
    assert "looks like a header" in refusal(path)
    assert documents(path, header=False)[0].doc_id == data.partition("\t")[0]
    names = data.partition("\n")[0].split("\t")
    assert documents(path, id_field=names[0], text_field=names[1])[0].doc_id == "d1"


def test_rows_with_a_word_of_a_header_are_documents(write, documents):
    assert len(documents(write("c.tsv", "1\ttext\n2\tid\nid\tA bell.\ntext\tA rope.\n"))) == 4
    assert len(documents(write("c.tsv", "id\ttext\n1\ttext\n2\tid\nid\tA bell.\ntext\tA rope.\n"))) == 4


def test_a_repeated_header_is_dropped_and_counted(write, sources):
    for again in ("id\ttext\ttitle", '"id"\t"text"\t"title"', "\ufeffID\tText\tTitle\r"):
        (source,) = sources(write("c.tsv", f"id\ttext\ttitle\n1\ta b\tT\n{again}\n2\tc d\tU\n"))
        dropped = Counter()
        assert [record.doc_id for record in source.scan(dropped)] == ["1", "2"]
        assert dropped == {"repeated header": 1}
        assert [document.doc_id for document in source.read(0, None)] == ["1", "2"]


def test_a_header_below_rows_is_refused(write, refusal, documents):
    path = write("c.tsv", "1\ta b\nid\ttext\n2\tc d\n")
    assert "c.tsv, line 2: the row 'id', 'text' looks like a header. Remove it; or set header: false" in refusal(path)
    assert len(documents(path, on_error="skip")) == 2
    assert len(documents(path, header=False)) == 3
    path = write("c.tsv", "id\ttext\ttitle\n1\ta b\tT\ntitle\tid\ttext\nU\t2\tc d\n")
    assert "line 3: the row 'title', 'id', 'text' looks like a header of other columns than" in refusal(path)
    assert [document.doc_id for document in documents(path, on_error="skip")] == ["1"], "the rest cannot be read"


def test_names_that_are_configured_may_stand_in_the_first_row(write, documents):
    data = "1\ta b\n2\tc d\n"
    for header in ("", "id\ttext\n", "docid\tcontents\n"):
        assert len(documents(write("c.tsv", header + data), columns=["id", "text"])) == 2
    assert documents(write("c.tsv", "a\tb\n1\tx\n"), columns=["id", "text"], header=True) == [Document("1", "x")]


def test_each_file_of_a_folder_has_its_header_or_continues_the_same_columns(write, sources, refusal):
    write("in/a.tsv", "id\ttext\n1\ta b\n")
    write("in/b.tsv", "text\tid\nc d\t2\n")
    folder = write("in/c.tsv", "id\ttext\n3\te f\n").parent
    assert [d.doc_id for source in sources(folder) for d in source.read(0, None)] == ["1", "2", "3"]
    write("cut/a.tsv", "text\tid\na b\t1\n")
    folder = write("cut/b.tsv", "c d\t2\n").parent
    assert "cut/b.tsv: the table has no header, but cut/a.tsv has one with other columns" in refusal(folder)
    read = [d.doc_id for source in sources(folder, columns=["text", "id"]) for d in source.read(0, None)]
    assert read == ["1", "2"]


# Row names and blanks


def test_a_column_without_a_name_holds_row_names(write, documents):
    numbered = documents(write("c.tsv", "\tid\ttext\ttitle\n0\tp1\tA lock.\tL\n1\tp2\tA gate.\tG\n"))
    assert [(d.doc_id, d.text, d.title) for d in numbered] == [("p1", "A lock.", "L"), ("p2", "A gate.", "G")]
    indexed = [Document("r1", "A ferry.", "F"), Document("r2", "A rope.", "R")]
    assert documents(write("c.tsv", "\ttext\ttitle\nr1\tA ferry.\tF\nr2\tA rope.\tR\n")) == indexed
    assert documents(write("c.tsv", "\n\n\ttext\ttitle\nr1\tA ferry.\tF\nr2\tA rope.\tR\n")) == indexed
    # R writes no name for the column of row names.
    assert documents(write("c.tsv", '"text"\t"title"\n"r1"\t"A ferry."\t"F"\n"r2"\t"A rope."\t"R"\n')) == indexed
    assert documents(write("c.tsv", "text\ttitle\nr1\tA ferry.\tF\nr2\tA rope.\tR\ntext\ttitle\n")) == indexed
    named = '"id"\t"text"\n"1"\t"r1"\t"A ferry."\n"2"\t"r2"\t"A rope."\n'
    assert [(d.doc_id, d.text) for d in documents(write("c.tsv", named))] == [("r1", "A ferry."), ("r2", "A rope.")]
    assert documents(write("d.tsv", "\ttext\nr1\ta b\n")) == [Document("r1", "a b")]


def test_rows_that_are_longer_than_their_header_are_not_guessed_at(write, refusal, documents):
    path = write("c.tsv", "id\ttext\n1\tA ferry.\tF\n2\tA rope.\tR\n")
    assert "the rows have one cell more than the header 'id', 'text' has names" in refusal(path)
    path = write("c.tsv", "id\ttext\n1\tA ferry.\t\n2\tA rope.\t\n")
    assert [(d.doc_id, d.text) for d in documents(path)] == [("1", "A ferry."), ("2", "A rope.")]


def test_blanks_at_the_beginning_are_kept(write, documents):
    assert documents(write("c.tsv", "  1\t a b \n 2\tc\n")) == [Document("  1", " a b "), Document(" 2", "c")]


# Quotes

PROSE = [
    ("1", "The coast is steep here.", "Coast"),
    ("2", '"The wind rose at night, and nobody slept.', "Storm"),
    ("3", "Gulls sat on the roofs.", "Gulls"),
    ("4", 'The watchman called: all are safe."', "Report"),
    ("5", '"Fresh fish daily" said her sign.', '"Heroes"'),
]


def table(rows, header="id\ttext\ttitle\n"):
    return header + "".join("\t".join(row) + "\n" for row in rows)


def written(rows, **options):
    lines = io.StringIO(newline="")
    csv.writer(lines, delimiter="\t", **options).writerows([("id", "text", "title"), *rows])
    return lines.getvalue()


def found_in(documents):
    return [(document.doc_id, document.text, document.title or "") for document in documents]


@pytest.mark.parametrize("first", range(4))
def test_quotes_of_prose_swallow_no_rows(write, documents, first):
    assert found_in(documents(write("c.tsv", table(PROSE[first:])))) == PROSE[first:]
    two = [row[:2] for row in PROSE[first:]]
    assert [row[:2] for row in found_in(documents(write("c.tsv", table(two, ""))))] == two


def test_quotes_of_csv_writers_enclose_cells(write, documents):
    rows = [("1", 'He said "no"\r\nand left.\n\n', "Leaving"), ("2", "Plain\twords.", 'A "title"'), ("3", "", "")]
    for options in ({}, {"quoting": csv.QUOTE_ALL}, {"quoting": csv.QUOTE_NONNUMERIC, "lineterminator": "\n"}):
        path = write("c.tsv", written(rows, **options))
        assert found_in(documents(path)) == rows
        without_header = path.read_bytes().partition(b"\n")[2]
        columns = ["id", "text", "title"]
        assert found_in(documents(write("d.tsv", without_header), columns=columns)) == rows


def test_the_whole_row_is_quoted_or_it_is_text(write, documents):
    assert documents(write("c.tsv", '1\t"Heroes"\n2\tplain\n'))[0].text == '"Heroes"'
    assert documents(write("c.tsv", '"1"\t"Heroes"\n"2"\t"plain"\n'))[0] == Document("1", "Heroes")
    # Spreadsheets quote cells with a comma, even between tabs.
    assert documents(write("c.tsv", '1\tplain\n2\t"a, b"\n3\t"c, d"\n'))[1].text == "a, b"
    assert documents(write("c.tsv", '1\tplain, too\n2\t"a, b"\n3\t"c, d"\n'))[1].text == '"a, b"'


def test_text_with_tabs_and_line_feeds_is_quoted(write, documents):
    rows = [("1", "def f():\n\treturn 1\n", "Code"), ("2", "a\tb\n\n\tc", ""), ("3", "\n", "x\ny")]
    assert found_in(documents(write("c.tsv", written(rows)))) == rows


@pytest.mark.parametrize("text", ["a\tb\nc\td", "a\tb\n\nc\td"])
@pytest.mark.parametrize("first", ["Plain words.", 'One "quoted" word.'])
def test_a_quoted_cell_whose_lines_look_like_rows_is_refused(write, refusal, documents, text, first):
    rows = [("1", first, "T"), ("2", text, "T"), ("3", "More words.", "T")]
    path = write("c.tsv", written(rows))
    assert "c.tsv, line 3: a quote encloses" in (message := refusal(path))
    assert "set quoting: csv" in message
    assert found_in(documents(path, quoting="csv")) == rows


@pytest.mark.parametrize("options", [{}, {"quoting": "csv"}])
def test_a_row_that_contradicts_the_recognised_quotes_is_refused(write, refusal, documents, options):
    beginning = written([(str(n), 'a "quoted" word', "T") for n in range(2000)])
    path = write("c.tsv", beginning + table(PROSE, ""))
    if options:
        assert len(documents(write("d.tsv", beginning + table(PROSE[:4], "")), **options)) == 2000 + 2
        return
    message = refusal(path)
    assert (
        "c.tsv, line 2003: a quote encloses the following 2 line feeds, but lines in between look like rows" in message
    )
    assert "set quoting: csv" in message
    assert "set quoting: none" in message


def test_a_quoted_row_below_text_in_quotes_is_refused(write, refusal, documents):
    path = write("c.tsv", '1\t"Heroes"\n2\tplain\n3\t"He said ""no"" twice."\n')
    data = path.read_text().replace("3\t", "plain\tx\n" * 1500 + "3\t")
    path.write_text("".join(f"{n}{line[line.index(chr(9)) :]}\n" for n, line in enumerate(data.splitlines())))
    assert "line 1503: the quotes of this row enclose cells, but those of earlier rows are text" in refusal(path)
    assert documents(path, quoting="none")[-1].text == '"He said ""no"" twice."'


def test_a_source_says_and_keeps_the_quoting_that_it_recognised(write, sources):
    (source,) = sources(write("c.tsv", "id\ttext\n" + "1\tx\n" * 5000 + '2\t"a ""b"""\n3\tc "d\n'))
    assert "quoted" not in source.spec
    records = list(source.scan(Counter()))
    assert (source.spec["quoted"], source.spec["guessed"]) == (True, ["header", "quoting"])
    again = open_source(source.spec)
    assert [document.text for document in again.read(records[-2].position, None)] == ['a "b"', 'c "d']


def test_plans_of_earlier_versions_trust_their_layout(write, sources):
    (source,) = sources(write("c.tsv", '1\ta\nid\ttext\n2\t"b ""c"""\n'), header=False)
    spec = {key: value for key, value in source.spec.items() if key not in ("guessed", "certain")} | {"quoted": False}
    found = [(document.doc_id, document.text) for document in open_source(spec).read(0, None)]
    assert found == [("1", "a"), ("id", "text"), ("2", '"b ""c"""')]


# Lines


def test_only_line_feeds_end_rows(write, documents):
    odd = "a\rb\u2028c\u2029d\x85e\vf\fg\x1ch"
    for header in ("", "id\ttext\n"):
        assert documents(write("c.tsv", f"{header}1\t{odd}\r\n2\ty\n")) == [Document("1", odd), Document("2", "y")]
    assert documents(write("c.tsv", f'id\ttext\n1\t"{odd} ""x"""\r\n'))[0].text == f'{odd} "x"'
    assert documents(write("c.tsv", "1\tone\rrow"))[0].text == "one\rrow"


@pytest.mark.parametrize("data", ["id\ttext\rm1\tOne.\rm2\tTwo.", "id\ttext\ttitle\r1\ta\tT\r2\tb", "1\ta\r2\tb\r"])
def test_carriage_returns_in_place_of_line_feeds_are_refused(write, refusal, data):
    assert "carriage return" in refusal(write("c.tsv", data))


def test_marks_at_the_beginning_of_lines_are_dropped(write, documents, sources):
    text = "\ufeff1\ta\n\ufeff\ufeff2\tb\ufeffc\n\ufeff\n3\t\ufeffd\n"
    wanted = [Document("1", "a"), Document("2", "b\ufeffc"), Document("3", "\ufeffd")]
    for data in (
        text.encode(),
        text.encode("utf-16"),
        "\ufeffid\ttext\n".encode("utf-16-be") + text.encode("utf-16-be"),
    ):
        assert documents(write("c.tsv", data)) == wanted
    (source,) = sources(write("c.tsv", b"".join(map(gzip.compress, text.encode().splitlines(keepends=True)))))
    records = list(source.scan(Counter()))
    assert [document for record in records[1:2] for document in source.read(record.position, None)] == wanted[1:]
    quoted = 'id\ttext\n1\t"a ""b""\n\ufeffc"\n'
    assert documents(write("c.tsv", quoted))[0].text == 'a "b"\n\ufeffc'


def test_the_encoding_can_be_set(write, documents):
    for encoding in ("cp1252", "latin-1", "utf-16-le"):
        path = write("c.tsv", "1\tété\n2\tÀ «ß»\n".encode(encoding))
        assert [document.text for document in documents(path, encoding=encoding)] == ["été", "À «ß»"]


def test_a_missing_column_is_named(write, refusal):
    path = write("c.tsv", "id\ttext\n1\tx\n")
    assert "no column 'name' for the title; found 'id', 'text'" in refusal(path, title_field="name")
    assert "no field 'key' for the id; found 'pid', 'text'" in refusal(path, columns=["pid", "text"], id_field="key")
