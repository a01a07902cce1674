"""Columns and versions of the store's tables, as docs/format.md describes them."""

from collections.abc import Collection

import pyarrow as pa

from ..errors import StoreError

# The checkpoint's connector: with it a reader turns stage "hidden" into embeddings without the checkpoint.
CONNECTOR_ASSET = "connector.safetensors"

FORMAT_VERSION = 1
"""Version of everything docs/format.md describes but the payload record, which has its own."""

DATA_STORAGE_VERSION = "2.2"
"""Version of Lance's file format. Older ones need twice the reads for a payload."""

# Left to itself Lance would compress a page with zstd once one value passes 32 KiB, which makes writing three times
# slower and gains nothing: the codecs have done that work.
_UNCOMPRESSED = {"lance-encoding:compression": "none"}

OPTIONAL_COLUMNS = {
    "title": pa.field("title", pa.string()),
    "text": pa.field("text", pa.large_string()),
}
"""Columns of ``memory`` that a store may be created with."""


def memory_schema(optional: Collection[str] = ()) -> pa.Schema:
    """Schema of ``memory``: one row a document.

    Args:
        optional: which of OPTIONAL_COLUMNS to have.

    Raises:
        StoreError: for a column that is not among them.
    """
    if unknown := sorted(set(optional) - OPTIONAL_COLUMNS.keys()):
        raise StoreError(f"no optional column is called {unknown[0]!r}; there are {', '.join(OPTIONAL_COLUMNS)}.")
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
"""Schema of ``rejected``: one row a record of the corpus that gave no document."""

ASSETS_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("value", pa.large_binary(), nullable=False, metadata=_UNCOMPRESSED),
    ]
)
"""Schema of ``assets``: named bytes."""
