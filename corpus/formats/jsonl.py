"""JSON lines: one object per line, as in BEIR, Pyserini and KILT."""

from collections.abc import Iterator
from typing import ClassVar, Self

from ...configs.corpus import CorpusConfig
from ..document import Document
from ..framing import lines, too_long
from ..recognise import Recognised
from ..rejected import RecordError, Rejecter, Tolerance
from ..streams import stream_at
from .json_record import choose_json_fields, document_of
from .text_source import TextSource


class JsonLinesSource(TextSource):
    """A file with one JSON object per line. Positions are offsets of lines."""

    format: ClassVar[str] = "jsonl"

    @classmethod
    def begin(cls, found: Recognised, config: CorpusConfig) -> Self:
        """Open a recognised file; its first record shows the fields.

        Raises:
            CorpusError: if there is no field for the id or the text.
        """
        text = found.text
        with stream_at(text, 0) as stream:
            framed = ((number, line) for number, _, line in lines(stream, None) if line is None or line.strip())
            fields = choose_json_fields(framed, text.name, config)
        return cls(text, fields, config.passage_words, Tolerance(config.on_error))

    def _records(self, start: int, stop: int | None, rejecter: Rejecter) -> Iterator[tuple[int, int, str, Document]]:
        with stream_at(self.file, start) as stream:
            for number, position, line in lines(stream, stop):
                if line is not None and not line.strip():
                    continue
                place = self.place(start, number, position)
                try:
                    if line is None:
                        raise too_long(place)
                    document = document_of(line, self, place, place, number if start == 0 else None)
                except RecordError as error:
                    rejecter.reject(error, position)
                    continue
                yield position, number, place, document
