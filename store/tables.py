"""The store's Lance tables: where they lie, how they are opened and made, and how Lance's errors read."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import lance
import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata

from ..errors import CorruptStoreError, StoreError, StoreUnreachableError
from .schema import ASSETS_SCHEMA, DATA_STORAGE_VERSION

MEMORY = "memory"
REJECTED = "rejected"
ASSETS = "assets"
TABLES = (MEMORY, REJECTED, ASSETS)

# The schemes of object stores in which Lance commits by a put that fails where the object is there already.
OBJECT_STORES = ("s3", "gs", "az", "abfss")

_ONE_SLASH = re.compile(rf"(?:{'|'.join(OBJECT_STORES)}|https?):/(?!/)")

# How long Lance's client tries. Lance tries everything six times over, so that a store that refuses is given up after
# some 20 s, and one that is silent after some minutes. What the environment says of these goes before them.
_PATIENCE = {"client_max_retries": "10", "client_retry_timeout": "30"}

# What Lance raises for a failed read or write: I/O and conflicts, missing tables and bad arguments, the rest.
LANCE_FAILURES = (OSError, ValueError, RuntimeError)

# In how Lance prints the encoding of a page of large values, each found by an offset.
_FULL_ZIP = re.compile(r"FullZipLayout \{.*?num_items: (?P<items>\d+)", re.DOTALL)

_lance_process: int | None = None


def resolve_uri(uri: str | Path) -> str:
    """The form in which the store keeps an address: an absolute local path, or an object-store URI.

    Object stores (``s3://``, ``gs://``, …) take their credentials and options from the environment.

    Raises:
        StoreError: it is the address of something else, or holds credentials; what it says is not repeated then.
    """
    text = str(uri)
    if _ONE_SLASH.match(text):
        # A Path of an address: it would become a folder, whatever is in its name.
        raise StoreError("an object store's address has two slashes behind its scheme; give it as a string, no Path.")
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if "://" in text:
        _require_object_store(text)
        return text.rstrip("/")
    return str(Path(text).expanduser().absolute())


def _require_object_store(uri: str) -> None:
    scheme, _, rest = uri.partition("://")
    if scheme not in OBJECT_STORES:
        places = ", ".join(f"{each}://" for each in OBJECT_STORES)
        raise StoreError(f"a store cannot be at an address that begins with {scheme}://; name a folder, or {places}.")
    # A secret may hold slashes, so that its @ is anywhere; but nothing else has a colon here.
    bucket = rest.partition("/")[0]
    if ":" in bucket or ("@" in bucket and scheme != "abfss"):
        raise StoreError(
            f"a store's {scheme}:// address must not hold credentials, because it is shown and kept. Set them in the "
            "environment (docs/object-stores.md), and name the bucket and path only."
        )
    if not bucket:
        raise StoreError(f"{uri} names no bucket; a store's address is {scheme}://BUCKET/PATH.")
    if "?" in rest or "#" in rest:
        raise StoreError(
            f"a store's {scheme}:// address must have no '?' or '#'. Set options and tokens in the environment "
            "(docs/object-stores.md)."
        )


def local_folder(uri: str) -> Path | None:
    """The folder of a resolved address, or None in an object store."""
    return None if "://" in uri else Path(uri)


def table_uri(uri: str, table: str) -> str:
    """The address of one table: where ``lancedb.connect(uri)`` looks for it too."""
    return f"{uri}/{table}.lance"


def data_file_uri(uri: str, table: str, name: str) -> str:
    """The address of one data file of a table."""
    return f"{table_uri(uri, table)}/data/{name}"


def storage_options(uri: str) -> dict[str, str] | None:
    """What Lance is to be told of the place of an address; it takes all else from the environment by itself."""
    return dict(_PATIENCE) if local_folder(uri) is None else None


def open_table(uri: str, table: str, version: int | None = None) -> lance.LanceDataset:
    """Open a table at a version, the latest by default.

    Raises:
        StoreError: there is no such table or version, or it cannot be read.
    """
    check_process()
    with lance_errors(f"cannot open table {table!r} of the store at {uri}"):
        return lance.dataset(table_uri(uri, table), version=version, storage_options=storage_options(uri))


def fragments_of(dataset: lance.LanceDataset) -> list[FragmentMetadata]:
    """All fragments of a version."""
    return [fragment.metadata for fragment in dataset.get_fragments()]


def find_table(uri: str, table: str) -> lance.LanceDataset | None:
    """Open a table at its latest version, or None if it was never created, that is, has no version.

    Raises:
        StoreError: it is there but cannot be read.
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
        StoreError: the table exists, or cannot be written.
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


def append_assets(uri: str, assets: Mapping[str, bytes]) -> None:
    """Add named values to ``assets``, in one atomic commit.

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
    """Open one data file, for all columns or some.

    Raises:
        OSError, ValueError, RuntimeError: Lance failed.
    """
    return LanceFileReader(address, storage_options=storage_options(address), columns=columns)


# Of a local file too it says "Generic … error", where the disk cannot read it.
_NOT_OF_THE_FILE = re.compile(
    r"Generic (?!LocalFileSystem)\S+ error: |lacked the necessary privileges|lacked valid authentication credentials"
)


def is_disk_full(error: BaseException) -> bool:
    """Whether Lance failed for lack of space; it gives the system's message but not its errno."""
    return "No space left on device" in str(error)


def is_object_store(error: BaseException) -> bool:
    """Whether the client of an object store gave up or was refused; Lance says so in words only."""
    return _NOT_OF_THE_FILE.search(str(error)) is not None


# An object store that answers "no", and a disk or network folder that is away.
_REFUSED = re.compile(
    "lacked the necessary privileges|lacked valid authentication credentials|NoSuchBucket|"
    r"status(?: code)?:? 4(?!08|29)\d\d"
)
_AWAY = re.compile(
    "Stale file handle|Input/output error|Transport endpoint is not connected|Connection timed out|Host is down"
)


def is_unreachable(error: BaseException) -> bool:
    """Whether a store could not be reached, for a reason that may pass by waiting."""
    if is_object_store(error):
        return _REFUSED.search(str(error)) is None
    return _AWAY.search(str(error)) is not None


def is_not_of_the_file(error: BaseException) -> bool:
    """Whether a file could not be read for a reason that lies elsewhere and may pass."""
    return is_object_store(error) or re.search("Too many open files|Permission denied", str(error)) is not None


def is_version_gone(error: BaseException) -> bool:
    """Whether Lance missed a data or deletion file, as it does in a version that was dropped."""
    return "Not found: " in str(error) and ("/data/" in str(error) or "/_deletions/" in str(error))


def read_rows(
    dataset: lance.LanceDataset,
    columns: Sequence[str],
    *,
    fragments: Sequence[int] | None = None,
    batch_rows: int = 65_536,
) -> Iterator[tuple[lance.LanceFragment, pa.RecordBatch]]:
    """The rows of a table in order, or of some of its fragments, a batch at a time, each with its fragment.

    It takes rows by number in place of scanning. Lance hands a scan over as an Arrow C stream, where a damaged file
    whose error message has a zero byte, or on which Lance panics, ends the process; here it raises. It is as fast, for
    payloads faster.

    Raises:
        StoreError: a file is missing or cannot be read; names it.
    """
    check_process()
    wanted = None if fragments is None else set(fragments)
    for fragment in dataset.get_fragments():
        if wanted is not None and fragment.fragment_id not in wanted:
            continue
        with lance_errors(f"cannot read {fragment_name(fragment)} of {dataset.uri}"):
            rows = fragment.count_rows()
            for start in range(0, rows, batch_rows):
                taken = fragment.take(range(start, min(start + batch_rows, rows)), columns=list(columns))
                yield fragment, taken.combine_chunks().to_batches()[0]


def live_rows(fragment: lance.LanceFragment) -> np.ndarray:
    """Which rows of a fragment's data files are not deleted, ``(k,)`` uint64, ascending.

    Raises:
        StoreError: the list of deleted rows cannot be read.
    """
    if fragment.metadata.deletion_file is None:
        return np.arange(fragment.physical_rows, dtype=np.uint64)
    with lance_errors(f"cannot read which rows of {fragment_name(fragment)} are deleted"):
        # A scan, but of nothing except that list.
        addresses = fragment.to_table(columns=[], with_row_address=True).column("_rowaddr").to_numpy()
    return addresses & np.uint64(0xFFFFFFFF)


def read_addressed(dataset: lance.LanceDataset, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
    """The rows of a table in order, a batch of one fragment at a time, each with its addresses, ``(k,)`` uint64.

    Raises:
        StoreError: a file is missing or cannot be read; names it.
    """
    current, begin, addresses = None, 0, np.empty(0, np.uint64)
    for fragment, batch in read_rows(dataset, columns):
        if fragment.fragment_id != current:
            current, begin = fragment.fragment_id, 0
            addresses = live_rows(fragment) | np.uint64(current << 32)
        begin, start = begin + batch.num_rows, begin
        yield addresses[start:begin], batch


class RowTaker:
    """Takes rows of a version of ``memory`` by number, after a look at their files. Threads may share it.

    Args:
        uri: of the store.
        dataset: the table.
    """

    def __init__(self, uri: str, dataset: lance.LanceDataset):
        self._uri = uri
        self._dataset = dataset
        with lance_errors(f"cannot read the store at {uri}"):
            self._fragments = dataset.get_fragments()
            self._ends = np.cumsum([fragment.count_rows() for fragment in self._fragments])
        self._checked: set[int] = set()

    def take(self, numbers: Sequence[int] | np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Rows in the order of their numbers among the rows of the table that are not deleted, from 0.

        Raises:
            CorruptStoreError: a file has damaged offsets of values.
            StoreError: a file is missing or cannot be read.
        """
        for at in set(np.searchsorted(self._ends, numbers, side="right").tolist()) - self._checked:
            for file in self._fragments[at].metadata.files:
                address = data_file_uri(self._uri, MEMORY, file.path)
                if problem := row_index_problem(address):
                    raise CorruptStoreError(f"{address} {problem}. See: pisco-index verify {self._uri}")
            self._checked.add(at)
        with lance_errors(f"cannot read {len(numbers)} documents of the store at {self._uri}"):
            return self._dataset.take(pa.array(numbers), columns=list(columns))


def row_index_problem(address: str) -> str | None:
    """What is wrong with the offsets by which Lance finds large values in a local data file; None if nothing is.

    Lance believes them, and asks for as much memory as a damaged one says, until there is none left. How they lie
    in a file is Lance's own affair: what is not recognised passes.

    Raises:
        StoreError: the file cannot be opened.
    """
    if local_folder(address) is None:
        return None
    with lance_errors(f"cannot open {address}"):
        pages = [page for column in open_data_file(address).metadata().columns for page in column.pages]
        layouts = [(page.buffers, _FULL_ZIP.search(page.encoding)) for page in pages]
    with Path(address).open("rb") as file:
        for buffers, layout in layouts:
            if layout is None or len(buffers) != 2:
                continue
            values, index = buffers
            width, rest = divmod(index.size, int(layout["items"]) + 1)
            if rest or width not in (1, 2, 4, 8):
                continue
            file.seek(index.position)
            offsets = np.frombuffer(file.read(index.size), dtype=f"<u{width}")
            if (offsets[1:] < offsets[:-1]).any() or offsets[-1] > values.size:
                return "has damaged offsets of values"
    return None


def fragment_name(fragment: lance.LanceFragment) -> str:
    """The file that a fragment's rows lie in, within its table's folder."""
    return f"data/{fragment.metadata.files[0].path}" if fragment.metadata.files else f"fragment {fragment.fragment_id}"


@contextmanager
def lance_errors(action: str) -> Iterator[None]:
    """Turn what Lance raises into a StoreError that begins with ``action``.

    Raises:
        StoreError: Lance failed, or panicked over bytes that it did not expect.
    """
    try:
        yield
    except LANCE_FAILURES as error:
        if is_disk_full(error):
            raise StoreError(
                f"{action}: the disk is full. What was committed before is intact; free some space "
                f"and run again. ({error})"
            ) from error
        if is_version_gone(error):
            raise StoreError(
                f"{action}: a file of the version that is open is gone. If the store was compacted meanwhile, open it "
                f"again. ({error})"
            ) from error
        failure = StoreUnreachableError if is_unreachable(error) else StoreError
        if is_object_store(error):
            raise failure(
                f"{action}: the object store does not answer, or refuses. Check the address, the network, and the "
                f"credentials, region and endpoint in the environment (docs/object-stores.md). ({error})"
            ) from error
        raise failure(f"{action}: {error}") from error
    except BaseException as error:
        # A panic in Rust is no Exception, and its class has no module to import it from.
        if type(error).__name__ != "PanicException":
            raise
        raise StoreError(f"{action}: Lance broke off, perhaps because a file is damaged. ({error})") from error


def check_process() -> None:
    """Refuse to use Lance in a process forked from one that used it.

    Lance keeps threads that a fork does not copy, and a child that reads crashes now and then.

    Raises:
        StoreError: this process is such a child.
    """
    global _lance_process
    process = os.getpid()
    if _lance_process is None:
        _lance_process = process
    if _lance_process != process:
        raise StoreError(
            f"process {process} was forked from process {_lance_process}, which has used a store, and Lance does "
            "not survive a fork. Start workers with the 'spawn' or 'forkserver' method: a store can be pickled."
        )
