"""The store: documents' memory in a LanceDB database, written by shards and read by document id.

A worker encodes memory (payload, codecs, calibration) and writes fragments (fragment); the driver holds the lock (lock)
and commits (commit, ledger); a reader opens the store (store) and fetches by id (idmap). All of it can be checked
(verify), and what is damaged dropped (repair). docs/format.md is its on-disk format.
"""

from .codecs import CODECS, Codec, codec_by_id, codec_by_name, is_calibrated
from .codecs.calibration import Calibration
from .codecs.payload import Latents, decode, decode_batch, encode, encode_batch, read_header
from .codecs.prediction import Prediction, predict
from .commit import Committed, commit, done_shards, verify_written
from .contents import Contents, Status, document_hashes
from .fingerprint import Fingerprint
from .history import Commits, last_commits
from .info import Failure, StoreInfo, count_failures, describe
from .ledger import fallbacks
from .lock import Holder, build_lock, lock_holder
from .meta import Stage, StoreMeta
from .plans import begin_update, forget_rejected, is_altered, plan_in_force
from .schema import CONNECTOR_ASSET, FORMAT_VERSION
from .store import Rows, Store
from .table.addresses import local_folder, resolve_uri
from .table.fragment import WrittenShard, memory_rows, rejected_rows, text_hash, write_fragment
from .upkeep.compact import Compaction, compact, remove_orphans
from .upkeep.delete import Deletion, delete
from .upkeep.recode import RecodeReport, recode, sample_memory
from .upkeep.repair import damage_to_drop, drop_damage
from .upkeep.verify import RESTORE, Expectations, Findings, Problem, check_assets, check_rows, empty_shards_of

__all__ = [
    "CODECS",
    "CONNECTOR_ASSET",
    "FORMAT_VERSION",
    "RESTORE",
    "Calibration",
    "Codec",
    "Commits",
    "Committed",
    "Compaction",
    "Contents",
    "Deletion",
    "Expectations",
    "Failure",
    "Findings",
    "Fingerprint",
    "Holder",
    "Latents",
    "Prediction",
    "Problem",
    "RecodeReport",
    "Rows",
    "Stage",
    "Status",
    "Store",
    "StoreInfo",
    "StoreMeta",
    "WrittenShard",
    "begin_update",
    "build_lock",
    "check_assets",
    "check_rows",
    "codec_by_id",
    "codec_by_name",
    "commit",
    "compact",
    "count_failures",
    "damage_to_drop",
    "decode",
    "decode_batch",
    "delete",
    "describe",
    "document_hashes",
    "done_shards",
    "drop_damage",
    "empty_shards_of",
    "encode",
    "encode_batch",
    "fallbacks",
    "forget_rejected",
    "is_altered",
    "is_calibrated",
    "last_commits",
    "local_folder",
    "lock_holder",
    "memory_rows",
    "plan_in_force",
    "predict",
    "read_header",
    "recode",
    "rejected_rows",
    "remove_orphans",
    "resolve_uri",
    "sample_memory",
    "text_hash",
    "verify_written",
    "write_fragment",
]
