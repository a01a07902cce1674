"""Reading any partition of a corpus gives back its documents, whatever wraps them."""

import bz2
import codecs
import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pisco_index.corpus import Document, streams

COMPRESS = {"none": lambda data: data, "gzip": gzip.compress, "bz2": bz2.compress, "zstd": zstandard.compress}
ENCODE = {
    "utf-8": str.encode,
    "utf-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16-le": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}

characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, max_size=40)
titles = st.none() | st.text(characters, min_size=1, max_size=10)
some_documents = st.lists(st.tuples(texts, titles), min_size=1, max_size=12).map(
    lambda pairs: [Document(f"d{number}", text, title) for number, (text, title) in enumerate(pairs)]
)
some_cuts = st.lists(st.integers(0, 11), max_size=5)
some_order = st.permutations(range(12))
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def as_lines(documents, separator="\n"):
    records = ({"_id": d.doc_id, "text": d.text, "title": d.title} for d in documents)
    return separator.join(json.dumps(record, ensure_ascii=False) for record in records)


def in_members(data, size, compress):
    return b"".join(compress(data[begin : begin + size]) for begin in range(0, len(data), size))


@pytest.fixture
def close_points(monkeypatch):
    """A member table with an entry for every member, so that small files have one."""
    monkeypatch.setattr(streams, "POINT_SPACING", 1)


@in_one_folder
@given(
    documents=some_documents,
    compression=st.sampled_from(list(COMPRESS)),
    encoding=st.sampled_from(list(ENCODE)),
    member_bytes=st.integers(5, 4000),
    separator=st.sampled_from(["\n", "\r\n", "\n\n", "\n \r\n"]),
    ending=st.sampled_from(["", "\n", "\r\n\n"]),
    cuts=some_cuts,
    order=some_order,
    reopen=st.booleans(),
)
@pytest.mark.usefixtures("close_points")
def test_json_lines(write, sources, read_in_shards, documents, **case):
    text = ENCODE[case["encoding"]](as_lines(documents, case["separator"]) + case["ending"])
    path = write("corpus.bin", in_members(text, case["member_bytes"], COMPRESS[case["compression"]]))
    (source,) = sources(path)
    assert read_in_shards(source, case["cuts"], case["order"], case["reopen"]) == documents


@in_one_folder
@given(
    documents=some_documents,
    compression=st.sampled_from(list(COMPRESS)),
    indent=st.none() | st.integers(0, 2),
    cuts=some_cuts,
    order=some_order,
)
def test_json_arrays(write, sources, read_in_shards, documents, compression, indent, cuts, order):
    records = [{"_id": d.doc_id, "text": d.text, "title": d.title, "more": {"a": ['"}{\\']}} for d in documents]
    path = write("corpus.json", COMPRESS[compression](json.dumps(records, indent=indent).encode()))
    (source,) = sources(path)
    found = read_in_shards(source, cuts, order)
    assert [(d.doc_id, d.text, d.title) for d in found] == [(d.doc_id, d.text, d.title) for d in documents]


@in_one_folder
@given(documents=some_documents, compression=st.sampled_from(list(COMPRESS)), cuts=some_cuts, order=some_order)
def test_quoted_tables(write, sources, read_in_shards, documents, compression, cuts, order):
    lines = io.StringIO(newline="")
    rows = csv.writer(lines, delimiter="\t")
    rows.writerow(("id", "text", "title"))
    rows.writerows((d.doc_id, d.text, d.title or "") for d in documents)
    path = write("psgs_w100.tsv", COMPRESS[compression](lines.getvalue().encode()))
    (source,) = sources(path)
    assert read_in_shards(source, cuts, order) == documents


@in_one_folder
@given(
    documents=some_documents,
    kind=st.sampled_from(["parquet", "stream", "file"]),
    group=st.integers(1, 5),
    cuts=some_cuts,
    order=some_order,
    reopen=st.booleans(),
)
def test_tables_by_column(tmp_path, sources, read_in_shards, documents, **case):
    table = pa.table(
        {
            "url": pa.array([None] * len(documents), pa.string()),
            "title": pa.array([d.title for d in documents], pa.string()),
            "text": [d.text for d in documents],
            "id": [d.doc_id for d in documents],
        }
    )
    path = tmp_path / "table"
    if case["kind"] == "parquet":
        pq.write_table(table, path, row_group_size=case["group"])
    else:
        opener = pa.ipc.new_stream if case["kind"] == "stream" else pa.ipc.new_file
        with opener(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=case["group"])
    (source,) = sources(path)
    assert read_in_shards(source, case["cuts"], case["order"], case["reopen"]) == documents
