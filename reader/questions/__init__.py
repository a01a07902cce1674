"""Files of questions in the forms that people have, and the runs that name their documents."""

from .question import Question, Questions
from .read import find_documents, read_questions
from .runs import RunFile, holds_run, require_fields, write_run

__all__ = [
    "Question",
    "Questions",
    "RunFile",
    "find_documents",
    "holds_run",
    "read_questions",
    "require_fields",
    "write_run",
]
