"""Files of questions in the forms that people have, and the runs that name their documents."""

from .question import Question, Questions
from .read import RUN_DOCUMENTS, find_documents, read_questions
from .runs import RunFile, require_fields, write_run

__all__ = [
    "RUN_DOCUMENTS",
    "Question",
    "Questions",
    "RunFile",
    "find_documents",
    "read_questions",
    "require_fields",
    "write_run",
]
