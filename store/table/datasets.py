"""Open and create the store's tables, and append to them."""

from collections.abc import Mapping

import lance
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata

from ...errors import StoreError
from ..schema import ASSETS_SCHEMA, DATA_STORAGE_VERSION
from .addresses import ASSETS, local_folder, storage_options, table_uri
from .failures import check_process, lance_errors


def open_table(uri: str, table: str, version: int | None = None) -> lance.LanceDataset:
    """Open a table at a version, by default the latest one.

    Raises:
        StoreError: there is no such table or version, or it cannot be read.
    """
    check_process()
    with lance_errors(f"cannot open table {table!r} of the store at {uri}"):
        return lance.dataset(table_uri(uri, table), version=version, storage_options=storage_options(uri))


def fragments_of(dataset: lance.LanceDataset) -> list[FragmentMetadata]:
    """Return the metadata of all fragments in a version of a table."""
    return [fragment.metadata for fragment in dataset.get_fragments()]


def find_table(uri: str, table: str) -> lance.LanceDataset | None:
    """Open a table at its latest version; return None if it has no version, that is, was never created.

    Raises:
        StoreError: the table exists but cannot be read.
    """
    check_process()
    folder = local_folder(uri)
    if folder is not None and not folder.is_dir():
        return None
    with lance_errors(f"cannot open table {table!r} of the store at {uri}"):
        try:
            return lance.dataset(table_uri(uri, table), storage_options=storage_options(uri))
        except ValueError as error:
            if "not found" not in str(error):
                raise
            return None


def create_table(uri: str, table: str, rows: pa.Table) -> None:
    """Create a table with its first rows, in one atomic commit.

    Raises:
        StoreError: the table exists already, or cannot be written.
    """
    check_process()
    with lance_errors(f"cannot create table {table!r} of the store at {uri}"):
        lance.write_dataset(
            rows,
            table_uri(uri, table),
            mode="create",
            data_storage_version=DATA_STORAGE_VERSION,
            storage_options=storage_options(uri),
        )


def create_empty_table(uri: str, table: str, schema: pa.Schema) -> None:
    """Create a table without rows, or leave it as it is if a creation that was not completed has made it.

    Raises:
        StoreError: there is such a table with rows or with other columns, or it cannot be written.
    """
    found = find_table(uri, table)
    if found is None:
        create_table(uri, table, schema.empty_table())
    elif not found.schema.equals(schema, check_metadata=True) or found.count_rows():
        raise StoreError(
            f"{uri} is no store, but holds a table {table!r} with {found.count_rows()} rows and the columns "
            f"{', '.join(found.schema.names)}. Delete it, or name another place."
        )


def append_assets(uri: str, assets: Mapping[str, bytes]) -> None:
    """Add named values to the table ``assets``, in one atomic commit.

    Raises:
        OSError, ValueError, RuntimeError: Lance failed.
    """
    lance.write_dataset(
        pa.table([list(assets), list(assets.values())], schema=ASSETS_SCHEMA),
        table_uri(uri, ASSETS),
        mode="append",
        storage_options=storage_options(uri),
    )


def open_data_file(address: str, columns: list[str] | None = None) -> LanceFileReader:
    """Open a data file to read all columns, or only some of them.

    Raises:
        OSError, ValueError, RuntimeError: Lance failed.
    """
    return LanceFileReader(address, storage_options=storage_options(address), columns=columns)
