"""Read a corpus: files → documents → passages of N words.

``open_corpus`` opens each data file as a ``Source``. The source's ``scan`` yields the records to plan with, and its
``read`` yields the documents of any range of records. ``open_source`` opens the source again in another process.
"""

from .document import Document, Dropped, Event, Record, Source, Versioned
from .left_out import LeftOut
from .opening import Corpus, find_documents, open_corpus, open_source
from .rejected import REPEATED, OnRejected, RecordError, RejectedRecord, Rejecter
from .spec import is_cut, reading_options, relocate, taken_for, with_repeated

__all__ = [
    "REPEATED",
    "Corpus",
    "Document",
    "Dropped",
    "Event",
    "LeftOut",
    "OnRejected",
    "Record",
    "RecordError",
    "RejectedRecord",
    "Rejecter",
    "Source",
    "Versioned",
    "find_documents",
    "is_cut",
    "open_corpus",
    "open_source",
    "reading_options",
    "relocate",
    "taken_for",
    "with_repeated",
]
