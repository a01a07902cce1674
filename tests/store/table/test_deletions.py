"""A damaged list of deleted rows is refused before Lance, which believes every length in it, reads it."""

import struct
import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from pisco_index.errors import CorruptStoreError
from pisco_index.store import Store, commit, delete, write_fragment
from pisco_index.store.table.deletions import deletion_file_problem
from pisco_index.store.table.rows import live_rows

# A buffer that is not compressed begins with this.
UNCOMPRESSED = struct.pack("<q", -1)


def list_of(dataset: lance.LanceDataset) -> Path:
    (path,) = Path(dataset.uri).glob("_deletions/*")
    return path


def problem_of(dataset: lance.LanceDataset) -> str | None:
    (fragment,) = dataset.get_fragments()
    return deletion_file_problem(dataset, fragment)


@pytest.fixture
def table(tmp_path):
    """Make a table and delete some of its rows."""

    def make(rows: int, deleted: list[int]) -> lance.LanceDataset:
        dataset = lance.write_dataset(pa.table({"i": np.arange(rows)}), tmp_path / "t.lance")
        dataset.delete(f"i IN ({', '.join(map(str, deleted))})")
        return lance.dataset(dataset.uri)

    return make


@pytest.mark.parametrize(
    ("deleted", "kind"), [([3], ".arrow"), (range(0, 9000, 9), ".arrow"), (range(6000), ".bin")], ids=str
)
def test_a_whole_list_has_no_problem(table, deleted, kind):
    dataset = table(10_000, list(deleted))
    assert list_of(dataset).suffix == kind
    assert problem_of(dataset) is None
    (fragment,) = dataset.get_fragments()
    assert live_rows(fragment).tolist() == sorted(set(range(10_000)) - set(deleted))


@pytest.mark.fault(
    "A bit flips in a list of deleted rows.",
    "It is refused, or read as before.",
)
def test_every_length_is_looked_at(table):
    """Numbers that the list may hold anywhere, made enormous: refused, or Lance reads the same rows as before."""
    dataset = table(1000, [3, 10, 100])
    path = list_of(dataset)
    content = path.read_bytes()
    refused = 0
    for at in range(0, len(content) - 8, 4):
        path.write_bytes(content[:at] + struct.pack("<q", 1 << 45) + content[at + 8 :])
        refused += problem_of(dataset) is not None
    path.write_bytes(content)
    assert problem_of(dataset) is None
    # The rest is padding, and the description of the column.
    assert refused > 60


@pytest.mark.parametrize("buffer", [0, 1], ids=["nulls, which pyarrow does not look at", "row numbers"])
def test_the_length_of_a_buffers_content(table, buffer):
    dataset = table(1000, [3, 10, 100])
    path = list_of(dataset)
    content = bytearray(path.read_bytes())
    at = content.index(UNCOMPRESSED)
    if buffer:
        at = content.index(UNCOMPRESSED, at + 32)
    struct.pack_into("<q", content, at, 1 << 40)
    path.write_bytes(content)
    assert "the length of a buffer does not fit its rows" in problem_of(dataset)
    if buffer == 0:
        # Without the check, the same list ends the process.
        code = f"import lance; lance.dataset({dataset.uri!r}).get_fragments()[0].to_table(columns=[], with_row_id=True)"
        limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36)); "
        died = subprocess.run([sys.executable, "-c", limit + code], capture_output=True, text=True, check=False)
        assert "memory allocation of 1099511627776 bytes failed" in died.stderr
        assert died.returncode < 0


def rewritten(content: bytes, number: int) -> bytes:
    """The list with another number in place of its last one."""
    numbers = pa.ipc.open_file(content).read_all().column(0).to_numpy()
    assert content.count(numbers.tobytes()) == 1
    return content.replace(numbers.tobytes(), np.append(numbers[:-1], np.uint32(number)).tobytes())


def block_moved(content: bytes) -> bytes:
    """The list with a block in the footer that begins where the file ends."""
    block = struct.pack("<iq", 1, 192)
    assert content.count(block) == 1
    return content.replace(block, struct.pack("<iq", 1, len(content)))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda content: b"", "does not end like"),
        (lambda content: content[:-4], "does not end like"),
        (lambda content: rewritten(content, 1000), "rows that the data file does not have"),
        (lambda content: rewritten(content, pa.ipc.open_file(content).read_all()[0][0].as_py()), "or a row twice"),
        (block_moved, "a block reaches beyond the end"),
    ],
    ids=["empty", "cut", "row beyond the file", "row twice", "block beyond the file"],
)
def test_other_damage(table, change, what):
    dataset = table(1000, [10, 100, 3])
    path = list_of(dataset)
    path.write_bytes(change(path.read_bytes()))
    assert what in problem_of(dataset)


def test_a_list_that_does_not_match_the_version(table, tmp_path):
    dataset = table(1000, [3, 10, 100])
    path = list_of(dataset)
    content = path.read_bytes()
    dataset = lance.write_dataset(pa.table({"i": np.arange(1000)}), tmp_path / "other.lance")
    dataset.delete("i IN (1, 2)")
    list_of(dataset).write_bytes(content)
    assert "lists 3 rows and not 2" in problem_of(dataset)
    list_of(dataset).unlink()
    assert "is missing" in problem_of(dataset)


def test_a_store_with_a_damaged_list_does_not_open(store, shard_rows):
    commit(store, [write_fragment(store.uri, 0, shard_rows(0))])
    delete(store.uri, ["0-1", "0-3"])
    path = list_of(Store.open(store.uri).table)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptStoreError, match=r"_deletions.*verify"):
        Store.open(store.uri)
