"""Open the files of a corpus as sources, and a source again from its ``spec``."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..configs.corpus import CorpusConfig, OnError
from ..errors import CorpusError
from .document import Document, Source
from .files import DataFile, find_files
from .formats.columnar import ColumnarSource
from .formats.json_objects import JsonObjectsSource
from .formats.jsonl import JsonLinesSource
from .formats.mediawiki import MediaWikiSource
from .formats.tsv import TsvSource
from .formats.unrecognised import UnrecognisedSource
from .recognise import Recognised, recognise
from .rejected import UnreadableError

_LINE_FORMATS = ("jsonl", "json", "tsv")
_SOURCES: dict[str, Any] = {
    "jsonl": JsonLinesSource,
    "json": JsonObjectsSource,
    "tsv": TsvSource,
    "mediawiki": MediaWikiSource,
    "parquet": ColumnarSource,
    "arrow": ColumnarSource,
    "unrecognised": UnrecognisedSource,
}


@dataclass(frozen=True, slots=True)
class Corpus:
    """An ordered stream of documents: those of each source, one source after another.

    Attributes:
        sources: sources in reading order.
        on_error: treatment of records that cannot be used.
    """

    sources: tuple[Source, ...]
    on_error: OnError = "fail"


def open_corpus(paths: Sequence[str | Path], config: CorpusConfig) -> Corpus:
    """Recognise the files of a corpus and choose their fields. Only the beginning of each file is read.

    Args:
        paths: files and folders in reading order; the files of a folder are read by name.
        config: format, fields and treatment of errors.

    Raises:
        CorpusError: if a path or field is missing, a file is not a corpus, or the files have different formats. If
            errors are skipped, a file that is not a corpus or lacks a field becomes a source of one rejected record.
    """
    sources: list[Source] = []
    formats: dict[str, str] = {}
    seen: set[Path] = set()
    for path in paths:
        for file in find_files(path):
            if file.path in seen:
                raise CorpusError(f"{file.name}: the file is given twice. Name each file, or its folder, once.")
            seen.add(file.path)
            source = _open(file, config)
            if source is None:
                continue
            sources.append(source)
            if isinstance(source, UnrecognisedSource):
                continue
            # In a folder with one JSON object per file, some objects may stand on one line and look like JSONL.
            formats.setdefault("json" if source.spec["format"] == "jsonl" else source.spec["format"], file.name)
            if len(formats) > 1:
                both = " and ".join(f"{name} ({kind})" for kind, name in formats.items())
                raise CorpusError(
                    f"{path}: the files have different formats: {both}. Name only the files, or the folder, of one."
                )
    return Corpus(tuple(sources), config.on_error)


def find_documents(paths: Sequence[str | Path], config: CorpusConfig, wanted: Collection[str]) -> Iterator[Document]:
    """Yield documents of a corpus by id, in its order, reading no further than the last of them.

    Args:
        paths: files and folders of the corpus.
        config: format, fields and treatment of errors.
        wanted: ids of the documents. Ids that the corpus does not hold are ignored.

    Raises:
        CorpusError: if the corpus cannot be read.
    """
    remaining = set(wanted)
    for source in open_corpus(paths, config).sources:
        for document in source.read(0, None) if remaining else ():
            if document.doc_id in remaining:
                remaining.remove(document.doc_id)
                yield document
                if not remaining:
                    return


def open_source(spec: Mapping[str, Any]) -> Source:
    """Rebuild a source from its ``spec``, in this process or another.

    Raises:
        CorpusError: if this version does not know the format in the spec.
    """
    source = _SOURCES.get(spec["format"])
    if source is None:
        raise CorpusError(
            f"the format {spec['format']!r} of the plan is unknown. Resume the build with the version that planned it."
        )
    return source.from_spec(spec)


def _open(file: DataFile, config: CorpusConfig) -> Source | None:
    """Open a file; return None if there is nothing in it."""
    try:
        found = _settle_format(recognise(file, config.on_error), config)
        return None if found.format == "empty" else _SOURCES[found.format].begin(found, config)
    except UnreadableError:
        raise
    except CorpusError as error:
        if config.on_error == "fail":
            raise
        return UnrecognisedSource(str(file.path), file.name, str(error).removeprefix(file.name).lstrip(":, "))


def _settle_format(found: Recognised, config: CorpusConfig) -> Recognised:
    """Check the configured format against the recognised one, and prefer it for lines of text."""
    if found.format == "text" and config.format not in _LINE_FORMATS:
        raise CorpusError(
            f"{found.file.name}: the file is plain text that begins {found.first_line[:40]!r}, neither JSON nor"
            " tab-separated. A corpus has records with ids: write it as JSONL with the fields id and text."
        )
    if config.format in ("auto", found.format) or found.format == "empty":
        return found
    # JSONL and TSV are distinguished by the first line, which may be a broken record.
    if config.on_error == "skip" and {config.format, found.format} <= {"jsonl", "tsv"}:
        return replace(found, format=config.format)
    # A file of one JSON object may have one line, and lines that look like prose may be a table of one column.
    if found.format == "text" or (config.format, found.format) == ("json", "jsonl"):
        return replace(found, format=config.format)
    raise CorpusError(
        f"{found.file.name}: the format of the file is {found.format}, but it is set to {config.format} (by a preset, a"
        " configuration file, the store or --format). Choose the preset that fits, or --format auto."
    )
