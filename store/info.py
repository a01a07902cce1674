"""What is in a store, in numbers."""

from dataclasses import asdict, dataclass
from typing import Any

import lance
import numpy as np

from .commit import done_shards
from .ledger import fallbacks
from .store import Store
from .table.addresses import ASSETS, REJECTED, TABLES, local_folder
from .table.datasets import open_table
from .table.failures import check_process, lance_errors
from .table.rows import read_rows


@dataclass(frozen=True)
class Failure:
    """A document without memory, or a record without a document.

    Attributes:
        shard: where it belongs.
        doc_id: its id, if it has one.
        source: where a rejected record is in the corpus; None for a document.
        error: what was wrong.
    """

    shard: int
    doc_id: str | None
    source: str | None
    error: str


@dataclass(frozen=True)
class StoreInfo:
    """A store in numbers; the planned shards are the plan's to tell.

    Attributes:
        uri: where it is.
        format_version: of the on-disk format.
        version: of the table ``memory``.
        fingerprint: digest of what made the memory.
        fingerprint_components: what the digest stands for.
        checkpoint: the checkpoint, described for people.
        stage: where memory is taken.
        dim: its width.
        codec: of new payloads.
        fallbacks: documents that builds wrote by another codec, which keeps more, by its name; one that was replaced
            counts again.
        documents: rows of memory, failed ones included.
        failed_documents: rows that have an error and no memory.
        rejected_records: records of the corpus that gave no document.
        failures: the first of both kinds.
        shards_done: shards that are done.
        fragments: of the table ``memory``.
        tokens_total: tokens of the documents.
        tokens_fed: tokens that the compressor saw.
        n_mem: memory tokens.
        payload_bytes: what the payload column takes on disk, Lance's few bytes a row included.
        table_bytes: what all data files of the latest versions take.
        disk_bytes: what the folder takes, older versions and orphans included; None in an object store.
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
    fallbacks: dict[str, int]
    documents: int
    failed_documents: int
    rejected_records: int
    failures: tuple[Failure, ...]
    shards_done: int
    fragments: int
    tokens_total: int
    tokens_fed: int
    n_mem: int
    payload_bytes: int
    table_bytes: int
    disk_bytes: int | None

    @property
    def compression(self) -> float | None:
        """Tokens that the compressor saw per memory token; None without memory."""
        return self.tokens_fed / self.n_mem if self.n_mem else None

    @property
    def compression_of_text(self) -> float | None:
        """Tokens of the documents per memory token, cut ones included; None without memory."""
        return self.tokens_total / self.n_mem if self.n_mem else None

    @property
    def payload_bytes_per_document(self) -> float | None:
        """Payload bytes per document that has memory; None without one."""
        stored = self.documents - self.failed_documents
        return self.payload_bytes / stored if stored else None

    def to_dict(self) -> dict[str, Any]:
        """All of it, what is computed included, as values that JSON knows."""
        return asdict(self) | {
            "compression": self.compression,
            "compression_of_text": self.compression_of_text,
            "payload_bytes_per_document": self.payload_bytes_per_document,
        }


def describe(store: Store, failures: int = 20) -> StoreInfo:
    """Count what is in a store. It scans the number columns, and reads of the payloads only their sizes.

    Args:
        store: counted at the version at which it is open; rejected records and empty shards are the latest.
        failures: how many failures to list.

    Raises:
        StoreError: it cannot be read.
    """
    check_process()
    table = store.table
    rejected = open_table(store.uri, REJECTED)
    assets = open_table(store.uri, ASSETS)
    columns = ["tokens_total", "tokens_fed", "n_mem"]
    sums = np.zeros(len(columns), dtype=np.int64)
    documents, failed = 0, list[int]()
    with lance_errors(f"cannot read the store at {store.uri}"):
        for _, batch in read_rows(table, [*columns, "error"]):
            *numbers, errors = batch.columns
            sums += [column.to_numpy().sum(dtype=np.int64) for column in numbers]
            if errors.null_count < len(errors):
                failed += (documents + np.flatnonzero(errors.is_valid())).tolist()
            documents += batch.num_rows
        shown = table.take(failed[:failures], columns=["shard", "doc_id", "error"]).to_pylist()
        refused = rejected.take(range(min(failures, rejected.count_rows()))).to_pylist()
        rows = [{"source": None} | row for row in shown] + refused
        return StoreInfo(
            uri=store.uri,
            format_version=store.meta.format_version,
            version=table.version,
            fingerprint=store.meta.fingerprint.digest,
            fingerprint_components=dict(store.meta.fingerprint.components),
            checkpoint=dict(store.meta.checkpoint),
            stage=store.meta.stage,
            dim=store.meta.dim,
            codec=store.meta.codec,
            fallbacks=fallbacks(store.uri),
            documents=documents,
            failed_documents=len(failed),
            rejected_records=rejected.count_rows(),
            failures=tuple(Failure(**row) for row in rows[:failures]),
            shards_done=len(done_shards(store)),
            fragments=len(table.get_fragments()),
            tokens_total=int(sums[0]),
            tokens_fed=int(sums[1]),
            n_mem=int(sums[2]),
            payload_bytes=_payload_bytes(table),
            table_bytes=sum(map(data_bytes, (table, rejected, assets))),
            disk_bytes=disk_bytes(store.uri),
        )


def count_failures(store: Store) -> tuple[int, int]:
    """Documents without memory at the version at which a store is open, and records that gave no document.

    Raises:
        StoreError: it cannot be read.
    """
    failed = sum(len(batch) - batch.column(0).null_count for _, batch in read_rows(store.table, ["error"]))
    rejected = open_table(store.uri, REJECTED)
    with lance_errors(f"cannot read the store at {store.uri}"):
        return failed, rejected.count_rows()


def _payload_bytes(table: lance.LanceDataset) -> int:
    field = table.lance_schema.field("payload")
    assert field is not None
    statistics = table.stats.data_stats().fields
    # It is a list, whatever Lance declares.
    held = sum(each.bytes_on_disk for each in statistics if each.id == field.id())  # pyrefly: ignore
    # Rows that were deleted are in the files until a compaction.
    written = sum(fragment.physical_rows for fragment in table.get_fragments())
    return round(held * table.count_rows() / written) if written else 0


def data_bytes(table: lance.LanceDataset) -> int:
    """What the data files of one version of a table take."""
    files = (file for fragment in table.get_fragments() for file in fragment.metadata.files)
    return sum(file.file_size_bytes or 0 for file in files)


def disk_bytes(uri: str) -> int | None:
    """What the tables of a store take, older versions and orphans included; None in an object store."""
    folder = local_folder(uri)
    if folder is None:
        return None
    files = (path for table in TABLES for path in (folder / f"{table}.lance").rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file())
