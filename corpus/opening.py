"""From paths to the sources of a corpus, and from a spec back to its source."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..configs.corpus import CorpusConfig
from ..errors import CorpusError
from .document import RecordError, Source, Tolerance, UnreadableError
from .fields import Fields, choose_fields
from .formats.columnar import ColumnarSource
from .formats.jsonl import JsonLinesSource, JsonObjectsSource, objects, parse_object
from .formats.mediawiki import MediaWikiSource
from .formats.tsv import TsvSource
from .formats.unrecognised import UnrecognisedSource
from .recognise import CorpusFile, Recognised, find_files, recognise
from .streams import ByteStream, TextFile, lines, stream_at, too_long

# Records that a file's fields are looked for in, where the first ones cannot be used.
_LOOKED_AT = 1000
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
    """An ordered stream of documents: the sources, one after another.

    Attributes:
        sources: in order.
        on_error: what they do about records that cannot be used.
    """

    sources: tuple[Source, ...]
    on_error: Literal["fail", "skip"] = "fail"


def open_corpus(paths: Sequence[str | Path], config: CorpusConfig) -> Corpus:
    """Recognise the files of a corpus and resolve their fields; nothing is read but their beginnings.

    Args:
        paths: files and folders, read in this order, and in a folder by name.
        config: how they are read.

    Raises:
        CorpusError: for a missing path or field, a file that is no corpus, and files of different formats. Where errors
            are skipped, a file that is no corpus or lacks a field is a source of one rejected record.
    """
    sources: list[Source] = []
    formats: dict[str, str] = {}
    seen: set[Path] = set()
    for path in paths:
        for file in find_files(path):
            if file.path in seen:
                raise CorpusError(f"{file.name}: given twice; every document must be read once.")
            seen.add(file.path)
            source = _open(file, config)
            if source is None:
                continue
            sources.append(source)
            if isinstance(source, UnrecognisedSource):
                continue
            # An object a file may stand on one line here and on several there.
            formats.setdefault("json" if source.spec["format"] == "jsonl" else source.spec["format"], file.name)
            if len(formats) > 1:
                both = " and ".join(f"{name} ({kind})" for kind, name in formats.items())
                raise CorpusError(f"{path}: files of different formats, {both}; name the files or the folder of one.")
    return Corpus(tuple(sources), config.on_error)


def relocate(spec: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The ``spec`` of the same file at another path."""
    if "file" in spec:
        return {**spec, "file": {**spec["file"], "path": path}}
    return {**spec, "path": path}


def open_source(spec: Mapping[str, Any]) -> Source:
    """Rebuild a source from its ``spec``, in this process or another.

    Raises:
        CorpusError: when the spec names a format that this version does not know.
    """
    source = _SOURCES.get(spec["format"])
    if source is None:
        raise CorpusError(f"format {spec['format']!r} is unknown; the plan was made by another version.")
    return source.from_spec(spec)


def _open(file: CorpusFile, config: CorpusConfig) -> Source | None:
    """Open a file; None for one with nothing in it."""
    try:
        found = _settle_format(file, recognise(file, config.on_error), config)
        return None if found.format == "empty" else _begin(file, found, config)
    except UnreadableError:
        raise
    except CorpusError as error:
        if config.on_error == "fail":
            raise
        return UnrecognisedSource(str(file.path), file.name, str(error).removeprefix(file.name).lstrip(":, "))


def _settle_format(file: CorpusFile, found: Recognised, config: CorpusConfig) -> Recognised:
    """Check the configured format against the bytes; lines of text are taken as the configuration says."""
    if found.format == "text" and config.format not in _LINE_FORMATS:
        raise CorpusError(
            f"{file.name}: plain text that begins {found.first_line[:40]!r}, neither JSON nor tab-separated."
            " A corpus has records with ids; write it as JSONL with the fields id and text."
        )
    if config.format in ("auto", found.format) or found.format == "empty":
        return found
    # The first line, by which they are told, may be one that cannot be used.
    if config.on_error == "skip" and {config.format, found.format} <= {"jsonl", "tsv"}:
        return Recognised(config.format, found.text, found.first_line)
    # Objects of a file each may stand on one line, and lines that look like prose may be a table of one column.
    if found.format == "text" or (config.format, found.format) == ("json", "jsonl"):
        return Recognised(config.format, found.text, found.first_line)
    raise CorpusError(
        f"{file.name}: {found.format}, but the format is set to {config.format} (by a preset, a file or --format). "
        "Choose the preset that fits, or --format auto."
    )


def _begin(file: CorpusFile, found: Recognised, config: CorpusConfig) -> Source:
    match found.format, found.text:
        case (("parquet" | "arrow" as kind), _):
            return ColumnarSource.begin(str(file.path), file.name, kind, config)
        case "mediawiki", TextFile() as text:
            return MediaWikiSource.begin(text, config)
        case "tsv", TextFile() as text:
            return TsvSource.begin(text, found.first_line, config)
        case _, TextFile() as text:
            return _begin_json(text, found, config)
    raise AssertionError(found.format)


def _begin_json(text: TextFile, found: Recognised, config: CorpusConfig) -> Source:
    is_array = found.first_line.startswith("[")
    fields = _json_fields(text, found, config)
    if found.format == "jsonl":
        return JsonLinesSource(text, fields, config.passage_words, Tolerance(config.on_error))
    return JsonObjectsSource(text, fields, config.passage_words, Tolerance(config.on_error), is_array=is_array)


def _json_fields(text: TextFile, found: Recognised, config: CorpusConfig) -> Fields:
    """The fields of the first record; where errors are skipped, of the first one that can be used."""
    looked_at = islice(_first_records(text, found, config), _LOOKED_AT if config.on_error == "skip" else 1)
    for record, where in looked_at:
        try:
            return choose_fields(tuple(record), config, where)
        except CorpusError:
            if config.on_error == "fail":
                raise
    return Fields(config.id_field or "id", config.text_field or "text", config.title_field)


def _first_records(text: TextFile, found: Recognised, config: CorpusConfig) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the first records that can be parsed, and where they are."""
    try:
        with stream_at(text, 0) as stream:
            for number, raw in _first_raw(stream, found):
                where = f"{text.name}, line {number}"
                try:
                    if raw is None:
                        raise too_long(where)
                    yield parse_object(raw, text.name, number), where
                except RecordError:
                    if config.on_error == "fail":
                        raise
    except UnreadableError:
        raise
    except CorpusError:
        # Reading meets the damage again, and says so.
        if config.on_error == "fail":
            raise


def _first_raw(stream: ByteStream, found: Recognised) -> Iterator[tuple[int, bytes | None]]:
    if found.format == "jsonl":
        return ((number, line) for number, _, line in lines(stream, None) if line is None or line.strip())
    return ((framed.line, framed.raw) for framed in objects(stream, None, found.first_line.startswith("[")))
