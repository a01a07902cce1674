"""Schemas of the store's tables and the versions of its format. docs/format.md describes both."""

from collections.abc import Collection

import pyarrow as pa

from ..errors import StoreError

FORMAT_VERSION = 1
"""Version of everything in docs/format.md except the payload record, which has a version of its own."""

DATA_STORAGE_VERSION = "2.2"
"""Version of Lance's file format. Older versions need twice the reads for a payload."""

# By default Lance compresses a page with zstd once a value exceeds 32 KiB. That makes writing three times slower and
# saves nothing, since the codecs have already compressed the payloads.
_UNCOMPRESSED = {"lance-encoding:compression": "none"}

CONTENTS = "contents"
"""Name of the column that is searched: the text that was compressed, whose hash is ``text_hash``."""

OPTIONAL_COLUMNS = {
    "title": pa.field("title", pa.string()),
    "text": pa.field("text", pa.large_string()),
    CONTENTS: pa.field(CONTENTS, pa.large_string()),
}
"""Columns that ``memory`` has only in some stores. The schema of ``memory`` alone says that it has contents."""


def memory_schema(optional: Collection[str] = ()) -> pa.Schema:
    """Return the schema of ``memory``, which has one row per document.

    Args:
        optional: names of the optional columns to include.

    Raises:
        StoreError: there is no optional column of that name.
    """
    if unknown := sorted(set(optional) - OPTIONAL_COLUMNS.keys()):
        raise StoreError(f"there is no optional column {unknown[0]!r}; choose from {', '.join(OPTIONAL_COLUMNS)}.")
    return pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("shard", pa.uint32(), nullable=False),
            pa.field("tokens_total", pa.int32(), nullable=False),
            pa.field("tokens_fed", pa.int32(), nullable=False),
            pa.field("n_mem", pa.int32(), nullable=False),
            pa.field("text_hash", pa.binary(16), nullable=False),
            pa.field("error", pa.string()),
            pa.field("payload", pa.large_binary(), metadata=_UNCOMPRESSED),
            *(field for name, field in OPTIONAL_COLUMNS.items() if name in optional),
        ]
    )


REJECTED_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.uint32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("doc_id", pa.string()),
        pa.field("error", pa.string(), nullable=False),
    ]
)
"""Schema of ``rejected``, which has one row per record of the corpus that gave no document."""

ASSETS_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("value", pa.large_binary(), nullable=False, metadata=_UNCOMPRESSED),
    ]
)
"""Schema of ``assets``, which has one row per named value."""
