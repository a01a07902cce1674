"""Write a shard's rows as fragments that stay invisible until they are committed: the worker's side of a build."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import lance
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import write_fragments

from ...errors import StoreError
from ..codecs import codec_by_id
from ..codecs.record import CODEC_OFFSET, read_header
from ..schema import CONTENTS, DATA_STORAGE_VERSION, OPTIONAL_COLUMNS, REJECTED_SCHEMA, memory_schema
from .addresses import MEMORY, REJECTED, resolve_uri
from .datasets import open_table
from .failures import lance_errors

MAX_ID_BYTES = 512
"""Largest size of a document id in UTF-8."""


@dataclass(frozen=True)
class WrittenShard:
    """The description of a shard that was written and not yet committed: small, and easy to pickle or write as JSON.

    Attributes:
        shard: number of the shard.
        rows: number of rows in ``memory``, failed documents included.
        failed: number of rows with an error instead of a payload.
        rejected: number of records that gave no document.
        tokens_total: number of tokens in the documents.
        tokens_fed: number of tokens that the compressor was given.
        n_mem: number of memory tokens.
        payload_bytes: size of the payloads.
        codecs: number of documents stored by each codec, by its name.
        memory_fragments: Lance's metadata, as JSON, of the fragments in ``memory``; empty for a shard without rows.
        rejected_fragments: Lance's metadata, as JSON, of the fragments in ``rejected``.
    """

    shard: int
    rows: int
    failed: int
    rejected: int
    tokens_total: int
    tokens_fed: int
    n_mem: int
    payload_bytes: int
    codecs: Mapping[str, int]
    memory_fragments: tuple[str, ...]
    rejected_fragments: tuple[str, ...]

    @property
    def files(self) -> tuple[tuple[str, int], ...]:
        """Name of each data file, and its size in bytes."""
        fragments = map(json.loads, self.memory_fragments + self.rejected_fragments)
        return tuple((file["path"], file["file_size_bytes"]) for each in fragments for file in each["files"])

    def to_json(self) -> str:
        """Return the description as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote."""
        values = json.loads(text)
        lists = ("memory_fragments", "rejected_fragments")
        return cls(**(values | {name: tuple(values[name]) for name in lists}))


def memory_rows(
    *,
    doc_ids: Sequence[str],
    tokens_total: Sequence[int],
    tokens_fed: Sequence[int],
    payloads: Sequence[bytes | None],
    text_hashes: Sequence[bytes],
    errors: Sequence[str | None],
    titles: Sequence[str | None] | None = None,
    texts: Sequence[str | None] | None = None,
    contents: Sequence[str | None] | None = None,
) -> pa.Table:
    """Return a table of a shard's documents for ``write_fragment``. Every argument has one entry per document.

    The column ``n_mem`` is read from the headers of the payloads. Each document has either a payload or an error.

    Raises:
        StoreError: an id is empty, too long or repeated, or a document has both a payload and an error, or neither.
        ValueError: the arguments have different lengths.
    """
    _check_documents(doc_ids, payloads, errors)
    columns = {
        "doc_id": doc_ids,
        "tokens_total": tokens_total,
        "tokens_fed": tokens_fed,
        "n_mem": [0 if payload is None else read_header(payload).n_mem for payload in payloads],
        "text_hash": text_hashes,
        "error": errors,
        "payload": payloads,
        "title": titles,
        "text": texts,
        CONTENTS: contents,
    }
    given = {name: values for name, values in columns.items() if values is not None}
    schema = memory_schema(given.keys() & OPTIONAL_COLUMNS.keys())
    return pa.table(given, schema=schema.remove(schema.get_field_index("shard")))


def _check_documents(doc_ids: Sequence[str], payloads: Sequence[bytes | None], errors: Sequence[str | None]) -> None:
    for doc_id, payload, error in zip(doc_ids, payloads, errors, strict=True):
        if not 0 < len(doc_id.encode()) <= MAX_ID_BYTES:
            raise StoreError(f"the id {doc_id[:80]!r} must have between 1 and {MAX_ID_BYTES} bytes.")
        if (payload is None) == (error is None):
            raise StoreError(f"document {doc_id!r} must have either a payload or an error.")
    if len(set(doc_ids)) != len(doc_ids):
        repeated = next(doc_id for i, doc_id in enumerate(doc_ids) if doc_id in doc_ids[:i])
        raise StoreError(f"the id {repeated!r} occurs twice in a shard.")


def rejected_rows(*, sources: Sequence[str], doc_ids: Sequence[str | None], errors: Sequence[str]) -> pa.Table:
    """Return a table of records that gave no document for ``write_fragment``. Every argument has one entry per record.

    Args:
        sources: places of the records in the corpus, for example file and line.
        doc_ids: ids of the records, None for a record without one.
        errors: reasons why the records gave no document.

    Raises:
        ValueError: the arguments have different lengths.
    """
    schema = REJECTED_SCHEMA.remove(REJECTED_SCHEMA.get_field_index("shard"))
    return pa.table({"source": sources, "doc_id": doc_ids, "error": errors}, schema=schema)


def write_fragment(uri: str | Path, shard: int, rows: pa.Table, rejected: pa.Table | None = None) -> WrittenShard:
    """Write a shard to the store. It stays invisible until ``commit``.

    If this fails, or the process dies, no version refers to the files that were written, and ``remove_orphans`` deletes
    them.

    Args:
        uri: address of the store.
        shard: number of the shard, for the column ``shard``.
        rows: the documents, from ``memory_rows``.
        rejected: the records that gave no document, from ``rejected_rows``.

    Raises:
        StoreError: there is no store, it lacks one of the columns, the disk is full, or writing failed.
    """
    uri = resolve_uri(uri)
    rejected = REJECTED_SCHEMA.empty_table() if rejected is None else rejected
    payload = rows.column("payload")
    return WrittenShard(
        shard=shard,
        rows=rows.num_rows,
        failed=payload.null_count,
        rejected=rejected.num_rows,
        tokens_total=_sum(rows.column("tokens_total")),
        tokens_fed=_sum(rows.column("tokens_fed")),
        n_mem=_sum(rows.column("n_mem")),
        payload_bytes=_sum(pc.call_function("binary_length", [payload])),
        codecs=_codecs(payload),
        memory_fragments=_write(uri, MEMORY, shard, rows),
        rejected_fragments=_write(uri, REJECTED, shard, rejected),
    )


def _write(uri: str, table: str, shard: int, rows: pa.Table) -> tuple[str, ...]:
    if not rows.num_rows:
        return ()
    dataset = open_table(uri, table)
    conformed = _conform(rows, shard, dataset.schema, dataset)
    with lance_errors(f"cannot write shard {shard} to the store at {uri}"):
        fragments = write_fragments(
            conformed,
            dataset,
            mode="append",
            data_storage_version=DATA_STORAGE_VERSION,
            # One file per shard, however many rows it has.
            max_rows_per_file=rows.num_rows,
        )
    return tuple(json.dumps(fragment.to_json()) for fragment in fragments)


def _conform(rows: pa.Table, shard: int, schema: pa.Schema, dataset: lance.LanceDataset) -> pa.Table:
    """Return the rows with all columns of the store's table: add the shard, and nulls for absent optional columns."""
    if unknown := set(rows.column_names) - set(schema.names):
        raise StoreError(f"{dataset.uri} was created without the column {min(unknown)!r}. Build a new store to add it.")
    columns = []
    for each in schema:
        if each.name == "shard":
            columns.append(pa.repeat(pa.scalar(shard, each.type), rows.num_rows))
        elif each.name in rows.column_names:
            columns.append(rows.column(each.name))
        else:
            columns.append(pa.nulls(rows.num_rows, each.type))
    return pa.table(columns, schema=schema)


def _codecs(payload: pa.ChunkedArray) -> dict[str, int]:
    """Count the payloads of each codec, by its name."""
    numbers = pc.call_function("binary_slice", [payload], pc.SliceOptions(CODEC_OFFSET, CODEC_OFFSET + 1))
    counts = pc.call_function("value_counts", [numbers]).to_pylist()
    return {codec_by_id(each["values"][0]).name: each["counts"] for each in counts if each["values"] is not None}


def _sum(column: pa.ChunkedArray) -> int:
    return pc.call_function("sum", [column]).as_py() or 0
