"""The two readings of a source, made of the events that its format yields."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator

from ..document import Document, Dropped, Event, Record
from ..rejected import OnRejected, RecordError, Rejecter, Tolerance
from ..split import split_document


class RecordSource(ABC):
    """A source whose format finds the records. A subclass implements ``walk``, and ``survey`` if that can be cheaper.

    Several threads may ``read`` one source at a time.

    Attributes:
        name: path of the file as messages show it.
        passage_words: number of words that texts are cut into; None if each record is one document.
        tolerance: treatment of records that cannot be used.
    """

    name: str
    passage_words: int | None
    tolerance: Tolerance

    @abstractmethod
    def walk(self, start: int, stop: int | None) -> Iterator[Event]:
        """Yield everything between two positions, in order.

        Raises:
            CorpusError: if the next record cannot be found.
        """

    def survey(self, start: int, stop: int | None) -> Iterator[Event]:
        """Yield what ``walk`` yields, perhaps without texts.

        Raises:
            CorpusError: if the next record cannot be found.
        """
        return self.walk(start, stop)

    @property
    def cleaning(self) -> str | None:
        """Identity of the cleaning of texts; None if they are not cleaned, so that it costs little to read them."""
        return None

    def documents(self, document: Document, place: str) -> Iterable[Document]:  # noqa: ARG002
        """Cut a document that ``walk`` yielded.

        Raises:
            RecordError: if the document cannot be cleaned.
        """
        return split_document(document, self.passage_words)

    def see(self, ids: Iterable[str]) -> None:  # noqa: B027  only formats with several versions of a record need it
        """Note the ids of records that were met."""

    def scan(self, dropped: Counter[str], on_rejected: OnRejected = bool) -> Iterator[Record]:
        """Validate the whole file and yield its records in order."""
        rejecter = Rejecter(self.name, self.tolerance, on_rejected)
        for position, number, _, item in rejecter.until_damage(self.survey(0, None)):
            if item.doc_id:
                self.see([item.doc_id])
            if isinstance(item, Document):
                yield Record(position, item.doc_id, len(item.text), number)
            elif isinstance(item, Record):
                yield item
            elif isinstance(item, Dropped):
                dropped[item.reason] += item.count
            else:
                rejecter.reject(item, position)

    def read(self, start: int, stop: int | None, on_rejected: OnRejected = bool) -> Iterator[Document]:
        """Yield the documents of the records from position ``start`` up to, but not including, ``stop``."""
        rejecter = Rejecter(self.name, self.tolerance, on_rejected)
        for position, _, place, item in rejecter.until_damage(self.walk(start, stop)):
            if isinstance(item, RecordError):
                rejecter.reject(item, position)
            elif isinstance(item, Document) and not rejecter.rejects_repeated(position, item.doc_id, place):
                try:
                    yield from self.documents(item, place)
                except RecordError as error:
                    rejecter.reject(error, position)
