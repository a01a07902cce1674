"""Open the files of a corpus as sources, and a source again from its ``spec``."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..configs.corpus import CorpusConfig, OnError
from ..errors import CorpusError
from .document import Document, Source
from .fields import listed
from .files import DataFile, find_files
from .formats.columnar import ColumnarSource
from .formats.json.lines import JsonLinesSource
from .formats.json.objects import JsonObjectsSource
from .formats.mediawiki import MediaWikiSource
from .formats.tsv import TsvSource
from .formats.unrecognised import UnrecognisedSource
from .left_out import LeftOut, is_event
from .recognise import Recognised, recognise
from .rejected import UnreadableError

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
        left_out: files and folders that stand in the given folders and are not read; hidden ones are not listed.
    """

    sources: tuple[Source, ...]
    on_error: OnError = "fail"
    left_out: tuple[LeftOut, ...] = ()


def open_corpus(paths: Sequence[str | Path], config: CorpusConfig) -> Corpus:
    """Recognise the files of a corpus and choose their fields. Only the beginning of each file is read.

    Args:
        paths: files, folders and patterns in reading order; the files of a folder are read by name.
        config: format, fields and treatment of errors.

    Raises:
        CorpusError: if a path or field is missing, a file is not a corpus, or the files have different formats. If
            errors are skipped, a file that is not a corpus or lacks a field becomes a source of one rejected record.
    """
    sources: list[Source] = []
    formats: dict[str, str] = {}
    left_out: list[LeftOut] = []
    seen: dict[tuple[Any, ...], DataFile] = {}
    headed: TsvSource | None = None
    for path in paths:
        for file in find_files(path, left_out.append):
            first = seen.setdefault(file.identity, file)
            if first is not file:
                left_out.append(_seen_twice(file, first))
                continue
            source = _open(file, config)
            if isinstance(source, LeftOut):
                left_out.append(source)
                continue
            sources.append(source)
            if isinstance(source, UnrecognisedSource):
                continue
            if isinstance(source, TsvSource):
                headed = _require_columns(source, headed, config)
            # In a folder with one JSON object per file, some objects may stand on one line and look like JSONL.
            formats.setdefault("json" if source.spec["format"] == "jsonl" else source.spec["format"], file.name)
            if len(formats) > 1:
                both = " and ".join(f"{name} ({kind})" for kind, name in formats.items())
                raise CorpusError(
                    f"{path}: the files have different formats: {both}. Name only the files, or the folder, of one."
                )
    return Corpus(tuple(sources), config.on_error, tuple(left_out))


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


def _seen_twice(file: DataFile, first: DataFile) -> LeftOut:
    """Leave out a file that was read by another path.

    Raises:
        CorpusError: it was named twice, so that the user expects its records twice.
    """
    if file.path == first.path or (file.is_named and first.is_named):
        link = "" if file.path == first.path else f": a link makes {first.name} the same file"
        raise CorpusError(f"{file.name}: the file is given twice{link}. Name each file, or its folder, once.")
    return LeftOut(file.name, f"the same file as {first.name}")


def _open(file: DataFile, config: CorpusConfig) -> Source | LeftOut:
    """Open a file; leave it out if there is nothing in it, or the events of a build."""
    try:
        found = recognise(file, config)
        _require_format(found, config)
        if found.format == "empty":
            return LeftOut(file.name, "empty")
        if not file.is_named and is_event(found.first_line):
            return LeftOut(file.name, "events of a build")
        return _begin(found, config)
    except UnreadableError:
        raise
    except CorpusError as error:
        if config.on_error == "fail":
            raise
        return UnrecognisedSource(str(file.path), file.name, str(error).removeprefix(file.name).lstrip(":, "))


def _begin(found: Recognised, config: CorpusConfig) -> Source:
    """Open a recognised file.

    Raises:
        CorpusError: if its beginning is not as the format demands. If the format is a guess, or other than the file
            looks, the message says so.
    """
    try:
        return _SOURCES[found.format].begin(found, config)
    except UnreadableError:
        raise
    except CorpusError as error:
        if config.format not in ("auto", found.guess):
            set_by = "by a preset, a configuration file or --format"
            hint = f"The file looks like {found.guess}, but its format is set to {found.format} ({set_by})."
        elif found.format != "tsv" and found.lines and "\t" in found.lines[0]:
            hint = f"The file was taken for {found.format} by its first bytes. If it is a table, set --format tsv."
        else:
            raise
        raise CorpusError(f"{error} {hint}") from None


def _require_columns(source: TsvSource, headed: TsvSource | None, config: CorpusConfig) -> TsvSource | None:
    """Check that a table without a header does not continue one with a header of other columns, cut into files.

    Returns:
        The last table with a header.
    """
    if source.header:
        return source
    if headed and config.columns is None and (headed.indices, headed.shape) != (source.indices, source.shape):
        raise CorpusError(
            f"{source.name}: the table has no header, but {headed.name} has one with other columns than"
            f" {listed(source.columns)}. If it continues that table, set columns to {listed(headed.columns)}."
        )
    return headed


def _require_format(found: Recognised, config: CorpusConfig) -> None:
    """Check that a file can have the configured format."""
    if found.format == "text":
        if len(found.lines) > 1 and all("," in line for line in found.lines):
            raise CorpusError(
                f"{found.file.name}: the file looks comma-separated: it begins {found.first_line[:40]!r}. Convert it to"
                " JSONL, e.g. in Python: pandas.read_csv(FILE, dtype=str).to_json(OUT, orient='records', lines=True)."
            )
        raise CorpusError(
            f"{found.file.name}: the file is plain text that begins {found.first_line[:40]!r}, neither JSON nor"
            " tab-separated. A corpus has records with ids: write it as JSONL with the fields id and text."
        )
    if config.format not in ("auto", found.format) and found.format != "empty":
        raise CorpusError(
            f"{found.file.name}: the format of the file is {found.format}, but it is set to {config.format} (by a"
            " preset, a configuration file, the store or --format). Choose the preset that fits, or --format auto."
        )
