"""Many questions answered in batches, and the file of their answers."""

from .answers_file import AnswersFile, read_answers
from .engine import AnsweredQuestion, Answering
from .run import AnswerReport, AnswerSettings, answer_file

__all__ = [
    "AnswerReport",
    "AnswerSettings",
    "AnsweredQuestion",
    "Answering",
    "AnswersFile",
    "answer_file",
    "read_answers",
]
