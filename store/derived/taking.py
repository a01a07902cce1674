"""Take rows of small columns by their addresses."""

from collections.abc import Sequence

import lance
import numpy as np
import pyarrow as pa

from ...errors import CorruptStoreError
from ..table.failures import check_process, lance_errors

# Name by which Lance returns the address of a row.
_ADDRESS = "_rowaddr"


def take_rows(dataset: lance.LanceDataset, addresses: np.ndarray, columns: Sequence[str]) -> pa.Table:
    """Return the rows at some addresses, in the same order.

    Args:
        dataset: the table.
        addresses: addresses of rows that are not deleted, ``(k,)`` uint64.
        columns: names of the columns to read, not that of payloads.

    Raises:
        CorruptStoreError: one of the rows is deleted, or does not exist.
        StoreError: a file is missing or cannot be read.
    """
    found, taken = take_live(dataset, addresses, columns)
    if not np.array_equal(found, addresses):
        raise CorruptStoreError(f"{dataset.uri} has only {len(found)} of {len(addresses)} rows.")
    return taken


def take_live(
    dataset: lance.LanceDataset, addresses: np.ndarray, columns: Sequence[str]
) -> tuple[np.ndarray, pa.Table]:
    """Return those of the rows at some addresses that are not deleted, in the same order, after their addresses.

    Arguments and errors are those of ``take_rows``.
    """
    check_process()
    with lance_errors(f"cannot read {len(addresses)} rows of {dataset.uri}"):
        # Without stable row ids, which no store has, Lance's row id is the address.
        taken = dataset._take_rows(addresses.tolist(), columns=[*columns, _ADDRESS])
    return taken.column(_ADDRESS).to_numpy(), taken.drop_columns(_ADDRESS)
