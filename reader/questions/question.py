"""A question, and the questions of a file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question with its reference answers and documents.

    Attributes:
        id: id of the question in the file, or the number of its line.
        text: the question itself.
        answers: reference answers; empty if the question has none and needs none.
        doc_ids: ids of the documents to answer it from, best first; empty if the question names none and needs none.
    """

    id: str
    text: str
    answers: tuple[str, ...] = ()
    doc_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Questions:
    """The questions of a file.

    Attributes:
        asked: the questions, in the order of the file.
        form: form of the file and its fields, as recognised, for a person: ``"JSON lines: id, question, answers"``.
        ignored_queries: number of queries of the run that are not among the questions.
        warnings: sentences about what was ignored in the files.
    """

    asked: tuple[Question, ...]
    form: str = ""
    ignored_queries: int = 0
    warnings: tuple[str, ...] = ()
