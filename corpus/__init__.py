"""Read a corpus: files → documents → passages of N words.

``open_corpus`` opens each data file as a ``Source``. The source's ``scan`` yields the records to plan with, and its
``read`` yields the documents of any range of records. ``open_source`` opens the source again in another process.
"""

from .document import Document, Record, Source, Versioned
from .left_out import LeftOut
from .opening import Corpus, find_documents, open_corpus, open_source
from .rejected import REPEATED, OnRejected, RejectedRecord
from .spec import is_cut, reading_options, relocate, taken_for, with_repeated

__all__ = [
    "REPEATED",
    "Corpus",
    "Document",
    "LeftOut",
    "OnRejected",
    "Record",
    "RejectedRecord",
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
