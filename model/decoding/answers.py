"""Answers that are generated together, token by token: others may join them and each may leave between two tokens."""

from collections.abc import Collection, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch

from .penalty import RepetitionPenalty
from .running import RunningBatch

# A batch drops its finished rows when they are at least this share of it. Copying the keys and values of the other rows
# takes about as long as computing one token for the finished ones.
_FINISHED_SHARE = 0.25
# Stands for the token of a row whose logits are not numbers.
_NO_TOKEN = -1

K = TypeVar("K")

Ended = Literal["stop", "length", "nan"]
"""Reason for the end of an answer: an end token, its largest length, or logits that are not numbers."""


class Token(NamedTuple, Generic[K]):
    """The next token of an answer.

    Attributes:
        key: key of the answer.
        id: id of the token.
        ended: reason for the end of the answer; None if it goes on. After ``"nan"`` the token means nothing.
    """

    key: K
    id: int
    ended: Ended | None


class _Row(Generic[K]):
    """A row of the batch: its answer's key, largest length, tokens so far, and whether it still runs."""

    def __init__(self, key: K, limit: int):
        self.key, self.limit = key, limit
        self.count, self.is_running = 0, True


class RunningAnswers(Generic[K]):
    """Answers by greedy decoding, of prompts that join when they come and leave when they are finished.

    An answer does not depend on the others, except for rounding: no row of a ``RunningBatch`` does.

    Args:
        model: a causal LM that ``RunningBatch.supports`` accepts.
        ends: ids of the tokens that end an answer.
        penalty: repetition penalty, 1.0 for none (see ``RepetitionPenalty``).
    """

    def __init__(self, model: Any, ends: Collection[int], penalty: float):
        self._model = model
        self._ends = frozenset(ends)
        self._penalty = penalty
        self._batch: RunningBatch | None = None
        # The answers in the batch, among them finished ones that it has not dropped yet.
        self._rows: list[_Row[K]] = []
        # Last token of each row, and all its tokens so far, which count with a penalty only.
        self._last = torch.empty(0, dtype=torch.int64)
        self._appended = torch.empty(0, 0, dtype=torch.int64)

    @property
    def keys(self) -> list[K]:
        """Keys of the answers that are not finished."""
        return [row.key for row in self._rows if row.is_running]

    def join(self, prompts: Sequence[tuple[K, torch.Tensor, int]]) -> list[Token[K]]:
        """Read prompts and return the first tokens of their answers.

        Args:
            prompts: key, input embeddings ``(length, hidden)`` and largest number of tokens of each answer.
        """
        if not prompts:
            return []
        ordered = sorted(prompts, key=lambda each: len(each[1]))
        batch = RunningBatch(self._model, [embeddings for _, embeddings, _ in ordered])
        logits = batch.read()
        rows = [_Row(key, limit) for key, _, limit in ordered]
        ids, tokens = self._choose(rows, logits, logits.new_empty(len(rows), 0, dtype=torch.int64))
        running = self._running()
        if self._batch is None or not running:
            self._batch, self._rows, self._last = batch, rows, ids
            self._appended = ids[:, None]
        else:
            self._batch.join(batch, running)
            kept = torch.tensor(running, device=ids.device)
            self._rows = [*(self._rows[number] for number in running), *rows]
            self._last = torch.cat([self._last[kept], ids])
            if self._penalty != 1:
                # Rows are filled up with their own first token, which counts no more than once.
                filled = ids[:, None].expand(-1, self._appended.shape[1])
                self._appended = torch.cat([self._appended[kept], filled])
        return tokens

    def step(self) -> list[Token[K]]:
        """Return the next token of each answer; none if all are finished."""
        self._drop()
        if self._batch is None:
            return []
        logits = self._batch.append(self._last)
        self._last, tokens = self._choose(self._rows, logits, self._appended)
        if self._penalty != 1:
            self._appended = torch.cat([self._appended, self._last[:, None]], 1)
        return tokens

    def leave(self, keys: Collection[K]) -> None:
        """Drop answers that are not finished."""
        for row in self._rows:
            row.is_running &= row.key not in keys

    def _choose(
        self, rows: Sequence[_Row[K]], logits: torch.Tensor, appended: torch.Tensor
    ) -> tuple[torch.Tensor, list[Token[K]]]:
        """Return the next token of each row as a tensor ``(rows,)``, and those of the rows that run."""
        highest, ids = RepetitionPenalty(self._penalty)(appended, logits.float()).max(-1)
        tokens = []
        # The only wait for a GPU in a step.
        for row, token in zip(rows, ids.masked_fill(highest.isnan(), _NO_TOKEN).tolist(), strict=True):
            if row.is_running:
                row.count += 1
                ended = self._ended(row, token)
                row.is_running = ended is None
                tokens.append(Token(row.key, token, ended))
        return ids, tokens

    def _ended(self, row: _Row[K], token: int) -> Ended | None:
        if token == _NO_TOKEN:
            return "nan"
        if token in self._ends:
            return "stop"
        return "length" if row.count >= row.limit else None

    def _running(self) -> list[int]:
        """Return the numbers of the rows that are not finished."""
        return [number for number, row in enumerate(self._rows) if row.is_running]

    def _drop(self) -> None:
        """Drop the finished rows if they are many."""
        running = self._running()
        if not running:
            self._batch, self._rows = None, []
            return
        finished = len(self._rows) - len(running)
        if self._batch is not None and finished and finished >= _FINISHED_SHARE * len(self._rows):
            self._batch.keep(running)
            kept = torch.tensor(running, device=self._last.device)
            self._rows, self._last = [self._rows[number] for number in running], self._last[kept]
            if self._penalty != 1:
                self._appended = self._appended[kept]
