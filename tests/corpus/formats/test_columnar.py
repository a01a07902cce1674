"""Parquet and Arrow: read by columns and row groups."""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pisco_index.corpus import Document


@pytest.fixture
def parquet(tmp_path):
    def write(columns, name="c.parquet", **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, **options)
        return path

    return write


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_every_kind_of_string_is_text(tmp_path, documents, kind):
    texts = pa.array(["été", "", "x" * 40]).cast(kind)
    table = pa.table({"id": pa.array([1, 2, 3], pa.uint64()), "text": texts})
    path = tmp_path / "c.arrow"
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    assert documents(path) == [Document("1", "été"), Document("2", ""), Document("3", "x" * 40)]


def test_records_are_rows(parquet, sources):
    (source,) = sources(parquet({"text": ["a", "été", ""], "id": ["x", "y", "z"]}, row_group_size=2))
    assert list(source.scan(Counter())) == [(0, "x", 1, 1), (1, "y", 3, 2), (2, "z", 0, 3)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", "b"], "text": ["x", None]}, "c.parquet, row 2: 'text' is null"),
        ({"id": ["a", None], "text": ["x", "y"]}, "c.parquet, row 2: 'id' is null"),
        ({"id": ["a", " "], "text": ["x", "y"]}, "c.parquet, row 2: the id is empty"),
        ({"id": ["a", "i" * 513], "text": ["x", "y"]}, "c.parquet, row 2: the id"),
        ({"id": ["a", "b"], "text": [b"x", b"\xff"]}, "c.parquet, row 2: 'text' is not valid UTF-8"),
        ({"id": [1.5, 2.5], "text": ["x", "y"]}, "c.parquet: the id column 'id' holds double, not strings or integers"),
        ({"key": ["a"], "text": ["x"]}, "c.parquet: no field for the id is recognised; found 'key', 'text'"),
    ],
)
def test_a_broken_table_is_refused_with_its_place(parquet, refusal, columns, message):
    assert message in refusal(parquet(columns))


def test_invalid_text_in_a_string_column_is_refused(tmp_path, refusal):
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"x", b"\xff"]).buffers())
    pq.write_table(pa.table({"id": ["a", "b"], "text": texts}), tmp_path / "c.parquet")
    assert "c.parquet, row 2: 'text' is not valid UTF-8" in refusal(tmp_path / "c.parquet")


def test_a_column_name_that_is_not_utf8_is_refused(tmp_path, refusal):
    table = pa.table({"id": ["a"], "text": ["x"], "other": ["y"]})
    with pa.ipc.new_file(tmp_path / "c.arrow", table.schema) as writer:
        writer.write_table(table)
    data = (tmp_path / "c.arrow").read_bytes().replace(b"other", b"\xffther")
    (tmp_path / "c.arrow").write_bytes(data)
    assert "c.arrow: the table is damaged or truncated ('utf-8' codec" in refusal(tmp_path / "c.arrow")


def test_a_missing_title_column_is_named(parquet, refusal):
    path = parquet({"id": ["a"], "text": ["x"]})
    assert "no column 'name' for the title; found 'id', 'text'" in refusal(path, title_field="name")


def test_truncated_files_are_refused(parquet, tmp_path, refusal):
    path = parquet({"id": ["a"] * 1000, "text": [f"text {i}" for i in range(1000)]})
    path.write_bytes(path.read_bytes()[:-100])
    assert "c.parquet: the table is damaged or truncated" in refusal(path)
    table = pa.table({"id": ["a"] * 1000, "text": [f"text {i}" for i in range(1000)]})
    with pa.ipc.new_stream(tmp_path / "c.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    (tmp_path / "c.arrow").write_bytes((tmp_path / "c.arrow").read_bytes()[:-300])
    assert "c.arrow, after row" in refusal(tmp_path / "c.arrow")


def test_damage_within_a_row_group_is_refused(parquet, refusal):
    path = parquet({"id": [str(i) for i in range(5000)], "text": [f"text {i * 7}" for i in range(5000)]})
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = b"\xaa" * (len(data) // 2 - len(data) // 4)
    path.write_bytes(bytes(data))
    assert "c.parquet, after row" in refusal(path)


def test_empty_files(parquet, write, documents, refusal):
    assert documents(parquet({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())})) == []
    assert "empty.parquet: the file is empty" in refusal(write("empty.parquet", b""))
