"""The store: the memory of documents in a LanceDB database, written shard by shard and read by document id.

This room is the only one that knows Lance. A worker encodes memory (``codecs``) and writes fragments (``table``). The
driver holds the lock (``lock``) and commits (``commit``). A reader opens the store (``store``) and finds documents by
id (``lookup``). ``upkeep`` checks, repairs, compacts, deletes and recodes. docs/format.md describes the format on disk.
"""

from .assets import CONNECTOR_ASSET
from .codecs import CODECS, Codec, codec_by_id, codec_by_name, is_calibrated, uses_sensitivity
from .codecs.calibration import Calibration
from .codecs.payload import Latents, decode, decode_batch, encode, encode_batch, restored
from .codecs.prediction import (
    SENSITIVITY_DOCUMENTS,
    MeasuredDivergence,
    MemoryReader,
    MemorySample,
    Prediction,
    fit,
    predict,
)
from .codecs.record import read_header
from .commit import commit, done_shards, verify_written
from .contents import Contents, Status, ids_at
from .fingerprint import Fingerprint
from .hashes import document_hashes, id_hashes, text_hash
from .history import Version, last_commits, versions
from .info import Failure, StoreInfo, count_failures, describe, describe_documents
from .ledger import fallbacks
from .lock import Holder, build_lock, lock_holder
from .lookup.known_records import UNKNOWN, KnownRecords, known_records, records_asset
from .meta import StoreMeta
from .plans import begin_update, forget_rejected, is_altered, plan_in_force
from .sampling import sample_memory
from .schema import CONTENTS, FORMAT_VERSION
from .search.fill import Filled, fill_contents, kept_texts
from .search.index import SearchIndex, has_contents, search_index
from .search.keep import IndexReport, counts_many_deleted, keep_index
from .search.query import Hit, Searcher
from .store import Rows, Store
from .table.addresses import local_folder, resolve_uri
from .table.fragment import WrittenShard, memory_rows, rejected_rows, write_fragment
from .table.rows import pieces
from .upkeep.check_assets import check_assets, empty_shards_of
from .upkeep.check_batch import no_memory
from .upkeep.check_index import check_index
from .upkeep.check_rows import check_rows
from .upkeep.compact import compact, remove_orphans
from .upkeep.delete import delete, let_in
from .upkeep.findings import RESTORE, Expectations, Findings, Problem
from .upkeep.kept_out import kept_out
from .upkeep.recode import RecodeReport, recode
from .upkeep.repair import damage_to_drop, drop_damage

__all__ = [
    "CODECS",
    "CONNECTOR_ASSET",
    "CONTENTS",
    "FORMAT_VERSION",
    "RESTORE",
    "SENSITIVITY_DOCUMENTS",
    "UNKNOWN",
    "Calibration",
    "Codec",
    "Contents",
    "Expectations",
    "Failure",
    "Filled",
    "Findings",
    "Fingerprint",
    "Hit",
    "Holder",
    "IndexReport",
    "KnownRecords",
    "Latents",
    "MeasuredDivergence",
    "MemoryReader",
    "MemorySample",
    "Prediction",
    "Problem",
    "RecodeReport",
    "Rows",
    "SearchIndex",
    "Searcher",
    "Status",
    "Store",
    "StoreInfo",
    "StoreMeta",
    "Version",
    "WrittenShard",
    "begin_update",
    "build_lock",
    "check_assets",
    "check_index",
    "check_rows",
    "codec_by_id",
    "codec_by_name",
    "commit",
    "compact",
    "count_failures",
    "counts_many_deleted",
    "damage_to_drop",
    "decode",
    "decode_batch",
    "delete",
    "describe",
    "describe_documents",
    "document_hashes",
    "done_shards",
    "drop_damage",
    "empty_shards_of",
    "encode",
    "encode_batch",
    "fallbacks",
    "fill_contents",
    "fit",
    "forget_rejected",
    "has_contents",
    "id_hashes",
    "ids_at",
    "is_altered",
    "is_calibrated",
    "keep_index",
    "kept_out",
    "kept_texts",
    "known_records",
    "last_commits",
    "let_in",
    "local_folder",
    "lock_holder",
    "memory_rows",
    "no_memory",
    "pieces",
    "plan_in_force",
    "predict",
    "read_header",
    "recode",
    "records_asset",
    "rejected_rows",
    "remove_orphans",
    "resolve_uri",
    "restored",
    "sample_memory",
    "search_index",
    "text_hash",
    "uses_sensitivity",
    "verify_written",
    "versions",
    "write_fragment",
]
