"""Generation of answers that come and go: a server's requests, which begin, are given up and end at any time."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, StoppingCriteria

from ...errors import PromptError
from ..memory import Memory
from .answers import RunningAnswers, Token
from .greedy import NAN
from .penalty import RepetitionPenalty
from .running import RunningBatch

if TYPE_CHECKING:
    from ..decoder import Decoder

Reason = Literal["stop", "length"]
"""Reason for the end of an answer: an end token, or its largest length."""


class LiveAnswer(Protocol):
    """An answer that is generated while others come and go. Its methods must not raise."""

    @property
    def prompt(self) -> Sequence[int]:
        """Token ids of its prompt."""
        ...

    @property
    def memory(self) -> Memory:
        """Memory of its documents."""
        ...

    @property
    def limit(self) -> int:
        """Largest number of its tokens."""
        ...

    def is_wanted(self) -> bool:
        """Return False once nobody waits for the answer; it is then dropped before its next token."""
        ...

    def add(self, tokens: Sequence[int]) -> None:
        """Take the next tokens, the end token included."""
        ...

    def end(self, reason: Reason) -> None:
        """Take the reason for the end, after the last token."""
        ...

    def fail(self, error: Exception) -> None:
        """Take the error that ends the answer."""
        ...


Take = Callable[[Sequence[LiveAnswer], float | None], Sequence[LiveAnswer] | None]
"""Function that returns the answers to begin; None ends the generation.

It is given the answers in progress, and the seconds that it may wait for an answer to begin: None for no limit.
"""


def generate_live(decoder: "Decoder", take: Take) -> None:
    """Generate answers by greedy decoding until ``take`` returns None.

    Answers join and leave between two tokens if ``RunningBatch`` supports the model. With other models, answers that
    come wait until the batch before them is finished.

    Raises:
        RuntimeError: the device lacks memory, or fails. The answers in progress are lost, and are not told.
    """
    generate = _generate_joined if RunningBatch.supports(decoder.model) else _generate_apart
    with torch.inference_mode():
        generate(decoder, take)


def _generate_joined(decoder: "Decoder", take: Take) -> None:
    settings = decoder.generation
    running: RunningAnswers[LiveAnswer] = RunningAnswers(
        decoder.model, settings.stop_token_ids, settings.repetition_penalty
    )
    while True:
        running.leave([answer for answer in running.keys if not answer.is_wanted()])
        new = take(running.keys, 0 if running.keys else None)
        if new is None:
            return
        _tell(running.join([(answer, prompt, answer.limit) for answer, prompt in _embedded(decoder, new)]))
        _tell(running.step())


def _tell(tokens: Sequence[Token[LiveAnswer]]) -> None:
    for answer, token, ended in tokens:
        if ended == "nan":
            answer.fail(PromptError(NAN))
            continue
        answer.add([token])
        if ended is not None:
            answer.end(ended)


def _embedded(decoder: "Decoder", answers: Sequence[LiveAnswer]) -> list[tuple[LiveAnswer, torch.Tensor]]:
    """Return the input embeddings of prompts, computed together. A prompt that cannot be used fails alone."""
    try:
        embedded = decoder.embed_batch([each.prompt for each in answers], [each.memory for each in answers])
        return list(zip(answers, embedded, strict=True))
    except PromptError as error:
        if len(answers) == 1:
            answers[0].fail(error)
            return []
        return [pair for answer in answers for pair in _embedded(decoder, [answer])]


def _generate_apart(decoder: "Decoder", take: Take) -> None:
    """Let transformers generate one batch after the other."""
    settings = decoder.generation
    while (new := take([], None)) is not None:
        if not (embedded := _embedded(decoder, new)):
            continue
        prompts = [prompt for _, prompt in embedded]
        attended = [torch.ones(len(each), dtype=torch.int64, device=each.device) for each in prompts]
        decoder.model.generate(
            inputs_embeds=pad_sequence(prompts, batch_first=True, padding_side="left"),
            attention_mask=pad_sequence(attended, batch_first=True, padding_side="left"),
            generation_config=GenerationConfig(
                max_new_tokens=max(answer.limit for answer, _ in embedded),
                do_sample=False,
                pad_token_id=decoder.tokenizer.pad_token_id or 0,
            ),
            logits_processor=[]
            if settings.repetition_penalty == 1
            else [RepetitionPenalty(settings.repetition_penalty)],
            stopping_criteria=[_Telling([answer for answer, _ in embedded], frozenset(settings.stop_token_ids))],
        )


class _Telling(StoppingCriteria):
    """Tells each answer of transformers' ``generate`` its tokens as they come, and stops those that are finished."""

    def __init__(self, answers: Sequence[LiveAnswer], ends: frozenset[int]):
        self._answers = answers
        self._ends = ends
        self._running = [True] * len(answers)

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.BoolTensor:
        """Return True for each answer that is finished, ``(answers,)``."""
        for number, (answer, token) in enumerate(zip(self._answers, input_ids[:, -1].tolist(), strict=True)):
            if self._running[number]:
                self._running[number] = answer.is_wanted() and self._goes_on(answer, token, input_ids.shape[1])
        done = [not each for each in self._running]
        return torch.tensor(done, device=input_ids.device)  # pyrefly: ignore[bad-return]

    def _goes_on(self, answer: LiveAnswer, token: int, count: int) -> bool:
        answer.add([token])
        if token in self._ends or count >= answer.limit:
            answer.end("stop" if token in self._ends else "length")
            return False
        return True
