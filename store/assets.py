"""The assets of a store: named bytes in the table ``assets``, with the functions that read and add them."""

from collections.abc import Mapping

import lance

from ..errors import CorruptStoreError, StoreError
from .codecs.calibration import CALIBRATION_PREFIX, Calibration, asset_name, reference_of
from .table.addresses import ASSETS
from .table.datasets import append_assets
from .table.deletions import open_checked
from .table.failures import lance_errors
from .table.rows import read_rows

META_ASSET = "meta"
"""Name of the store's description; it comes last when a store is created, and makes it complete."""

CONNECTOR_ASSET = "connector.safetensors"
"""Name of the checkpoint's connector: with it a reader turns stage "hidden" into embeddings without the checkpoint."""

ORIGIN_ASSET = "recoded-from"
"""Name of the note, in a recoded store, about the store that it was made from."""

PLAN_PREFIX = "plan/"
"""Prefix of the names of update plans. A plan is in force when the schema of ``memory`` names its asset."""

RECORDS_PREFIX = "records/"
"""Prefix of a name that ends with a plan's: the records that the plan was made of (``lookup/known_records.py``)."""

EMPTY_SHARD_PREFIX = "empty-shard/"
"""Prefix of a name that ends with the number of a finished shard without rows in ``memory``."""

FALLBACK_PREFIX = "fallback/"
"""Prefix of a name that ends with a shard's number: the counts of its documents in other codecs than the store's."""

INDEX_PREFIX = "index/"
"""Prefix of a name that ends with the UUID of a segment of the search index: the checksums of its files."""

KEPT_OUT_PREFIX = "kept-out/"
"""Prefix of the names of notes about the documents that builds do not store. The rest of a name has no meaning."""

NOTE_PREFIXES = (EMPTY_SHARD_PREFIX, FALLBACK_PREFIX, INDEX_PREFIX)
"""Prefixes of the names that commits and indexing add. Two drivers may add the same name, with the same value."""


def asset_names(dataset: lance.LanceDataset) -> list[str]:
    """Return the names in the table ``assets``, in the order of its rows.

    Raises:
        StoreError: the names cannot be read.
    """
    return [name for _, batch in read_rows(dataset, ["name"]) for name in batch.column(0).to_pylist()]


def read_asset(uri: str, dataset: lance.LanceDataset, name: str) -> bytes:
    """Return the bytes of an asset.

    Args:
        uri: resolved address of the store, for messages.
        dataset: the table ``assets``.
        name: name of the asset.

    Raises:
        StoreError: there is no asset of that name, or it cannot be read.
    """
    with lance_errors(f"cannot read the assets of the store at {uri}"):
        names = asset_names(dataset)
        if name not in names:
            held = [n for n in names if not n.startswith((*NOTE_PREFIXES, KEPT_OUT_PREFIX))]
            raise StoreError(f"the store at {uri} has no asset {name!r}; it has {', '.join(held)}.")
        return dataset.take([names.index(name)], columns=["value"]).column(0)[0].as_py()


def read_calibration(uri: str, reference: int) -> Calibration:
    """Return the calibration that payloads refer to by a number.

    Raises:
        StoreError: the store has no calibration of that number, or it cannot be read.
        CorruptStoreError: the calibration is damaged.
    """
    dataset = open_checked(uri, ASSETS)
    name, names = asset_name(reference), asset_names(dataset)
    if name not in names:
        held = ", ".join(n for n in names if n.startswith(CALIBRATION_PREFIX)) or "none"
        raise StoreError(
            f"a payload needs {name}, which the store at {uri} lacks; it has {held}. The payload was encoded for "
            "another store."
        )
    data = read_asset(uri, dataset, name)
    if reference_of(data) != reference:
        raise CorruptStoreError(f"{name} of the store at {uri} fails its checksum.")
    return Calibration.from_bytes(data)


def add_missing_assets(uri: str, values: Mapping[str, bytes]) -> None:
    """Add the assets whose names the store does not have yet.

    Raises:
        StoreError: the assets cannot be read or written.
    """
    if not values:
        return
    with lance_errors(f"cannot add notes to the assets of the store at {uri}"):
        held = set(asset_names(open_checked(uri, ASSETS)))
        if new := [name for name in values if name not in held]:
            append_assets(uri, {name: values[name] for name in new})
