"""The store: documents' memory in a LanceDB database, written by shards and read by document id.

A worker encodes memory (payload, codecs) and writes fragments (fragment); the driver holds the lock (lock) and commits
(commit, ledger); a reader opens the store (store) and fetches by id (idmap). docs/format.md is its on-disk format.
"""

from .codecs import CODECS, Codec, codec_by_id, codec_by_name
from .commit import Committed, commit, done_shards, remove_orphans, verify_written
from .fingerprint import Fingerprint
from .fragment import WrittenShard, memory_rows, rejected_rows, text_hash, write_fragment
from .info import Failure, StoreInfo, describe
from .lock import build_lock
from .meta import Stage, StoreMeta
from .payload import decode, decode_batch, encode
from .schema import CONNECTOR_ASSET, FORMAT_VERSION
from .store import Rows, Store

__all__ = [
    "CODECS",
    "CONNECTOR_ASSET",
    "FORMAT_VERSION",
    "Codec",
    "Committed",
    "Failure",
    "Fingerprint",
    "Rows",
    "Stage",
    "Store",
    "StoreInfo",
    "StoreMeta",
    "WrittenShard",
    "build_lock",
    "codec_by_id",
    "codec_by_name",
    "commit",
    "decode",
    "decode_batch",
    "describe",
    "done_shards",
    "encode",
    "memory_rows",
    "rejected_rows",
    "remove_orphans",
    "text_hash",
    "verify_written",
    "write_fragment",
]
