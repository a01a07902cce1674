"""A corpus of text: recognised, validated, and read as documents from any record on.

``open_corpus`` gives the sources of some paths; a source's ``scan`` yields the records to plan with, its ``read`` the
documents of a range of them, and ``open_source`` opens it again from its ``spec`` in another process.
"""

from .document import REPEATED, Document, OnRejected, Record, RejectedRecord, Source
from .opening import Corpus, open_corpus, open_source, relocate

__all__ = [
    "REPEATED",
    "Corpus",
    "Document",
    "OnRejected",
    "Record",
    "RejectedRecord",
    "Source",
    "open_corpus",
    "open_source",
    "relocate",
]
