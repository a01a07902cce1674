"""The formats of an export: each writes the files of one part, batch by batch."""

import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..configs.names import ExportFormat

# Room for a safetensors header. The header is written last, when the shapes are known, and the format allows padding it
# with spaces; two tensors need about 200 bytes.
_HEADER_BYTES = 512


class Part(ABC):
    """Writer of one part of an export. Leaving its ``with`` block without an error completes the files.

    Each file is written under a hidden name, ``.NAME.tmp``.

    Attributes:
        dtypes: dtypes that the format can hold.
        documents: number of documents added so far.
        memory_tokens: number of vectors added so far.
    """

    dtypes: ClassVar[tuple[str, ...]]

    def __init__(self, folder: Path, name: str, dim: int, dtype: str):
        self.folder = folder
        self.name = name
        self.dim = dim
        self.dtype = dtype
        self.documents = 0
        self.memory_tokens = 0

    @classmethod
    @abstractmethod
    def names(cls, name: str) -> tuple[str, ...]:
        """Return the names of the files of a part."""

    def add(self, doc_ids: Sequence[str], values: np.ndarray, lengths: np.ndarray) -> None:
        """Write k documents.

        Args:
            doc_ids: ids of the documents, k.
            values: memory of the documents ``(Σ n_mem, dim)`` in the part's dtype; bfloat16 as the uint16 of its bits.
            lengths: ``n_mem`` of each document, ``(k,)`` int64.
        """
        self._write(doc_ids, values, lengths)
        self.documents += len(doc_ids)
        self.memory_tokens += len(values)

    def hidden(self, name: str) -> Path:
        """Return the path of a file until the part is finished."""
        return self.folder / f".{name}.tmp"

    @abstractmethod
    def _write(self, doc_ids: Sequence[str], values: np.ndarray, lengths: np.ndarray) -> None: ...

    @abstractmethod
    def _finish(self) -> None:
        """Write what is known only after the last document."""

    @abstractmethod
    def _close(self) -> None:
        """Close the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._close()


class _Columnar(Part):
    """A table with one row per document: ``doc_id``, ``n_mem``, and ``memory``, a list of lists of ``dim`` numbers."""

    dtypes = ("float32", "float16")

    def __init__(self, folder: Path, name: str, dim: int, dtype: str):
        super().__init__(folder, name, dim, dtype)
        number = pa.float32() if dtype == "float32" else pa.float16()
        fields = [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("n_mem", pa.int32(), nullable=False),
            pa.field("memory", pa.list_(pa.list_(number, dim)), nullable=False),
        ]
        self._schema = pa.schema(fields, metadata={"dim": str(dim)})
        (file,) = self.names(name)
        self._writer = self._open(str(self.hidden(file)))

    def _write(self, doc_ids: Sequence[str], values: np.ndarray, lengths: np.ndarray) -> None:
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), self.dim)
        memory = pa.ListArray.from_arrays(pa.array(offsets), vectors)
        columns = [pa.array(doc_ids, pa.string()), pa.array(lengths.astype(np.int32)), memory]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def _finish(self) -> None:
        pass

    def _close(self) -> None:
        self._writer.close()

    @abstractmethod
    def _open(self, path: str) -> Any: ...


class _Parquet(_Columnar):
    @classmethod
    def names(cls, name: str) -> tuple[str, ...]:
        return (f"{name}.parquet",)

    def _open(self, path: str) -> Any:
        # Splitting numbers into planes of bytes compresses values that came from bfloat16 to a third.
        split = {"use_byte_stream_split": ["memory.list.element.list.element"]} if self.dtype == "float32" else {}
        return pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=False, **split)


class _Arrow(_Columnar):
    @classmethod
    def names(cls, name: str) -> tuple[str, ...]:
        return (f"{name}.arrow",)

    def _open(self, path: str) -> Any:
        return pa.ipc.new_file(path, self._schema)


class _Flat(Part):
    """One array of all vectors, offsets into it, and a list of ids."""

    def __init__(self, folder: Path, name: str, dim: int, dtype: str):
        super().__init__(folder, name, dim, dtype)
        self._lengths: list[np.ndarray] = []
        self._doc_ids: list[str] = []
        self._file: BinaryIO = self.hidden(self.names(name)[0]).open("wb")
        self._file.write(self._header())

    def _write(self, doc_ids: Sequence[str], values: np.ndarray, lengths: np.ndarray) -> None:
        self._doc_ids += doc_ids
        self._lengths.append(lengths)
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        self._file.write(np.ascontiguousarray(little).data)

    def _finish(self) -> None:
        lengths = np.concatenate([np.zeros(1, np.int64), *self._lengths])
        self._write_offsets(np.cumsum(lengths).astype("<i8"))
        self._file.seek(0)
        self._file.write(self._header())
        ids = self.names(self.name)[-1]
        self.hidden(ids).write_text(json.dumps(self._doc_ids, ensure_ascii=False) + "\n", "utf-8")

    def _close(self) -> None:
        self._file.close()

    @abstractmethod
    def _header(self) -> bytes:
        """Return the header of the file of vectors for the documents so far; its length never changes."""

    @abstractmethod
    def _write_offsets(self, offsets: np.ndarray) -> None: ...


class _Safetensors(_Flat):
    """Tensors ``values (Σ n_mem, dim)`` and ``offsets (documents + 1,)`` int64, in one file."""

    dtypes = ("bfloat16", "float16", "float32")

    @classmethod
    def names(cls, name: str) -> tuple[str, ...]:
        return (f"{name}.safetensors", f"{name}.ids.json")

    # The library's writer would need whole tensors in memory.
    def _header(self) -> bytes:
        name, size = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}[self.dtype]
        middle = self.memory_tokens * self.dim * size
        count = self.documents + 1
        tensors = {
            "values": {"dtype": name, "shape": [self.memory_tokens, self.dim], "data_offsets": [0, middle]},
            "offsets": {"dtype": "I64", "shape": [count], "data_offsets": [middle, middle + 8 * count]},
        }
        return struct.pack("<Q", _HEADER_BYTES) + json.dumps(tensors).encode().ljust(_HEADER_BYTES)

    def _write_offsets(self, offsets: np.ndarray) -> None:
        self._file.write(offsets.data)


class _Npy(_Flat):
    """Arrays ``values (Σ n_mem, dim)`` and ``offsets (documents + 1,)`` int64, each in its own file."""

    dtypes = ("float32", "float16")

    @classmethod
    def names(cls, name: str) -> tuple[str, ...]:
        return (f"{name}.values.npy", f"{name}.offsets.npy", f"{name}.ids.json")

    def _header(self) -> bytes:
        shape = (self.memory_tokens, self.dim)
        described = {"descr": np.dtype(self.dtype).newbyteorder("<").str, "fortran_order": False, "shape": shape}
        header = BytesIO()
        # NumPy leaves room in it for the first axis to grow.
        np.lib.format.write_array_header_1_0(header, described)
        return header.getvalue()

    def _write_offsets(self, offsets: np.ndarray) -> None:
        with self.hidden(self.names(self.name)[1]).open("wb") as file:
            np.save(file, offsets)


FORMATS: dict[ExportFormat, type[Part]] = {
    "parquet": _Parquet,
    "arrow": _Arrow,
    "safetensors": _Safetensors,
    "npy": _Npy,
}
"""Writers of a part, by the name of the format."""
