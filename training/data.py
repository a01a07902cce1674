"""Training data: read once, checked, and kept in an Arrow file from which records are read in any order."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..configs import CorpusConfig
from ..corpus import open_corpus
from ..errors import TrainingError
from ..places import input_paths

_Item = TypeVar("_Item")

# Number of records in a batch of the file. Writing holds one batch in RAM, and opening lists all batches.
BATCH_RECORDS = 1024
NonEmpty = Field(min_length=1, pattern=r"\S")
# Types of the validation errors that ``NonEmpty`` and empty lists give.
EMPTY_ERRORS = ("string_too_short", "string_pattern_mismatch", "too_short")


class DocumentText(BaseModel):
    """A document that questions are about."""

    model_config = ConfigDict(frozen=True)

    text: str = NonEmpty
    title: str | None = None


class Turn(BaseModel):
    """A question and the teacher's answer."""

    model_config = ConfigDict(frozen=True)

    question: str = NonEmpty
    answer: str = NonEmpty


class FinetuningRecord(BaseModel):
    """A line of fine-tuning data: documents, and a conversation about them.

    ``{"documents": [{"title": …, "text": …}, …], "question": …, "answer": …}``, or instead of question and answer
    ``"turns": [{"question": …, "answer": …}, …]`` about the same documents. Other fields are ignored.
    """

    model_config = ConfigDict(frozen=True)

    documents: tuple[DocumentText, ...] = Field(min_length=1)
    turns: tuple[Turn, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _one_turn(cls, values: Any) -> Any:
        if isinstance(values, dict) and "turns" not in values and ("question" in values or "answer" in values):
            return {**values, "turns": [{k: values[k] for k in ("question", "answer") if k in values}]}
        return values


class Records:
    """Records of an Arrow file by number: ``records[i]`` is a dictionary that also holds its ``origin``."""

    def __init__(self, path: Path):
        self._path = path
        self._batches: list[pa.RecordBatch] | None = None
        with pa.memory_map(str(path)) as source:
            self._rows = sum(batch.num_rows for batch in _read_batches(source))

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._batches is None:
            # Each process opens the file itself, because a data loader's workers are sent only the path.
            self._batches = _read_batches(pa.memory_map(str(self._path)))
        batch, row = divmod(index, BATCH_RECORDS)
        columns = self._batches[batch]
        record = orjson.loads(columns["record"][row].as_py())
        record["origin"] = columns["origin"][row].as_py()
        return record

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": None}


def _read_batches(source: Any) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(source)
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]


def read_texts(paths: Sequence[str], config: CorpusConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the documents of a corpus as records of ``title`` and ``text``, each with its origin; skip empty ones.

    Raises:
        CorpusError: for a file or record that cannot be read.
    """
    for source in open_corpus(paths, config).sources:
        for document in source.read(0, None):
            if document.text.strip():
                yield f"{source.name}, {document.doc_id}", {"title": document.title, "text": document.text}


def read_conversations(paths: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines of fine-tuning files as records of ``documents`` and ``turns``, each with its origin.

    Raises:
        TrainingError: naming the file, line and field that is missing or wrong.
    """
    for path in (path for place in paths for path in input_paths(place, TrainingError)[1]):
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        origin = f"{path}:{number}"
                        yield origin, _conversation(line, origin)
        except OSError as error:
            raise TrainingError(f"{path}: cannot be read: {error.strerror or error}.") from None


def _conversation(line: bytes, origin: str) -> dict[str, Any]:
    try:
        return FinetuningRecord.model_validate(json.loads(line.decode("utf-8-sig"))).model_dump(exclude_none=True)
    except UnicodeDecodeError as error:
        raise TrainingError(f"{origin}: not UTF-8: {error.reason}. Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise TrainingError(f"{origin}: not JSON: {error}. Each line must be one record.") from None
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(map(str, found["loc"])) or "the record"
        is_empty = found["type"] in EMPTY_ERRORS
        problem = "must not be empty" if is_empty else found["msg"][:1].lower() + found["msg"][1:]
        raise TrainingError(
            f"{origin}: {where}: {problem}. A record has documents, each with a text, and question and answer."
        ) from None


def write_records(path: Path, records: Iterable[tuple[str, dict[str, Any]]]) -> Records:
    """Write records to an Arrow file, which appears when it is complete.

    Raises:
        TrainingError: there are no records.
    """
    schema = pa.schema([("record", pa.large_binary()), ("origin", pa.string())])
    unfinished = path.with_suffix(".unfinished")
    count = 0
    with pa.ipc.new_file(str(unfinished), schema) as writer:
        for batch in chunks(records, BATCH_RECORDS):
            columns = [[orjson.dumps(record) for _, record in batch], [origin for origin, _ in batch]]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            count += len(batch)
    if not count:
        raise TrainingError("the training data holds no records.")
    unfinished.replace(path)
    return Records(path)


def chunks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield the items in lists of ``size``; the last one may be shorter."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
