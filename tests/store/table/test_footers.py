"""The pages that are read from the end of a data file are those that Lance describes, and damage is noticed."""

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lance.file import LanceFileReader

from pisco_index.store.table.footers import Page, column_pages, fields, varint
from pisco_index.store.table.pages import uncompressed

PLAIN = {"lance-encoding:compression": "none"}
ROWS = 300


@pytest.fixture(scope="module")
def data_file(tmp_path_factory) -> Path:
    """A file with columns of several layouts, the last two of large values, with and without nulls."""
    values = [np.random.default_rng(row).bytes(400) for row in range(ROWS)]
    columns = {
        pa.field("number", pa.int64()): list(range(ROWS)),
        pa.field("same", pa.int32()): [7] * ROWS,
        pa.field("word", pa.string()): [f"document {row}" for row in range(ROWS)],
        pa.field("value", pa.large_binary(), nullable=False, metadata=PLAIN): values,
        pa.field("some", pa.large_binary(), metadata=PLAIN): [*values[1:], None],
    }
    table = pa.table(list(columns.values()), schema=pa.schema(list(columns)))
    folder = tmp_path_factory.mktemp("table")
    lance.write_dataset(table, folder / "t.lance", data_storage_version="2.2")
    (path,) = (folder / "t.lance" / "data").glob("*.lance")
    return path


def test_pages_are_those_that_lance_describes(data_file):
    described = LanceFileReader(str(data_file)).metadata().columns
    for number, column in enumerate(described):
        buffers = [tuple((each.position, each.size) for each in page.buffers) for page in column.pages]
        pages = column_pages(data_file, number)
        assert [page.buffers for page in pages] == buffers
        assert sum(page.rows for page in pages) == ROWS
    together = [page for number in range(len(described)) for page in column_pages(data_file, number)]
    assert column_pages(data_file) == together


def test_pages_of_uncompressed_values_are_recognised(data_file):
    found = [[page.layout for page in column_pages(data_file, number)] for number in range(5)]
    assert found[3:] == [[uncompressed(ROWS, 0)], [uncompressed(ROWS, 1)]]
    assert not {uncompressed(ROWS, 0), uncompressed(ROWS, 1)} & {each for layouts in found[:3] for each in layouts}


def test_a_file_whose_descriptions_are_long_is_read_in_pieces(data_file, monkeypatch):
    whole = column_pages(data_file)
    monkeypatch.setattr("pisco_index.store.table.footers._END_BYTES", 40)
    assert column_pages(data_file) == whole


def test_a_column_that_does_not_exist_is_refused(data_file):
    for column in (-1, 5):
        with pytest.raises(ValueError, match="no column"):
            column_pages(data_file, column)


def test_another_version_of_the_format_has_no_known_pages(data_file, tmp_path):
    content = bytearray(data_file.read_bytes())
    content[-6] = 3
    (tmp_path / "newer.lance").write_bytes(content)
    assert column_pages(tmp_path / "newer.lance") == []


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damage_gives_an_error_or_pages_within_the_file(data_file, tmp_path, data):
    content = bytearray(data_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[-data.draw(st.integers(1, 3000))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.lance"
    damaged.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, 39, 0]))])
    try:
        pages = column_pages(damaged)
    except ValueError:
        return
    size = damaged.stat().st_size
    assert all(isinstance(page, Page) for page in pages)
    assert all(position + length <= size for page in pages for position, length in page.buffers)


@given(st.lists(st.integers(0, (1 << 63) - 1), max_size=5))
def test_integers_of_messages(values):
    message = b"".join(varint(number << 3) + varint(value) for number, value in enumerate(values, 1))
    assert list(fields(message)) == list(enumerate(values, 1))


@pytest.mark.parametrize("message", [b"\x08", b"\x0a\x05abc", b"\x0b\x00", b"\x80" * 11, b"\x09\x00"])
def test_bytes_that_are_no_message_are_refused(message):
    with pytest.raises(ValueError, match=r"field|integer"):
        list(fields(message))
