"""Write a store's memory to files that other programs read: Parquet, Arrow IPC, safetensors, NumPy."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash

from ..configs.names import ExportDtype, ExportFormat, Stage
from ..errors import ConfigError, InputError, MissingDocumentsError, some
from ..model.memory import Memory
from ..places import local_path
from ..store import pieces
from .export_formats import FORMATS, Part
from .export_manifest import Manifest
from .reader import Reader

PART_BYTES = 1 << 30
"""Size of a part's vectors by default: files of a gigabyte are easy to copy, and little is lost by an interruption."""

# Limits the decoded memory that is held at a time.
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    Attributes:
        folder: folder of the files.
        format: format of the files.
        stage: stage of the vectors.
        dtype: dtype of the numbers.
        dim: width of a vector.
        documents: number of documents with memory, in all parts.
        memory_tokens: number of vectors, in all parts.
        size: size of all files but the manifest, in bytes.
        parts: number of parts.
        parts_before: number of parts that an earlier run had finished.
        seconds: duration of this run.
    """

    folder: str
    format: str
    stage: str
    dtype: str
    dim: int
    documents: int
    memory_tokens: int
    size: int
    parts: int
    parts_before: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON can hold."""
        return asdict(self)


def export(
    uri: str | Path,
    out: str | Path,
    *,
    format: ExportFormat = "parquet",  # noqa: A002 the name of the command's option
    ids: Sequence[str] | None = None,
    dtype: ExportDtype | None = None,
    stage: Stage | None = None,
    part_documents: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> ExportReport:
    """Write the memory of a store's documents to files, or resume an export that was stopped.

    The files come in parts with the same number of documents each (docs/export.md). A part is either complete or
    absent, and finished parts are not written again.

    Args:
        uri: folder or object-store URI of the store.
        out: folder that is new, empty, or holds this export.
        format: format of the files.
        ids: ids of the documents to write, in this order; by default all, in the order of the store.
        dtype: dtype of the numbers; by default bfloat16 for safetensors, the only format that holds it, and float32
            for the other formats.
        stage: stage of the vectors; by default the stored one. ``"embedding"`` applies the store's connector.
        part_documents: number of documents in a part; by default as many as fill about a gigabyte.
        progress: callback that is given the number of documents written and the total.

    Raises:
        ConfigError: if the format cannot hold the dtype, or the store cannot give the stage.
        MissingDocumentsError: naming the ids that the store does not hold.
        InputError: if the folder holds something else, an id is given twice, a number is too large for float16, or a
            file cannot be written.
        StoreError: if the store cannot be read.
    """
    began = time.monotonic()
    dtype = dtype or ("bfloat16" if format == "safetensors" else "float32")
    _require_possible(format, dtype, part_documents)
    folder = local_path(out)
    manifest = Manifest.read(folder)
    with Reader(uri, version=None if manifest is None else manifest.store["version"]) as reader:
        stored = reader.meta.stage
        reader.meta.require_memory(str(uri))
        if stage == "hidden" and stored == "embedding":
            raise ConfigError(
                f"{uri}: the store holds vectors after the connector (stage embedding); those before it (stage "
                "hidden) cannot be computed from them. Leave the stage out."
            )
        wanted = Manifest.begin(
            reader, format=format, dtype=dtype, stage=stage or stored, ids=ids, part_documents=part_documents or 0
        )
        if manifest is None:
            _require_ids(reader, ids)
            manifest = replace(wanted, part_documents=part_documents or _documents_per_part(reader, wanted))
            _create(folder)
            manifest.write(folder)
        else:
            manifest.require_settings(wanted, folder)
        writer = _Export(reader, folder, manifest, ids, progress)
        before = writer.run()
    return _report(folder, writer.manifest, before, time.monotonic() - began)


def _require_possible(format_: ExportFormat, dtype: str, part_documents: int | None) -> None:
    if dtype not in FORMATS[format_].dtypes:
        known = ", ".join(FORMATS[format_].dtypes)
        raise ConfigError(f"{format_} files do not hold {dtype}; they hold {known}. Use safetensors for bfloat16.")
    if part_documents is not None and part_documents < 1:
        raise ConfigError(f"a part holds at least one document, not {part_documents}.")


def _require_ids(reader: Reader, ids: Sequence[str] | None) -> None:
    if ids is None:
        return
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        repeated = next(doc_id for doc_id in ids if doc_id in seen or seen.add(doc_id))
        raise InputError(f"the id {repeated!r} is given twice. Remove one of the two.")
    if absent := reader.missing(ids):
        raise MissingDocumentsError(
            f"the store does not hold {len(absent)} of the ids given: {some(absent)}. Check the ids.", absent
        )


def _documents_per_part(reader: Reader, manifest: Manifest) -> int:
    tokens = max(reader.memory_tokens() / max(len(reader), 1), 1)
    document_bytes = tokens * manifest.dim * (4 if manifest.dtype == "float32" else 2)
    return max(1, int(PART_BYTES / document_bytes))


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be created: {error.strerror}.") from error


class _Export:
    """Writes the parts of an export that are not finished, and keeps the manifest up to date.

    Attributes:
        manifest: the manifest as it was last written.
    """

    def __init__(
        self,
        reader: Reader,
        folder: Path,
        manifest: Manifest,
        ids: Sequence[str] | None,
        progress: Callable[[int, int], object] | None,
    ):
        self.manifest = manifest
        self._reader = reader
        self._folder = folder
        self._ids = ids
        self._total = len(reader) if ids is None else len(ids)
        self._progress = progress

    def run(self) -> int:
        """Write all parts that are not finished; return the number of those that were."""
        before = 0
        size = self.manifest.part_documents
        for number, start in enumerate(range(0, self._total, size)):
            stop = min(start + size, self._total)
            if self._is_finished(number):
                before += 1
            else:
                self._write(number, start, stop)
            self._notify(stop)
        if not self.manifest.complete:
            self._update(replace(self.manifest, complete=True))
        return before

    def _is_finished(self, number: int) -> bool:
        if number >= len(self.manifest.parts):
            return False
        files = self.manifest.parts[number]["files"]
        return all((path := self._folder / f["name"]).is_file() and path.stat().st_size == f["size"] for f in files)

    def _write(self, number: int, start: int, stop: int) -> None:
        """Write a part under hidden names, add it to the manifest, then give its files their names."""
        name = f"part-{number:05d}"
        kind = FORMATS[self.manifest.format]
        files = kind.names(name)
        self._require_own(files)
        try:
            with kind(self._folder, name, self.manifest.dim, self.manifest.dtype) as part:
                done = start
                for memory in self._batches(start, stop):
                    _add(part, memory, self.manifest.dtype)
                    done += len(memory)
                    self._notify(done)
            described = {
                "documents": part.documents,
                "memory_tokens": part.memory_tokens,
                "files": [_describe(part.hidden(file), file) for file in files],
            }
            parts = self.manifest.parts
            self._update(replace(self.manifest, parts=(*parts[:number], described, *parts[number + 1 :])))
            for file in files:
                part.hidden(file).replace(self._folder / file)
        except (OSError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self._folder / name}: the part cannot be written: {reason}.") from error

    def _require_own(self, files: Sequence[str]) -> None:
        recorded = {file["name"] for part in self.manifest.parts for file in part["files"]}
        for file in files:
            if file not in recorded and (path := self._folder / file).exists():
                raise InputError(f"{path}: this file exists already and is not part of the export. Move it away.")

    def _batches(self, start: int, stop: int) -> Iterator[Memory]:
        reader, ids = self._reader, self._ids
        width = max(self.manifest.dim, reader.meta.dim)
        # Vectors are decoded to fp32.
        for piece in pieces(self._n_mem(start, stop), _BATCH_BYTES // (4 * width), 1024):
            first, last = start + piece.start, start + piece.stop
            memory = reader.read(first, last) if ids is None else reader.fetch(ids[first:last])
            yield memory if self.manifest.stage == memory.stage else reader.connector.connect(memory)

    def _n_mem(self, start: int, stop: int) -> np.ndarray:
        """Return the number of memory tokens of each document of a range."""
        if self._ids is None:
            return self._counts[start:stop]
        return np.array([0 if size is None else size.memory for size in self._reader.sizes(self._ids[start:stop])])

    @cached_property
    def _counts(self) -> np.ndarray:
        return self._reader.store.number_column("n_mem")

    def _update(self, manifest: Manifest) -> None:
        manifest.write(self._folder)
        self.manifest = manifest

    def _notify(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._total)


def _add(part: Part, memory: Memory, dtype: str) -> None:
    values = memory.values.to(getattr(torch, dtype))
    if dtype == "float16" and not torch.equal(values.isinf(), memory.values.isinf()):
        raise InputError("the memory holds a number too large for float16, which ends at 65,504. Choose another dtype.")
    # NumPy has no bfloat16; it holds the 16 bits as integers.
    numbers = values.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else values.numpy()
    part.add(memory.doc_ids, numbers, np.array(memory.lengths, dtype=np.int64))


def _describe(path: Path, name: str) -> dict[str, Any]:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"name": name, "size": path.stat().st_size, "xxh3_64": digest.hexdigest()}


def _report(folder: Path, manifest: Manifest, parts_before: int, seconds: float) -> ExportReport:
    return ExportReport(
        folder=str(folder),
        format=manifest.format,
        stage=manifest.stage,
        dtype=manifest.dtype,
        dim=manifest.dim,
        documents=sum(part["documents"] for part in manifest.parts),
        memory_tokens=sum(part["memory_tokens"] for part in manifest.parts),
        size=sum(file["size"] for part in manifest.parts for file in part["files"]),
        parts=len(manifest.parts),
        parts_before=parts_before,
        seconds=seconds,
    )
