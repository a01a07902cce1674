"""The content of a store in numbers: documents, tokens, failures and sizes."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import lance

from ..configs.names import MEMORY_AT_QUESTION
from ..errors import CorruptStoreError, StoreError
from .codecs import codec_by_id, codec_by_name, uses_sensitivity
from .codecs.record import read_header
from .derived.totals import FragmentTotals
from .ledger import empty_shards, fallbacks
from .search.index import SearchIndex, search_index, searchable_documents
from .store import Store
from .table.addresses import ASSETS, REJECTED, TABLES, local_folder
from .table.datasets import open_table
from .table.failures import check_process, lance_errors
from .table.rows import read_rows
from .upkeep.kept_out import kept_out


@dataclass(frozen=True)
class Failure:
    """A document without memory, or a record of the corpus that gave no document.

    Attributes:
        shard: number of the shard that it belongs to.
        doc_id: id of the document, if it has one.
        source: place of a rejected record in the corpus; None for a document.
        error: description of the error.
    """

    shard: int
    doc_id: str | None
    source: str | None
    error: str


@dataclass(frozen=True)
class StoreInfo:
    """A store in numbers, without those of its plan.

    Attributes:
        uri: address of the store.
        format_version: version of the on-disk format.
        version: version of the table ``memory``.
        fingerprint: digest of the fingerprint.
        fingerprint_components: components that the digest is computed from.
        checkpoint: readable description of the checkpoint.
        stage: stage of the stored memory.
        dim: width of the memory at that stage.
        codec: name of the codec that new payloads use.
        fitted_to_decoder: True if the codec was fitted to the decoder's sensitivity, False if it should have been; None
            if the codec needs no decoder, or its calibration cannot be read.
        fallbacks: number of documents that builds wrote in another codec, which keeps more, by its name; a document
            that was replaced counts again.
        documents: number of rows of ``memory``, failed documents included.
        failed_documents: number of rows with an error instead of memory.
        rejected_records: number of records of the corpus that gave no document.
        failures: the first failed documents and rejected records.
        shards_done: number of finished shards.
        kept_out: number of documents that builds do not store, because they were deleted for good.
        fragments: number of fragments of ``memory``.
        tokens_total: number of tokens of all documents.
        tokens_fed: number of tokens that the compressor has read.
        n_mem: number of memory tokens.
        payload_bytes: size of the payload column on disk, with the few bytes that Lance adds per row.
        table_bytes: size of all data files of the latest versions.
        search: the search index; None if the store has none.
        searchable: number of documents whose text is in the index; None without an index.
        disk_bytes: size of the folder, older versions and orphans included; None in an object store.
    """

    uri: str
    format_version: int
    version: int
    fingerprint: str
    fingerprint_components: dict[str, str]
    checkpoint: dict[str, Any]
    stage: str
    dim: int
    codec: str
    fitted_to_decoder: bool | None
    fallbacks: dict[str, int]
    documents: int
    failed_documents: int
    rejected_records: int
    failures: tuple[Failure, ...]
    shards_done: int
    kept_out: int
    fragments: int
    tokens_total: int
    tokens_fed: int
    n_mem: int
    payload_bytes: int
    table_bytes: int
    search: SearchIndex | None
    searchable: int | None
    disk_bytes: int | None

    @property
    def holds_memory(self) -> bool:
        """False if the store holds texts only, because memory is made with each question."""
        return self.fingerprint_components.get("memory") != MEMORY_AT_QUESTION

    @property
    def compression(self) -> float | None:
        """Tokens that the compressor has read per memory token; None without memory."""
        return self.tokens_fed / self.n_mem if self.n_mem else None

    @property
    def compression_of_text(self) -> float | None:
        """Tokens of the documents per memory token, tokens that were cut off included; None without memory."""
        return self.tokens_total / self.n_mem if self.n_mem else None

    @property
    def payload_bytes_per_document(self) -> float | None:
        """Payload bytes per document with memory; None without such documents."""
        stored = self.documents - self.failed_documents
        return self.payload_bytes / stored if stored else None

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, the computed ones included, as values for JSON."""
        return asdict(self) | {
            "compression": self.compression,
            "compression_of_text": self.compression_of_text,
            "payload_bytes_per_document": self.payload_bytes_per_document,
            "search": self.search.to_dict() if self.search else None,
        }


def describe(store: Store, failures: int = 20) -> StoreInfo:
    """Count the content of a store. Only what no earlier count has read is read now.

    Args:
        store: the store, counted at the version at which it is open; rejected records and empty shards are counted at
            the latest version.
        failures: largest number of failures to list.

    Raises:
        StoreError: the store cannot be read.
    """
    check_process()
    meta, table = store.meta, store.table
    rejected = open_table(store.uri, REJECTED)
    assets = open_table(store.uri, ASSETS)
    with lance_errors(f"cannot read the store at {store.uri}"):
        totals = store.ledger.totals.of(table)
        return StoreInfo(
            uri=store.uri,
            format_version=meta.format_version,
            version=table.version,
            fingerprint=meta.fingerprint.digest,
            fingerprint_components=dict(meta.fingerprint.components),
            checkpoint=dict(meta.checkpoint),
            stage=meta.stage,
            dim=meta.dim,
            codec=meta.codec,
            fitted_to_decoder=_fitted_to_decoder(store),
            fallbacks=fallbacks(store.uri),
            documents=sum(each.rows for each in totals.values()),
            failed_documents=sum(each.failed for each in totals.values()),
            rejected_records=rejected.count_rows(),
            failures=_first_failures(table, totals, rejected, failures),
            shards_done=len(set[int]().union(*(each.shards for each in totals.values())) | empty_shards(store.uri)),
            kept_out=len(kept_out(store.uri)),
            fragments=len(table.get_fragments()),
            tokens_total=sum(each.tokens_total for each in totals.values()),
            tokens_fed=sum(each.tokens_fed for each in totals.values()),
            n_mem=sum(each.n_mem for each in totals.values()),
            payload_bytes=_payload_bytes(table, totals),
            table_bytes=sum(map(data_bytes, (table, rejected, assets))),
            search=search_index(table),
            searchable=searchable_documents(table),
            disk_bytes=disk_bytes(store.uri),
        )


def _fitted_to_decoder(store: Store) -> bool | None:
    if not uses_sensitivity(codec_by_name(store.meta.codec)):
        return None
    # A damaged store is described too.
    with suppress(StoreError):
        calibration = store.own_calibration()
        return calibration is not None and calibration.is_sensitive
    return None


def describe_documents(store: Store, doc_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return what a store holds of documents, except the vectors: for each id its columns by name.

    In place of the payload there are ``payload_bytes`` and ``codec``, None for a failed document. ``text_hash`` is in
    hexadecimal.

    Args:
        store: the store.
        doc_ids: ids in any order. An id may be given twice.

    Raises:
        MissingDocumentsError: the store does not hold some of the ids.
        CorruptStoreError: the header of a payload is damaged.
        StoreError: the store cannot be read.
    """
    names = store.table.schema.names
    rows = store.columns(doc_ids, names)
    return [_described(store, {name: rows[doc_id][name] for name in names}) for doc_id in doc_ids]


def _described(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    payload = row.pop("payload")
    try:
        codec = None if payload is None else codec_by_id(read_header(payload).codec_id).name
    except StoreError as error:
        raise CorruptStoreError(f"document {row['doc_id']!r} of the store at {store.uri}: {error}") from error
    return row | {
        "text_hash": row["text_hash"].hex(),
        "payload_bytes": None if payload is None else len(payload),
        "codec": codec,
    }


def count_failures(store: Store) -> tuple[int, int]:
    """Return the number of failed documents in the opened version, and of rejected records in the latest version.

    Raises:
        StoreError: the store cannot be read.
    """
    failed = sum(each.failed for each in store.ledger.totals.of(store.table).values())
    rejected = open_table(store.uri, REJECTED)
    with lance_errors(f"cannot read the store at {store.uri}"):
        return failed, rejected.count_rows()


def data_bytes(table: lance.LanceDataset) -> int:
    """Return the size of the data files of one version of a table."""
    files = (file for fragment in table.get_fragments() for file in fragment.metadata.files)
    return sum(file.file_size_bytes or 0 for file in files)


def disk_bytes(uri: str) -> int | None:
    """Return the size of a store's tables, older versions and orphans included; None in an object store."""
    folder = local_folder(uri)
    if folder is None:
        return None
    files = (path for table in TABLES for path in (folder / f"{table}.lance").rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file())


def _first_failures(
    table: lance.LanceDataset, totals: Mapping[int, FragmentTotals], rejected: lance.LanceDataset, most: int
) -> tuple[Failure, ...]:
    failures: list[Failure] = []
    with_failures = [number for number, each in totals.items() if each.failed] if most else []
    for _, batch in read_rows(table, ["shard", "doc_id", "error"], fragments=with_failures):
        found = batch.filter(batch.column("error").is_valid()).slice(0, most - len(failures))
        failures += [Failure(source=None, **row) for row in found.to_pylist()]
        if len(failures) == most:
            break
    records = rejected.take(range(min(most - len(failures), rejected.count_rows()))).to_pylist()
    return (*failures, *(Failure(**row) for row in records))


def _payload_bytes(table: lance.LanceDataset, totals: Mapping[int, FragmentTotals]) -> int:
    # Deleted rows stay in the files until a compaction, so only the share of the other rows counts.
    written = ((totals[each.fragment_id], each.physical_rows) for each in table.get_fragments())
    return round(sum(each.payload_bytes * each.rows / rows for each, rows in written if rows))
