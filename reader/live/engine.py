"""The seam between prompts and answers that come and go: ``Engine``, the decoder of this process, and a fake."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from ...model.decoder import Decoder
from ...model.decoding.live import LiveAnswer, Take, generate_live
from ...model.decoding.text import TextStream, answer_text
from ..generator import FakeGenerator, Prompter


class Text(Protocol):
    """Makes text of an answer's tokens as they come (see ``TextStream``)."""

    def add(self, ids: Sequence[int]) -> str:
        """Return the text that further tokens make certain."""
        ...

    def end(self) -> str:
        """Return the rest of the text, after the last token."""
        ...


class Engine(Prompter, Protocol):
    """Generates answers that begin and end at any time.

    Attributes:
        token_budget: largest number of tokens of the answers in progress: their number, times the longest prompt and
            the new tokens.
    """

    token_budget: int

    def run(self, take: Take) -> None:
        """Generate answers until ``take`` returns None. One thread calls this.

        Raises:
            EngineError, RuntimeError: the engine failed; the answers in progress are lost, and are not told.
        """
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer."""
        ...

    def stream(self) -> Text:
        """Return a maker of the text of one answer."""
        ...

    def problem(self) -> str | None:
        """Return the reason why the engine cannot answer now; None if it can."""
        ...


class LocalEngine:
    """The decoder of this process.

    Args:
        decoder: the decoder.
        token_budget: see ``Engine``; default: the decoder's.
    """

    def __init__(self, decoder: Decoder, token_budget: int | None = None):
        self._decoder = decoder
        self.token_budget = token_budget or decoder.token_budget
        self.prompt_ids = decoder.prompt_ids
        self.require_fit = decoder.require_fit

    def run(self, take: Take) -> None:
        """Generate answers (see ``generate_live``)."""
        generate_live(self._decoder, take)

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer."""
        return answer_text(self._decoder.tokenizer, ids)

    def stream(self) -> TextStream:
        """Return a maker of the text of one answer."""
        return TextStream(self._decoder.tokenizer)

    def problem(self) -> str | None:
        """Return None: the decoder is loaded."""
        return None


class FakeEngine:
    """An engine for tests, which writes the words of given answers, one word at a time.

    Args:
        answers: the answers by the number of the prompt's tokens; other prompts get "so".
        token_budget: see ``Engine``.
        context: see ``FakeGenerator``.

    Attributes:
        batches: number of answers in progress at each step.
        error: error that the next step raises.
    """

    def __init__(self, answers: Mapping[int, str], *, token_budget: int = 16_384, context: int | None = None):
        generator = FakeGenerator({}, context=context)
        self._answers = answers
        self.token_budget = token_budget
        self.prompt_ids = generator.prompt_ids
        self.require_fit = generator.require_fit
        self.batches: list[int] = []
        self.error: Exception | None = None

    def run(self, take: Take) -> None:
        """Write a word of each answer in progress, and look for further answers."""
        running: dict[LiveAnswer, list[str]] = {}
        while (new := take(list(running), 0 if running else None)) is not None:
            running |= {each: self._answers.get(len(each.prompt), "so").split()[: each.limit] for each in new}
            self.batches.append(len(running))
            if (error := self.error) is not None:
                self.error = None
                raise error
            for each, words in list(running.items()):
                if not each.is_wanted():
                    del running[each]
                    continue
                each.add([ord(words.pop(0)[0])])
                if not words:
                    del running[each]
                    each.end("stop")

    def text(self, ids: Sequence[int]) -> str:
        """Return the first letters of the words."""
        return "".join(map(chr, ids))

    def stream(self) -> "FakeEngine":
        """Return a maker of text, which holds nothing back."""
        return self

    def add(self, ids: Sequence[int]) -> str:
        """Return the first letters of further words."""
        return self.text(ids)

    def end(self) -> str:
        """Return nothing, since nothing was held back."""
        return ""

    def problem(self) -> str | None:
        """Return None."""
        return None
