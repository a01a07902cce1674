"""The compressor: passages in, memory out."""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .checkpoint import Checkpoint
from .connector import Connector
from .last_layer import LastLayerAtMemory
from .memory import Memory, Stage
from .passages import MEMORY_TOKEN

# Changes whenever the same checkpoint, text and settings would give other memory.
COMPRESSION_VERSION = "1"

# Padded tokens of a batch. On a CPU larger ones fall out of the cache; a GPU needs them to fill its units.
DEFAULT_TOKEN_BUDGET = {"cpu": 2048, "cuda": 65536}


log = logging.getLogger(__name__)


class Compressor:
    """Computes memory for passages.

    The model runs without its ``lm_head``, without cache, on right-padded passages with no mask: attention is causal,
    so what stands behind a passage cannot reach it. Passages are sorted by length and batched under a budget of
    padded tokens; the budget is halved, for good, when a batch does not fit the device's memory. The last layer is
    computed at the memory tokens only, where the architecture is known.

    Args:
        model: the base model (no ``lm_head``), which this object takes over and changes.
        connector: the checkpoint's connector.
        memory_token_id: the id whose positions are read.
        pad_token_id: any valid id.
        token_budget: most padded tokens in a batch.
        whole_last_layer: compute the last layer at every token, as an unknown architecture needs.
    """

    def __init__(
        self,
        model: Any,
        connector: Connector,
        *,
        memory_token_id: int,
        pad_token_id: int,
        token_budget: int | None = None,
        whole_last_layer: bool = False,
    ):
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.hidden_dim: int = model.config.hidden_size
        self.token_budget = token_budget or DEFAULT_TOKEN_BUDGET.get(self.device.type, 4096)
        self.connector = connector.to(self.device, self.dtype)
        self._memory_token_id = memory_token_id
        self._pad_token_id = pad_token_id
        reduced = not whole_last_layer and LastLayerAtMemory.knows(model)
        self._last_layer = LastLayerAtMemory(model) if reduced else None
        self._model = model

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
        token_budget: int | None = None,
        whole_last_layer: bool = False,
    ) -> "Compressor":
        """Load the compressor and connector of a checkpoint onto a device.

        Raises:
            CheckpointError: if weights are missing or do not fit.
        """
        tokenizer = checkpoint.compressor_tokenizer
        return cls(
            checkpoint.load_compressor(dtype=dtype).to(device),
            copy.deepcopy(checkpoint.connector),
            memory_token_id=tokenizer.convert_tokens_to_ids(MEMORY_TOKEN),
            pad_token_id=tokenizer.pad_token_id or 0,
            token_budget=token_budget,
            whole_last_layer=whole_last_layer,
        )

    @torch.inference_mode()
    def compress(
        self,
        passages: Sequence[Sequence[int]],
        *,
        stage: Stage = "hidden",
        on_batch: Callable[[int, int], None] | None = None,
    ) -> Memory:
        """Compute the memory of passages, one entry a passage, in the order given, on the CPU.

        Args:
            passages: token ids with the memory tokens in them (behind the text, or anywhere).
            stage: ``"hidden"`` for ``(Σ n_mem, compressor hidden)``, ``"embedding"`` to go through the connector.
            on_batch: called after each batch with the number of its passages and of their tokens.

        Raises:
            torch.OutOfMemoryError: if a single passage does not fit the device's memory.
        """
        lengths = [sum(token == self._memory_token_id for token in passage) for passage in passages]
        starts = [0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()]
        dim = self.hidden_dim if stage == "hidden" else self.connector.out_dim
        values = torch.empty(starts[-1], dim, dtype=self.dtype)
        # Of like length together, longest first: the order depends on the lengths alone, so that equal shards give
        # equal batches wherever they run.
        left = sorted(range(len(passages)), key=lambda row: -len(passages[row]))
        while left:
            longest = max(len(passages[left[0]]), 1)
            rows = left[: max(1, self.token_budget // longest)]
            try:
                states = self._run([passages[row] for row in rows], longest)
                if stage == "embedding":
                    states = self.connector(states)
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                states = None
            if states is None:
                # Not in the handler, where the error keeps what the batch had allocated.
                self._halve_budget(len(rows) * longest)
                continue
            where = torch.cat([torch.arange(starts[row], starts[row + 1]) for row in rows])
            values[where] = states.cpu()
            left = left[len(rows) :]
            if on_batch is not None:
                on_batch(len(rows), sum(len(passages[row]) for row in rows))
        return Memory(values, tuple(lengths), stage, self.connector.digest)

    def _halve_budget(self, failed: int) -> None:
        self.token_budget = failed // 2
        log.warning(
            "%s ran out of memory with a batch of %d tokens and goes on with batches of %d; give that as token_budget "
            "to begin with it.",
            self.device,
            failed,
            self.token_budget,
        )
        if self.device.type == "cuda":
            # What the failed batch left in pieces.
            torch.cuda.empty_cache()

    def _run(self, passages: list[Sequence[int]], length: int) -> torch.Tensor:
        padded = torch.full((len(passages), length), self._pad_token_id, dtype=torch.int64)
        for row, passage in enumerate(passages):
            padded[row, : len(passage)] = torch.as_tensor(passage, dtype=torch.int64)
        used = torch.arange(length) < torch.tensor([len(passage) for passage in passages])[:, None]
        is_memory = ((padded == self._memory_token_id) & used).to(self.device)
        ids = padded.to(self.device)
        states = self._model(input_ids=ids, use_cache=False).last_hidden_state
        if self._last_layer is None:
            return states[is_memory]
        positions = torch.arange(length, device=self.device)[None]
        return self._last_layer(states, is_memory, self._model.rotary_emb(states, positions))
