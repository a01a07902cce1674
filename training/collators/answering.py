"""Collators of the second stage: answer questions from the memory of documents."""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import torch

from ...configs import CompressionConfig
from ...errors import TrainingError
from ...model.families import Checkpoint
from ...model.generation import read_generation_defaults
from ...model.passages import TokenizedDocument, clean_text
from ...model.prompt import prompt_text
from ...model.trainable import IGNORED
from .base import Collator, Record, Sample, input_text

log = logging.getLogger(__name__)


class QuestionAnswering(Collator):
    """Answers questions about documents, with the loss on the answer of each turn.

    If the documents do not fit into ``max_tokens`` together with the turns, the last ones are left out, until one
    remains.

    Args:
        checkpoint: see ``Collator``.
        compression: see ``Collator``.
        text_ratio: share of batches whose documents are given as text, so that the decoder does not forget to read it.
        options: see ``Collator``.

    Attributes:
        dropped: number of documents left out so far.
    """

    def __init__(
        self, checkpoint: Checkpoint, compression: CompressionConfig, *, text_ratio: float = 0.0, **options: Any
    ):
        super().__init__(checkpoint, compression, **options)
        self.text_ratio = text_ratio
        self.as_text = False
        self.dropped = 0
        self._stop_token_ids = read_generation_defaults(
            checkpoint.decoder_folder, checkpoint.decoder_tokenizer
        ).stop_token_ids
        self._has_warned = False

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Return a batch whose prompts all read memory or all read text, since those with text are much longer."""
        self.as_text = float(torch.rand(())) < self.text_ratio
        return super().__call__(records)

    def sample(self, record: Record) -> Sample:
        """Return a sample of the conversation about the record's documents."""
        turns = [(turn["question"].strip(), clean_text(turn["answer"]).strip()) for turn in record["turns"]]
        question = turns[0][0]
        shown: Sequence[int | str]
        if self.as_text:
            documents, shown = [], [input_text(document, self.compression) for document in record["documents"]]
        else:
            documents = self.tokenize(record["documents"], question)
            shown = [document.n_mem for document in documents]
        ids, labels = self._label(shown, turns)
        while self.max_tokens is not None and len(ids) > self.max_tokens and len(shown) > 1:
            self._count_dropped(record)
            shown = shown[:-1]
            ids, labels = self._label(shown, turns)
        passages = chain.from_iterable(document.passages for document in documents[: len(shown)])
        return Sample(list(passages), ids, labels)

    def tokenize(self, documents: Sequence[Record], question: str) -> list[TokenizedDocument]:  # noqa: ARG002
        """Return the passages of each document, a record of ``text`` and perhaps ``title``."""
        texts = [input_text(document, self.compression) for document in documents]
        repeated = [self.compression.repeated_heading(document.get("title")) for document in documents]
        return list(self.passage_tokenizer.tokenize(texts, repeated))

    def _label(self, shown: Sequence[int | str], turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        ids, labels, ends = label_answers(self.decoder_tokenizer, shown, turns, self._stop_token_ids)
        if not ends and not self._has_warned:
            self._has_warned = True
            log.warning(
                "the decoder's chat template ends answers with none of the tokens at which the decoder stops (%s). "
                "Stopping is not learned.",
                ", ".join(map(str, self._stop_token_ids)) or "it has none",
            )
        return ids, labels

    def _count_dropped(self, record: Record) -> None:
        if not self.dropped:
            log.warning(
                "%s: its documents do not fit into %d tokens, so the last ones are left out. This is reported "
                "once, not for every record.",
                record.get("origin", "a record"),
                self.max_tokens,
            )
        self.dropped += 1


class QueryDependent(QuestionAnswering):
    """Answers from the memory of (question, document) pairs, as OSCAR does: each passage begins with the question.

    Documents are cut so that the question and a piece make one passage. A record has one question, since memory that
    was made for one question does not serve the next.
    """

    def __init__(self, checkpoint: Checkpoint, compression: CompressionConfig, **options: Any):
        # The pieces are passages already. One that has a token too many, when tokenized together, loses that token.
        super().__init__(checkpoint, compression.model_copy(update={"on_long": "truncate", "overlap": 0}), **options)
        self.compression = compression

    def sample(self, record: Record) -> Sample:
        """Return a sample of the question about the record's documents.

        Raises:
            TrainingError: the record has several questions, or its question leaves no room for a document.
        """
        if len(record["turns"]) > 1:
            raise TrainingError(
                f"has {len(record['turns'])} turns, and memory that depends on the question is made for one. Give each "
                "question a record of its own."
            )
        return super().sample(record)

    def tokenize(self, documents: Sequence[Record], question: str) -> list[TokenizedDocument]:
        """Return the passages of each document, each of which begins with the question."""
        prefix = f"Query: {clean_text(question)}\n Document: "
        texts = [clean_text(input_text(document, self.compression)) for document in documents]
        return [self._join([prefix + piece for piece in self.pieces(prefix, text)]) for text in texts]

    def pieces(self, prefix: str, text: str) -> Iterator[str]:
        """Cut a text into pieces, each of which makes one passage together with the prefix."""
        room = self.compression.max_length - self.special_tokens
        while True:
            starts = [start - len(prefix) for start in self.token_starts(prefix + text)]
            if len(starts) <= room:
                yield text
                return
            end, following = starts[max(room, 0)], starts[max(room - self.compression.overlap, 0)]
            if following <= 0:
                raise TrainingError(
                    f"the question leaves no room for a document among {self.compression.max_length} tokens. Raise "
                    "compression.max_length."
                )
            yield text[:end]
            if self.compression.on_long == "truncate":
                return
            text = text[following:]

    def _join(self, texts: Sequence[str]) -> TokenizedDocument:
        """Return the passages of a document whose pieces are tokenized one by one."""
        cut = list(self.passage_tokenizer.tokenize(texts))
        return TokenizedDocument(
            passages=tuple(chain.from_iterable(each.passages for each in cut)),
            n_mem=sum(each.n_mem for each in cut),
            tokens_total=sum(each.tokens_total for each in cut),
            tokens_fed=sum(each.tokens_fed for each in cut),
        )


def label_answers(
    tokenizer: Any,
    documents: Sequence[int | str],
    turns: Sequence[tuple[str, str]],
    stop_token_ids: Sequence[int],
) -> tuple[list[int], list[int], bool]:
    """Return the token ids of a conversation about documents, its labels, and whether each answer has a stop token.

    The labels are on each answer and on what follows it, up to the first stop token; on one token if there is none
    before the next answer. PISCO also puts labels on the text that the chat template writes around an answer, such as
    line breaks. What lies behind the stop token is never generated, so it is not learned here.

    Args:
        tokenizer: the decoder's tokenizer.
        documents: number of memory tokens of each document, or its text.
        turns: questions with their answers.
        stop_token_ids: ids of the tokens at which the decoder stops.

    Raises:
        TrainingError: the chat template changes an answer.
    """
    text, spans = _conversation_text(tokenizer, documents, turns)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    labels = [IGNORED] * len(ids)
    token, all_end = 0, True
    for number, ((start, end), (following, _)) in enumerate(pairwise([*spans, (len(text), 0)])):
        while offsets[token][1] <= start:
            token += 1
        while token < len(ids) and offsets[token][0] < end:
            labels[token] = ids[token]
            token += 1
        # A stop token behind the next question ends the user's turn.
        asked = text.find(turns[number + 1][0], end, following) if number + 1 < len(turns) else -1
        limit = following if asked < 0 else asked
        behind = (place for place in range(token, len(ids)) if offsets[place][1] <= limit)
        stop = next((place for place in behind if ids[place] in stop_token_ids), None)
        all_end = all_end and stop is not None
        last = stop + 1 if stop is not None else min(token + 1, len(ids))
        labels[token:last] = ids[token:last]
    return ids, labels, all_end


def _conversation_text(
    tokenizer: Any, documents: Sequence[int | str], turns: Sequence[tuple[str, str]]
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation by the chat template, and the first and last position of each answer in it.

    Searching for an answer could find it in a document or in the template's own words. So the conversation is written
    with marks for the answers, and the answers then replace the marks.
    """
    questions, answers = zip(*turns, strict=True)

    def render(said: Sequence[str]) -> str:
        further = list(zip(questions[1:], said[1:], strict=True))
        return prompt_text(tokenizer, questions[0], documents, answer=said[0], further=further)

    # Characters of Unicode's private use area, which no template writes.
    marks = [f"\ue000{number}\ue001" for number in range(len(turns))]
    text, remaining, spans = "", render(marks), []
    for mark, answer in zip(marks, answers, strict=True):
        before, _, remaining = remaining.partition(mark)
        start = len(text) + len(before)
        spans.append((start, start + len(answer)))
        text += before + answer
    text += remaining
    if text != render(answers):
        raise TrainingError("the decoder's chat template changes what is said, so the answers cannot be found in it.")
    return text, spans
