"""From paths to the sources of a corpus, and from a spec back to its source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...configs.corpus import CorpusConfig
from ...errors import CorpusError
from .columnar import ColumnarSource
from .document import Source
from .fields import Fields, choose_fields
from .jsonl import JsonLinesSource, JsonObjectsSource, objects, parse_object
from .mediawiki import MediaWikiSource
from .recognise import CorpusFile, Recognised, find_files, recognise
from .streams import TextFile, lines, stream_at
from .tsv import TsvSource

_LINE_FORMATS = ("jsonl", "json", "tsv")
_SOURCES: dict[str, Any] = {
    "jsonl": JsonLinesSource,
    "json": JsonObjectsSource,
    "tsv": TsvSource,
    "mediawiki": MediaWikiSource,
    "parquet": ColumnarSource,
    "arrow": ColumnarSource,
}


@dataclass(frozen=True, slots=True)
class Corpus:
    """An ordered stream of documents: the sources, one after another."""

    sources: tuple[Source, ...]


def open_corpus(paths: Sequence[str | Path], config: CorpusConfig) -> Corpus:
    """Recognise the files of a corpus and resolve their fields; nothing is read but their beginnings.

    Args:
        paths: files and folders, read in this order, and in a folder by name.
        config: how they are read.

    Raises:
        CorpusError: for a missing path or field, a file that is no corpus, and files of different formats.
    """
    sources: list[Source] = []
    formats: dict[str, str] = {}
    seen: set[Path] = set()
    for path in paths:
        for file in find_files(path):
            if file.path in seen:
                raise CorpusError(f"{file.name}: given twice; every document must be read once.")
            seen.add(file.path)
            found = _settle_format(file, recognise(file), config)
            if found.format == "empty":
                continue
            # An object a file may stand on one line here and on several there.
            formats.setdefault("json" if found.format == "jsonl" else found.format, file.name)
            if len(formats) > 1:
                both = " and ".join(f"{name} ({kind})" for kind, name in formats.items())
                raise CorpusError(f"{path}: files of different formats, {both}; name the files or the folder of one.")
            sources.append(_begin(file, found, config))
    return Corpus(tuple(sources))


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


def _settle_format(file: CorpusFile, found: Recognised, config: CorpusConfig) -> Recognised:
    """Check the configured format against the bytes; lines of text are taken as the configuration says."""
    if found.format == "text" and config.format not in _LINE_FORMATS:
        raise CorpusError(
            f"{file.name}: plain text that begins {found.first_line[:40]!r}, neither JSON nor tab-separated."
            " A corpus has records with ids; write it as JSONL with the fields id and text."
        )
    if config.format in ("auto", found.format) or found.format == "empty":
        return found
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
            return _begin_json(text, found.format, config)
    raise AssertionError(found.format)


def _begin_json(text: TextFile, kind: str, config: CorpusConfig) -> Source:
    source = JsonLinesSource if kind == "jsonl" else JsonObjectsSource
    record, number = _first_record(text, kind)
    if record is None:
        return source(text, Fields("id", "text", None), config.passage_words)
    fields = choose_fields(tuple(record), config, f"{text.name}, line {number}")
    return source(text, fields, config.passage_words)


def _first_record(text: TextFile, kind: str) -> tuple[dict[str, Any] | None, int]:
    with stream_at(text, 0) as stream:
        if kind == "jsonl":
            for number, (_, line) in enumerate(lines(stream, None), 1):
                if line and not line.isspace():
                    return parse_object(line, text.name, number), number
        else:
            for framed in objects(stream, None):
                return parse_object(framed.raw, text.name, framed.line), framed.line
    return None, 1
