"""Writing a store's memory to files that other programs read: Parquet, Arrow IPC, safetensors, NumPy."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import torch
import xxhash

from ..errors import ConfigError, InputError, MissingDocumentsError, is_address, some
from ..model.memory import Memory, Stage
from .parts import FORMATS, Part
from .reader import Reader

Format = Literal["parquet", "arrow", "safetensors", "npy"]
Dtype = Literal["float32", "float16", "bfloat16"]

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
PART_BYTES = 1 << 30

# Of memory in hand at a time, decoded.
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        folder: where.
        format: of the files.
        stage: of the vectors.
        dtype: of their numbers.
        dim: their width.
        documents: with memory, of all parts.
        memory_tokens: of all parts: vectors.
        size: of all files but the manifest, in bytes.
        parts: how many there are.
        parts_before: parts that an earlier run had finished.
        seconds: the run took.
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
        """All of it as values that JSON knows."""
        return asdict(self)


def export(
    uri: str | Path,
    out: str | Path,
    *,
    format: Format = "parquet",  # noqa: A002 what the field and the command call it
    ids: Sequence[str] | None = None,
    dtype: Dtype | None = None,
    stage: Stage | None = None,
    part_documents: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> ExportReport:
    """Write the memory of a store's documents to files, or go on with an export that was stopped.

    Files come in parts, each of the same number of documents; docs/export.md describes them. A part is there whole or
    not at all, and what is finished is not written again.

    Args:
        uri: the store.
        out: a folder that is new, empty, or holds this export.
        format: of the files.
        ids: documents to write, in this order; all, in the order of the store, by default.
        dtype: of the numbers. Default: bfloat16 for safetensors, which alone knows it, otherwise float32.
        stage: of the vectors; as they are stored by default. ``"embedding"`` goes through the store's connector.
        part_documents: documents of a part; by default as many as give files of about a gigabyte.
        progress: told how many of how many documents have been written.

    Raises:
        ConfigError: a format does not know a dtype, or a store of stage "embedding" is to give hidden vectors.
        MissingDocumentsError: the store does not hold some of the ids.
        InputError: the folder holds something else, an id is given twice, a number is too large for float16, or a file
            cannot be written.
        StoreError: the store cannot be read.
    """
    began = time.monotonic()
    if is_address(out):
        raise ConfigError(f"{out}: an export is written to a folder; copy it from there.")
    folder = Path(out)
    dtype = dtype or ("bfloat16" if format == "safetensors" else "float32")
    if dtype not in FORMATS[format].dtypes:
        known = ", ".join(FORMATS[format].dtypes)
        raise ConfigError(f"{format} files do not hold {dtype}; they hold {known}. bfloat16 is for safetensors.")
    if part_documents is not None and part_documents < 1:
        raise ConfigError(f"a part holds at least one document, not {part_documents}.")
    manifest = _Manifest.read(folder)
    with Reader(uri, version=None if manifest is None else manifest.store["version"]) as reader:
        stored = reader.meta.stage
        if stage == "hidden" and stored == "embedding":
            raise ConfigError(f"{uri} stores vectors behind the connector; those before it cannot be had from them.")
        wanted = _Manifest.of(reader, format, dtype, stage or stored, ids, part_documents or 0)
        if manifest is None:
            _require_ids(reader, ids)
            manifest = replace(wanted, part_documents=part_documents or _part_documents(reader, wanted))
            _start(folder, manifest)
        else:
            _require_same(folder, manifest, wanted, part_documents)
        total = len(reader) if ids is None else len(ids)
        starts = range(0, total, manifest.part_documents)
        before = 0
        for number, start in enumerate(starts):
            stop = min(start + manifest.part_documents, total)
            if _is_finished(folder, manifest, number):
                before += 1
            else:
                batches = _batches(reader, ids, start, stop, manifest)
                manifest = _write_part(folder, manifest, number, batches, start, total, progress)
            if progress is not None:
                progress(stop, total)
    if not manifest.complete:
        manifest = replace(manifest, complete=True)
        manifest.write(folder)
    return ExportReport(
        folder=str(folder),
        format=format,
        stage=manifest.stage,
        dtype=dtype,
        dim=manifest.dim,
        documents=sum(part["documents"] for part in manifest.parts),
        memory_tokens=sum(part["memory_tokens"] for part in manifest.parts),
        size=sum(file["size"] for part in manifest.parts for file in part["files"]),
        parts=len(manifest.parts),
        parts_before=before,
        seconds=time.monotonic() - began,
    )


def read_ids(path: str | Path) -> list[str]:
    """Read document ids from a text file in UTF-8, one a line; empty lines do not count.

    Raises:
        InputError: it cannot be read, or holds no id.
    """
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 at byte {error.start}. Write the ids one a line, in UTF-8.") from error
    ids = [line.removesuffix("\r") for line in lines]
    if not (ids := [line for line in ids if line]):
        raise InputError(f"{path}: holds no id; write one a line.")
    return ids


@dataclass(frozen=True)
class _Manifest:
    """What an export is of, and which parts are finished."""

    store: Mapping[str, Any]
    format: str
    stage: Stage
    dtype: str
    dim: int
    ids: str | None
    part_documents: int
    complete: bool = False
    parts: tuple[Mapping[str, Any], ...] = ()
    manifest_version: int = MANIFEST_VERSION
    package_version: str = ""

    @classmethod
    def of(
        cls, reader: Reader, format_: str, dtype: str, stage: Stage, ids: Sequence[str] | None, part_documents: int
    ) -> Self:
        """That of an export that begins."""
        meta = reader.meta
        return cls(
            store={
                "version": reader.version,
                "format_version": meta.format_version,
                "fingerprint": meta.fingerprint.digest,
                "codec": meta.codec,
                "created_at": meta.created_at.isoformat(),
            },
            format=format_,
            stage=stage,
            dtype=dtype,
            dim=meta.dim if stage == meta.stage else reader.connector.out_dim,
            ids=None if ids is None else xxhash.xxh3_128_hexdigest(json.dumps(list(ids)).encode()),
            part_documents=part_documents,
            package_version=installed_version("pisco-index"),
        )

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """That of a folder; None for a folder that is new or empty."""
        if folder.is_file():
            raise InputError(f"{folder} is a file; an export needs a folder.")
        path = folder / MANIFEST
        if not path.is_file():
            if folder.is_dir() and (others := sorted(each.name for each in folder.iterdir() if each.name[0] != ".")):
                shown = some(others)
                raise InputError(f"{folder} is no export but holds {shown}. Name a new or empty folder.")
            return None
        try:
            values = json.loads(path.read_text("utf-8"))
            if values["manifest_version"] != MANIFEST_VERSION:
                raise ValueError(f"manifest_version {values['manifest_version']}")
            return cls(**(values | {"parts": tuple(values["parts"])}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is no manifest of an export of this version ({error!r}).") from error

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest, at once."""
        content = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        unfinished = folder / f".{MANIFEST}.tmp"
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(folder / MANIFEST)
        except OSError as error:
            raise InputError(f"{folder / MANIFEST}: cannot be written: {error.strerror}.") from error


def _start(folder: Path, manifest: _Manifest) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}.") from error
    manifest.write(folder)


def _require_ids(reader: Reader, ids: Sequence[str] | None) -> None:
    if ids is None:
        return
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        repeated = next(doc_id for doc_id in ids if doc_id in seen or seen.add(doc_id))
        raise InputError(f"the id {repeated!r} is given twice; an export holds every document once.")
    if absent := reader.missing(ids):
        raise MissingDocumentsError(f"the store does not hold {len(absent)} of the ids given: {some(absent)}.", absent)


def _require_same(folder: Path, manifest: _Manifest, wanted: _Manifest, part_documents: int | None) -> None:
    names = ["store", "format", "stage", "dtype", "dim", "ids"] + ["part_documents"] * (part_documents is not None)
    changed = [name for name in names if getattr(manifest, name) != getattr(wanted, name)]
    if changed:
        shown = ", ".join(f"{name} {getattr(manifest, name)!r}, not {getattr(wanted, name)!r}" for name in changed)
        raise InputError(f"{folder} holds another export: {shown}. Give the same, or name another folder.")


def _part_documents(reader: Reader, manifest: _Manifest) -> int:
    """So many documents that a part has about PART_BYTES."""
    return max(1, int(PART_BYTES / _document_bytes(reader, manifest)))


def _document_bytes(reader: Reader, manifest: _Manifest) -> float:
    per_document = reader.memory_tokens() / max(len(reader), 1)
    return max(per_document, 1) * manifest.dim * (4 if manifest.dtype == "float32" else 2)


def _is_finished(folder: Path, manifest: _Manifest, number: int) -> bool:
    if number >= len(manifest.parts):
        return False
    files = manifest.parts[number]["files"]
    return all((path := folder / f["name"]).is_file() and path.stat().st_size == f["size"] for f in files)


def _batches(reader: Reader, ids: Sequence[str] | None, start: int, stop: int, manifest: _Manifest) -> Iterator[Memory]:
    width = max(manifest.dim, reader.meta.dim)
    step = max(1, min(_BATCH_BYTES // (4 * width * 8), 1024))
    for first in range(start, stop, step):
        last = min(first + step, stop)
        memory = reader.read(first, last) if ids is None else reader.fetch(ids[first:last])
        yield reader.connector.connect(memory) if manifest.stage == "embedding" else memory


def _write_part(
    folder: Path,
    manifest: _Manifest,
    number: int,
    batches: Iterator[Memory],
    start: int,
    total: int,
    progress: Callable[[int, int], object] | None,
) -> _Manifest:
    """Write a part under other names, note it in the manifest, then give it its names."""
    name = f"part-{number:05d}"
    kind = FORMATS[manifest.format]
    recorded = {file["name"] for part in manifest.parts for file in part["files"]}
    if foreign := [each for each in kind.names(name) if (folder / each).exists() and each not in recorded]:
        raise InputError(f"{folder / foreign[0]}: is there already, and not of this export. Move it away.")
    try:
        with kind(folder, name, manifest.dim, manifest.dtype) as part:
            done = start
            for memory in batches:
                _add(part, memory, manifest.dtype)
                done += len(memory)
                if progress is not None:
                    progress(done, total)
        described = {
            "documents": part.documents,
            "memory_tokens": part.memory_tokens,
            "files": [_describe(folder / f".{each}.tmp", each) for each in kind.names(name)],
        }
        parts = (*manifest.parts[:number], described, *manifest.parts[number + 1 :])
        manifest = replace(manifest, parts=parts)
        manifest.write(folder)
        for each in kind.names(name):
            (folder / f".{each}.tmp").replace(folder / each)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{folder / name}: cannot be written: {getattr(error, 'strerror', None) or error}.") from error
    return manifest


def _add(part: Part, memory: Memory, dtype: str) -> None:
    values = memory.values.to(getattr(torch, dtype))
    if dtype == "float16" and not torch.equal(values.isinf(), memory.values.isinf()):
        raise InputError("the memory holds a number too large for float16 (65,504); choose another dtype.")
    # NumPy has no bfloat16; its 16 bits do.
    numbers = values.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else values.numpy()
    part.add(memory.doc_ids, numbers, np.array(memory.lengths, dtype=np.int64))


def _describe(path: Path, name: str) -> dict[str, Any]:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"name": name, "size": path.stat().st_size, "xxh3_64": digest.hexdigest()}
