"""Names of data files in caches: each stands for the bytes of some columns, and for a list of deleted rows."""

import hashlib
from collections.abc import Mapping, Sequence

import lance
from lance.fragment import FragmentMetadata

from ..table.datasets import fragments_of


def field_ids(dataset: lance.LanceDataset, columns: Sequence[str]) -> dict[str, int]:
    """Return the ids of some columns of a table, by name, in the given order."""
    ids = {field.name(): field.id() for field in dataset.lance_schema.fields()}
    return {name: ids[name] for name in columns}


def name_of(fragment: FragmentMetadata, fields: Mapping[str, int], *, with_deletions: bool) -> str:
    """Return a name for some columns of a fragment's rows, 32 hexadecimal digits.

    Lance gives data files and lists of deleted rows random names and never changes them, so equal names stand for equal
    values.

    Args:
        fragment: the fragment.
        fields: the columns, from ``field_ids``.
        with_deletions: True to name the rows that are not deleted, False to name all rows of the data files.
    """
    wanted = set(fields.values())
    # A file's description has its path and columns. Asking thousands of files for their paths takes much longer.
    files = [(file.base_id, repr(file)) for file in fragment.files if not wanted.isdisjoint(file.fields)]
    deleted = fragment.deletion_file if with_deletions else None
    state = None if deleted is None else (deleted.base_id, deleted.path(fragment.id))
    described = repr((tuple(fields.items()), files, fragment.overlays, state))
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def state_of(dataset: lance.LanceDataset, columns: Sequence[str]) -> list[str]:
    """Return names for all fragments of a version: two versions with the same names have the same rows."""
    fields = field_ids(dataset, columns)
    return [name_of(each, fields, with_deletions=True) for each in fragments_of(dataset)]
