"""Tab-separated tables with and without header and quotes."""

from collections import Counter

import pytest

from pisco_index.corpus import Document


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
        (b'id\ttext\n1\t"Foo" is a word\n', "c.tsv, line 2: the row that begins here has broken quoting"),
        (b'id\ttext\n1\tx\n2\t"open\n3\tend\n', "c.tsv, line 3: the row that begins here has broken quoting"),
        (
            b"1\ttwo\tthree\n",
            "c.tsv, line 1: the table has 3 columns but no header that names an id and a text; found '1', 'two', 'th",
        ),
    ],
)
def test_a_broken_row_is_refused_with_its_place(write, refusal, data, message):
    assert message in refusal(write("c.tsv", data))


def test_quotes_that_are_text_are_read_when_the_configuration_says_so(write, documents):
    path = write("c.tsv", 'id\ttext\n1\t"Foo" is a word\n')
    assert documents(path, quoting="none") == [Document("1", '"Foo" is a word')]


def test_a_missing_column_is_named(write, refusal):
    path = write("c.tsv", "id\ttext\n1\tx\n")
    assert "no column 'name' for the title; found 'id', 'text'" in refusal(path, title_field="name")
    assert "no field 'key' for the id; found 'pid', 'text'" in refusal(path, columns=["pid", "text"], id_field="key")
