"""The causes of Lance's errors, recognised by its words."""

import pytest

from pisco_index.store.table.failures import is_caused_elsewhere, is_from_object_store


@pytest.mark.parametrize(
    ("text", "from_object_store", "elsewhere"),
    [
        ("LanceError(IO): Generic S3 error: Error after 10 retries", True, True),
        ("The operation lacked the necessary privileges to complete for path index/data/a.lance: 403", True, True),
        ("The operation lacked valid authentication credentials for path index/data/a.lance: 401", True, True),
        ("Generic LocalFileSystem error: Unable to read: Input/output error (os error 5)", False, False),
        ("Generic LocalFileSystem error: Unable to open file: Too many open files (os error 24)", False, True),
        ("Unable to open file /a: Permission denied (os error 13)", False, True),
        ("Not found: index/data/a.lance", False, False),
        ("LanceError(IO): file size is too small", False, False),
    ],
)
def test_whether_a_file_or_something_else_is_to_blame(text, from_object_store, elsewhere):
    assert is_from_object_store(OSError(text)) is from_object_store
    assert is_caused_elsewhere(OSError(text)) is elsewhere
