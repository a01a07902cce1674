"""Check that a data file is whole."""

from pathlib import Path

from ...errors import StoreError
from .addresses import local_folder
from .datasets import open_data_file
from .failures import is_caused_elsewhere, lance_errors


def data_file_problem(address: str, size: int | None, rows: int) -> str | None:
    """Compare a data file with what its table's metadata says of it.

    Only the end of the file is read, so this takes the same time for a file of any size.

    Args:
        address: path or URI of the file.
        size: size of the file in bytes; None or 0 if it is unknown, because Lance does not always record it.
        rows: number of rows in the file, deleted ones included.

    Returns:
        Description of the problem, to follow the file's name in a message; None if the file is whole.

    Raises:
        StoreError: the file could not be checked for a reason outside the file, for example because the object store
            does not answer.
    """
    if local_folder(address) is not None:
        path = Path(address)
        if not path.is_file():
            return "is missing"
        found_size = path.stat().st_size
        if size and found_size != size:
            return f"has {found_size:,} bytes and not {size:,}"
    try:
        with lance_errors(f"cannot check {address}"):
            found_rows = open_data_file(address).num_rows()
    except StoreError as error:
        if is_caused_elsewhere(error):
            raise
        return f"cannot be read ({error.__cause__ or error})"
    return None if found_rows == rows else f"has {found_rows:,} rows and not {rows:,}"
