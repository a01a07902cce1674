"""Files of questions in the forms that people have, and the runs that name their documents."""

from .question import Question, Questions
from .read import find_documents, read_questions
from .runs import RunFile, require_fields, write_run

__all__ = [
    "Question",
    "Questions",
    "RunFile",
    "find_documents",
    "read_questions",
    "require_fields",
    "write_run",
]
