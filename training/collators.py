"""Collators: from records of training data to the tensors of a batch.

A task turns one record into a ``Sample``: passages for the compressor, and a prompt for the decoder with labels on
what it is to learn. ``Collator`` pads samples into a batch, and is where the one rule is checked: a prompt has as many
memory tokens as its passages. To train on something else, subclass ``Collator`` and write ``sample``
(docs/training.md has an example).
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..configs import CompressionConfig
from ..configs.training import CONTINUED
from ..errors import TrainingError
from ..model.families.pisco import Checkpoint
from ..model.passages import AUTOENCODING_TOKEN, MEMORY_TOKEN, PassageTokenizer, TokenizedDocument, clean_text
from ..model.prompt import prompt_text
from ..model.trainable import IGNORED

Record = Mapping[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One prompt to learn from.

    Attributes:
        passages: compressor ids of each passage whose memory the prompt reads, in order, memory tokens included.
        input_ids: decoder ids, with a ``<MEM>`` for every memory token of the passages.
        labels: what is to be predicted of ``input_ids``, -100 elsewhere; as long as they.
    """

    passages: Sequence[Sequence[int]]
    input_ids: Sequence[int]
    labels: Sequence[int]


class Collator(ABC):
    """Base of all collators.

    Args:
        checkpoint: whose tokenizers and compression rate are used.
        compression: how documents become passages.
        max_tokens: most tokens of a prompt with its answer; default: the decoder's context.
    """

    def __init__(self, checkpoint: Checkpoint, compression: CompressionConfig, *, max_tokens: int | None = None):
        self.compression = compression
        self.max_tokens = max_tokens
        self.compressor_tokenizer = checkpoint.compressor_tokenizer
        self.decoder_tokenizer = checkpoint.decoder_tokenizer
        self.passages = PassageTokenizer(
            checkpoint.compressor_tokenizer,
            rate=checkpoint.rate,
            max_length=compression.max_length,
            on_long=compression.on_long,
            overlap=compression.overlap,
        )
        self.special_tokens = _special_tokens(checkpoint.compressor_tokenizer)
        self.decoder_memory_id: int = self.decoder_tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)

    @abstractmethod
    def sample(self, record: Record) -> Sample:
        """Make a sample of one record.

        Raises:
            TrainingError: if it cannot be one; the message says why and the caller says where.
        """

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """A batch: what ``TrainableModel.forward`` takes.

        Raises:
            TrainingError: naming the record that cannot be used.
        """
        samples = []
        for record in records:
            try:
                samples.append(self._checked(self.sample(record)))
            except TrainingError as error:
                raise TrainingError(f"{record.get('origin', 'a record')}: {error}") from None
        passages = list(chain.from_iterable(sample.passages for sample in samples))
        mask = [torch.ones(len(ids), dtype=torch.bool) for ids in passages]
        return {
            "passages": _pad(passages, 0),
            "passage_mask": pad_sequence(mask, batch_first=True) if mask else torch.zeros(0, 0, dtype=torch.bool),
            "input_ids": _pad([sample.input_ids for sample in samples], self.decoder_tokenizer.pad_token_id or 0),
            "labels": _pad([sample.labels for sample in samples], IGNORED),
        }

    def _checked(self, sample: Sample) -> Sample:
        given = sum(ids.count(self.passages.memory_token_id) for ids in map(list, sample.passages))
        taken = list(sample.input_ids).count(self.decoder_memory_id)
        if given != taken:
            raise TrainingError(f"the prompt has {taken} memory tokens, but its passages give {given}.")
        if self.max_tokens is not None and len(sample.input_ids) > self.max_tokens:
            raise TrainingError(
                f"the prompt has {len(sample.input_ids)} tokens with its answer, and {self.max_tokens} fit. Give it "
                "fewer documents or a shorter answer, or raise max_tokens."
            )
        if len(sample.labels) != len(sample.input_ids):
            raise TrainingError(f"{len(sample.labels)} labels for {len(sample.input_ids)} tokens.")
        if all(label == IGNORED for label in sample.labels[1:]):
            raise TrainingError("nothing is to be learned from it: no label.")
        return sample

    def compress(self, text: str, repeated: str = "") -> TokenizedDocument:
        """Cut a text into passages, as a build does; each further one begins with ``repeated``."""
        (document,) = self.passages.tokenize([text], [repeated])
        return document

    def token_starts(self, text: str) -> list[int]:
        """Where each compressor token of a text begins; tokens that share a character share its place."""
        encoded = self.compressor_tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
        return [start for start, _ in encoded["offset_mapping"]]

    def memory_ids(self, count: int) -> list[int]:
        """So many memory tokens of the decoder."""
        return [self.decoder_memory_id] * count

    def decoder_ids(self, text: str) -> list[int]:
        """A text's decoder ids, no special tokens added."""
        return self.decoder_tokenizer(clean_text(text), add_special_tokens=False)["input_ids"]

    def opening_ids(self) -> list[int]:
        """What a sequence of this decoder begins with: its BOS, where it has one."""
        bos = self.decoder_tokenizer.bos_token_id
        return [] if bos is None else [bos]


class Autoencoding(Collator):
    """The text again from its memory: ``<MEM>`` × n ``<AE>`` text, the loss on the text and its end.

    A text of more than ``max_length`` tokens is read from the memory of several passages. Of one that is longer than
    the window, a piece is taken, at random.

    Args:
        checkpoint: see ``Collator``.
        compression: see ``Collator``.
        windows: most compressor tokens of a text, special tokens counted; one of these is drawn for each batch, so
            that little of it is padding.
        options: see ``Collator``.
    """

    def __init__(
        self, checkpoint: Checkpoint, compression: CompressionConfig, *, windows: Sequence[int], **options: Any
    ):
        super().__init__(checkpoint, compression, **options)
        self.windows = tuple(windows)
        self.window = self.windows[0]
        self.autoencoding_id: int = self.decoder_tokenizer.convert_tokens_to_ids(AUTOENCODING_TOKEN)

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """A batch of one window."""
        self.window = self.windows[int(torch.randint(len(self.windows), ()))]
        return super().__call__(records)

    def sample(self, record: Record) -> Sample:
        """The whole text, or a window of it."""
        text = clean_text(_input_text(record, self.compression))
        # A window of max_length tokens is to be one passage, with the special tokens around it.
        (text,) = self.cut(text, self.token_starts(text), [max(1, self.window - self.special_tokens)])
        document = self.compress(text, self.compression.repeated(record.get("title")))
        target = self.decoder_ids(text)
        end = self.decoder_tokenizer.eos_token_id
        if end is not None:
            target.append(end)
        prompt = [*self.opening_ids(), *self.memory_ids(document.n_mem), self.autoencoding_id]
        return Sample(document.passages, prompt + target, [IGNORED] * len(prompt) + target)

    def cut(self, text: str, starts: Sequence[int], sizes: Sequence[int]) -> list[str]:
        """Neighbouring pieces of a text, of so many compressor tokens, from a random place on; of a short text, fewer.

        No character is cut in two, so a piece may be shorter, and empty where its tokens are parts of one character;
        all together are not. Drawn from torch's generator, whose state a resumed training restores.

        Args:
            text: what is cut.
            starts: its ``token_starts``.
            sizes: tokens of each piece.
        """
        free = len(starts) - sum(sizes)
        place = int(torch.randint(free + 1, ())) if free > 0 else 0
        first = _next_character(starts, place)
        if first == len(starts) > 0:
            first = starts.index(starts[-1])
        edges = [first, *(max(first, place + tokens) for tokens in accumulate(sizes))]
        edges[-1] = max(edges[-1], _next_character(starts, first + 1))
        positions = [starts[edge] if edge < len(starts) else len(text) for edge in edges]
        return [text[begin:end] for begin, end in pairwise(positions)]


class Continuation(Autoencoding):
    """What follows: a clear beginning, a compressed middle, the loss on the text behind it.

    The window is cut at random into the three.
    """

    def sample(self, record: Record) -> Sample:
        """A window in three pieces."""
        text = clean_text(_input_text(record, self.compression))
        starts = self.token_starts(text)
        window = min(self.window, len(starts))
        if window < CONTINUED:
            raise TooShortError(f"{window} tokens are too few to be continued; a text needs {CONTINUED}.")
        cuts = torch.randperm(window - 1)[:2].sort().values + 1
        first, second = cuts.tolist()
        before, middle, after = self.cut(text, starts, [first, second - first, window - second])
        document = self.compress(middle, self.compression.repeated(record.get("title")))
        target = self.decoder_ids(after)
        if not (before and middle and target):
            raise TooShortError("a piece has no character of its own; the text has too few to be continued.")
        prompt = [*self.opening_ids(), *self.decoder_ids(before), *self.memory_ids(document.n_mem)]
        return Sample(document.passages, prompt + target, [IGNORED] * len(prompt) + target)


class Pretraining(Collator):
    """Auto-encoding with a given probability, else continuation, but for texts too short to be continued.

    Args:
        checkpoint: see ``Collator``.
        compression: see ``Collator``.
        ratio: share of auto-encoding.
        windows: see ``Autoencoding``.
        options: see ``Collator``.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        compression: CompressionConfig,
        *,
        ratio: float,
        windows: Sequence[int],
        **options: Any,
    ):
        super().__init__(checkpoint, compression, **options)
        self.ratio = ratio
        self.autoencoding = Autoencoding(checkpoint, compression, windows=windows, **options)
        self.continuation = Continuation(checkpoint, compression, windows=windows, **options)

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """A batch of one window, of both tasks."""
        windows = self.autoencoding.windows
        self.autoencoding.window = self.continuation.window = windows[int(torch.randint(len(windows), ()))]
        return super().__call__(records)

    def sample(self, record: Record) -> Sample:
        """A sample of one or the other."""
        if float(torch.rand(())) >= self.ratio:
            with suppress(TooShortError):
                return self.continuation.sample(record)
        return self.autoencoding.sample(record)


class TooShortError(TrainingError):
    """A text of fewer tokens, or characters, than a continuation is cut into."""


class QuestionAnswering(Collator):
    """A question about documents, the loss on the answer: and, where a record has more turns, on each answer.

    Of documents that do not fit ``max_tokens`` together with what is asked and answered the last are left out, down to
    one; ``dropped`` counts them.

    Args:
        checkpoint: see ``Collator``.
        compression: see ``Collator``.
        text_ratio: share of batches whose documents are given as text, so that the decoder goes on reading both.
        options: see ``Collator``.
    """

    def __init__(
        self, checkpoint: Checkpoint, compression: CompressionConfig, *, text_ratio: float = 0.0, **options: Any
    ):
        super().__init__(checkpoint, compression, **options)
        self.text_ratio = text_ratio
        self.as_text = False
        self.dropped = 0

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """A batch that reads memory, or one that reads text: those prompts are much longer."""
        self.as_text = float(torch.rand(())) < self.text_ratio
        return super().__call__(records)

    def sample(self, record: Record) -> Sample:
        """A conversation about the record's documents."""
        turns = [(turn["question"].strip(), clean_text(turn["answer"]).strip()) for turn in record["turns"]]
        question = turns[0][0]
        shown: Sequence[int | str]
        if self.as_text:
            documents, shown = [], [_input_text(document, self.compression) for document in record["documents"]]
        else:
            documents = self.tokenize(record["documents"], question)
            shown = [document.n_mem for document in documents]
        ids, labels = label_answers(self.decoder_tokenizer, shown, turns)
        while self.max_tokens is not None and len(ids) > self.max_tokens and len(shown) > 1:
            self._tell_of_dropping(record)
            shown = shown[:-1]
            ids, labels = label_answers(self.decoder_tokenizer, shown, turns)
        passages = chain.from_iterable(document.passages for document in documents[: len(shown)])
        return Sample(list(passages), ids, labels)

    def tokenize(self, documents: Sequence[Record], question: str) -> list[TokenizedDocument]:  # noqa: ARG002
        """The passages of each document, a record of ``text`` and perhaps ``title``."""
        texts = [_input_text(document, self.compression) for document in documents]
        return list(self.passages.tokenize(texts, [self.compression.repeated(d.get("title")) for d in documents]))

    def _tell_of_dropping(self, record: Record) -> None:
        if not self.dropped:
            log.warning(
                "%s: its documents do not fit in %d tokens; the last are left out, here and wherever it is so.",
                record.get("origin", "a record"),
                self.max_tokens,
            )
        self.dropped += 1


class QueryDependent(QuestionAnswering):
    """Memory of a (question, document) pair, as OSCAR has it: the question stands before each passage.

    A document is cut so that question and piece are one passage. A record has one question, since memory made for one
    is not what the next would have.
    """

    def __init__(self, checkpoint: Checkpoint, compression: CompressionConfig, **options: Any):
        # What is given to be tokenized is a passage already; a token by which it missed its length is left out.
        super().__init__(checkpoint, compression.model_copy(update={"on_long": "truncate", "overlap": 0}), **options)
        self.compression = compression

    def sample(self, record: Record) -> Sample:
        """A question about the record's documents.

        Raises:
            TrainingError: if there are several questions, or one leaves no room for a document.
        """
        if len(record["turns"]) > 1:
            raise TrainingError(
                f"has {len(record['turns'])} turns, and memory that depends on the question is made for one. Give each "
                "question a record of its own."
            )
        return super().sample(record)

    def tokenize(self, documents: Sequence[Record], question: str) -> list[TokenizedDocument]:
        """The passages of each document, the question before each."""
        prefix = f"Query: {clean_text(question)}\n Document: "
        texts = [clean_text(_input_text(document, self.compression)) for document in documents]
        return [self._join([prefix + piece for piece in self.pieces(prefix, text)]) for text in texts]

    def pieces(self, prefix: str, text: str) -> Iterator[str]:
        """Cut a text into pieces that make a passage each with what stands before it."""
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
        cut = list(self.passages.tokenize(texts))
        return TokenizedDocument(
            passages=tuple(chain.from_iterable(each.passages for each in cut)),
            n_mem=sum(each.n_mem for each in cut),
            tokens_total=sum(each.tokens_total for each in cut),
            tokens_fed=sum(each.tokens_fed for each in cut),
        )


def label_answers(
    tokenizer: Any, documents: Sequence[int | str], turns: Sequence[tuple[str, str]]
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation about documents, and labels on each answer and the one token that ends its turn.

    PISCO's own labels also hold what the chat template writes around an answer, such as the line breaks before it and
    behind its end; nothing of that is ever generated, so it is not learned here.

    Raises:
        TrainingError: if the chat template does not keep an answer as it was.
    """
    text, spans = _conversation_text(tokenizer, documents, turns)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    labels = [IGNORED] * len(ids)
    token = 0
    for start, end in spans:
        while offsets[token][1] <= start:
            token += 1
        while token < len(ids) and offsets[token][0] < end:
            labels[token] = ids[token]
            token += 1
        if token < len(ids):
            labels[token] = ids[token]
    return ids, labels


def _conversation_text(
    tokenizer: Any, documents: Sequence[int | str], turns: Sequence[tuple[str, str]]
) -> tuple[str, list[tuple[int, int]]]:
    """A conversation through the chat template, and where its answers stand.

    They are not searched for, since an answer may also be part of a document or of the template's own words; marks
    are put in their places, and then the answers in the marks'.
    """
    questions, answers = zip(*turns, strict=True)

    def render(said: Sequence[str]) -> str:
        further = list(zip(questions[1:], said[1:], strict=True))
        return prompt_text(tokenizer, questions[0], documents, answer=said[0], further=further)

    marks = [f"\ue000{number}\ue001" for number in range(len(turns))]
    text, remaining, spans = "", render(marks), []
    for mark, answer in zip(marks, answers, strict=True):
        before, _, remaining = remaining.partition(mark)
        start = len(text) + len(before)
        spans.append((start, start + len(answer)))
        text += before + answer
    text += remaining
    if text != render(answers):
        raise TrainingError("the decoder's chat template changes what is said; its answers cannot be found.")
    return text, spans


def _special_tokens(tokenizer: Any) -> int:
    """How many tokens a tokenizer puts around a text."""
    return len(tokenizer("a")["input_ids"]) - len(tokenizer("a", add_special_tokens=False)["input_ids"])


def _next_character(starts: Sequence[int], place: int) -> int:
    """The first token, from this one on, that begins a character; their number if there is none."""
    while 0 < place < len(starts) and starts[place] == starts[place - 1]:
        place += 1
    return min(place, len(starts))


def _input_text(document: Record, compression: CompressionConfig) -> str:
    return compression.input_text(document["text"], document.get("title"))


def _pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    if not rows:
        return torch.zeros(0, 0, dtype=torch.int64)
    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)
