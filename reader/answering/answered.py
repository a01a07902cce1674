"""A question with its answer: a line of a file of answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question with its answer, or with the reason for having none.

    Attributes:
        id: id of the question.
        question: the question.
        answer: the answer; None if there is none.
        error: reason why there is no answer; None if there is one.
        documents: ids of the documents that it was answered from, best first.
        scores: the retriever's scores of these documents; empty if the question named them itself.
        missing: ids of its documents that were left out, because the store holds no memory of them.
        memory_tokens: number of memory vectors in the prompt.
        text_tokens: number of tokens of the documents' text that they stand for.
        prompt_tokens: number of tokens of the prompt, memory included.
        seconds: time spent on its window and on its batch, divided by the number of questions in each.
    """

    id: str
    question: str
    answer: str | None
    error: str | None
    documents: tuple[str, ...]
    scores: tuple[float, ...]
    missing: tuple[str, ...]
    memory_tokens: int
    text_tokens: int
    prompt_tokens: int
    seconds: float
