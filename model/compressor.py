"""The compressor: passages in, memory out."""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..configs.names import AttentionName
from .connector import Connector
from .families import Checkpoint
from .forward.attention import Attention, padded_attention
from .forward.budget import BudgetCache, TokenBudget, gpu_token_budget
from .forward.failures import first_line, is_out_of_memory, remove_damaged_code
from .forward.fallback import PaddedFallback, choose_fallback
from .forward.grouped import GroupedEncoder
from .forward.kernels import choose_attention
from .forward.native import NativeModel
from .forward.packing import PackedBatch, Passages, is_memory, offsets, pack, ranges
from .forward.pending import HostCopies, PendingMemory
from .forward.rotary import ScaledRotary
from .memory import Memory, Stage

# Part of every fingerprint. It changes whenever the same checkpoint, text and settings would give other memory.
COMPRESSION_VERSION = "1"

# Tokens of a batch on a CPU: larger batches fall out of its cache. On a GPU the budget is what fits.
CPU_TOKEN_BUDGET = 2048
# Compiled batches are filled up to the budget divided by one of these, so that graphs are compiled for few sizes.
_COMPILED_PARTS = (1, 4, 16)
# On a CPU, large batches are filled up to a multiple of this many rows. oneDNN compiles code for each number of rows,
# and keeps it for some hundred of them, which takes half a gigabyte.
_CPU_ROWS = 64
_CPU_FILLED = 16 * _CPU_ROWS
# Largest number of passages in a batch: some kernels launch one thread block per passage, and CUDA allows 65,535.
_MAX_PASSAGES = 65_535
# Length of the passages that a batch is tried with; any length would do.
_PROBE_LENGTH = 128

log = logging.getLogger(__name__)


class Compressor:
    """Computes the memory of passages.

    Passages are packed one after another under a token budget, without padding, and the model runs without ``lm_head``
    and without cache. For the architectures of ``NativeModel`` the last layer is computed at the memory tokens only;
    other architectures run as transformers implements them. Passages that scale their rotary positions are computed
    alone, so that memory does not depend on neighbours. A batch that does not fit the device's memory is halved, and so
    are the following batches for some calls.

    Args:
        model: the base model (no ``lm_head``), or a ``GroupedEncoder``. This object takes it over and changes it.
        connector: the checkpoint's connector; None if memory has the decoder's width without one.
        memory_token_ids: ids of the tokens at whose positions memory is read; empty if every token is one.
        memory_digest: digest that memory carries; default: the connector's.
        memory_position: position of the first memory token of each passage; default: the one after its text.
        token_budget: largest number of tokens in a batch; default: 2,048 on a CPU, and what fits on a GPU.
        whole_last_layer: True to compute the last layer at every token.
        compiled: True to compile the layers for a few batch sizes, if the architecture is one of ``NativeModel``. That
            takes minutes at first, and seconds once torch has the graphs in its cache.
        attention: name of the attention kernel.

    Raises:
        ConfigError: the named attention kernel cannot be used on the device.
    """

    def __init__(
        self,
        model: Any,
        connector: Connector | None,
        *,
        memory_token_ids: Sequence[int],
        memory_digest: str | None = None,
        memory_position: int | None = None,
        token_budget: int | None = None,
        whole_last_layer: bool = False,
        compiled: bool = False,
        attention: AttentionName = "auto",
    ):
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.hidden_dim: int = model.config.hidden_size
        self.connector = None if connector is None else connector.to(self.device, self.dtype)
        if memory_digest is None:
            memory_digest = "" if connector is None else connector.digest
        self.memory_digest = memory_digest
        self.memory_position = memory_position
        self._memory_token_ids = tuple(memory_token_ids)
        self._group = 1
        self._rotary = ScaledRotary(model)
        kernel = _attention_for(model.config, self.device, self.dtype, attention)
        self._forward: Callable[[PackedBatch], torch.Tensor]
        if isinstance(model, GroupedEncoder):
            self.hidden_dim, self._group = model.projection.out_features, model.rate
            self._forward, self._pads = model, True
        elif NativeModel.supports(model):
            self._forward = NativeModel(model, kernel, whole_last_layer=whole_last_layer)
            self._pads = kernel is padded_attention
        else:
            self._forward = fallback = choose_fallback(model, kernel, self._memory_token_ids)
            if isinstance(fallback, PaddedFallback):
                fallback.needs_positions = memory_position is not None
            self._pads = fallback.pads or kernel is padded_attention
        self.token_budget = token_budget or CPU_TOKEN_BUDGET
        self._compiled_sizes: tuple[int, ...] = ()
        if self.device.type == "cuda" and token_budget is None:
            self.token_budget = gpu_token_budget(
                self.device, model.config, self.dtype, self._probe, BudgetCache(), attention
            )
        if compiled and isinstance(self._forward, NativeModel):
            self._compile(self._forward)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
        token_budget: int | None = None,
        whole_last_layer: bool = False,
        compiled: bool | None = None,
        attention: AttentionName = "auto",
    ) -> "Compressor":
        """Load the compressor and connector of a checkpoint onto a device.

        Args:
            checkpoint: the checkpoint.
            dtype: dtype of the weights and of the memory.
            device: device to compute on.
            token_budget: largest number of tokens in a batch; default: 2,048 on a CPU, and what fits on a GPU.
            whole_last_layer: True to compute the last layer at every token.
            compiled: True to compile the layers; default: only on a GPU.
            attention: name of the attention kernel.

        Raises:
            CheckpointError: weights are missing or do not fit.
            ConfigError: the named attention kernel cannot be used on the device.
        """
        return cls(
            checkpoint.load_compressor(dtype=dtype, device=device),
            copy.deepcopy(checkpoint.connector),
            memory_token_ids=checkpoint.memory_token_ids,
            memory_digest=checkpoint.memory_digest,
            memory_position=checkpoint.memory_position,
            token_budget=token_budget,
            whole_last_layer=whole_last_layer,
            compiled=torch.device(device).type == "cuda" if compiled is None else compiled,
            attention=attention,
        )

    @property
    def token_budget(self) -> int:
        """Largest number of tokens in a batch."""
        return self._budget.limit

    @token_budget.setter
    def token_budget(self, tokens: int) -> None:
        self._budget = TokenBudget(tokens)

    def compress(
        self,
        passages: Passages | Sequence[Sequence[int]],
        *,
        stage: Stage | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> Memory:
        """Compute the memory of passages: one entry per passage, in the given order, on the CPU.

        Args:
            passages: token ids with memory tokens after the text or anywhere in it.
            stage: ``"hidden"`` for ``(Σ n_mem, compressor hidden)``, ``"embedding"`` to apply the connector.
            on_batch: callback that is given the numbers of passages and of tokens of each batch, after it.

        Raises:
            RuntimeError: a single passage does not fit the device's memory (``torch.OutOfMemoryError``, or a library's
                own words for it).
        """
        return self.launch(passages, stage=stage, on_batch=on_batch).finish()

    @torch.inference_mode()
    def launch(
        self,
        passages: Passages | Sequence[Sequence[int]],
        *,
        stage: Stage | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> PendingMemory:
        """Give the passages to the device without waiting for the last ones; otherwise like ``compress``.

        One thread may launch passages while another finishes those launched before, so that a GPU never waits.
        """
        stage = self._checked(stage)
        passages = Passages.of(passages)
        marked = is_memory(passages.ids, self._memory_token_ids)
        lengths = np.diff(offsets(marked)[offsets(passages.lengths)]) // self._group
        # If attention pads, passages of similar length are computed together. The order depends on the lengths only, so
        # that equal shards give equal batches on every machine.
        order = np.argsort(-passages.lengths, kind="stable") if self._pads else np.arange(len(passages))
        ends = offsets(passages.lengths[order])
        # Passages are computed in another order than the caller gave, so each row has a place of its own.
        places = torch.from_numpy(ranges(offsets(lengths)[order], lengths[order])) if self._pads else None
        copies = HostCopies(int(lengths.sum()), self._dim(stage), self.dtype, self.device, on_batch, places)
        start = 0
        self._budget.begin_call()
        while start < len(order):
            stop, rows = self._next_batch(ends, start)
            try:
                states = self._run(self._pack(passages, order[start:stop], rows), stage)
            except RuntimeError as error:
                if not is_out_of_memory(error) or (stop - start == 1 and not rows):
                    raise
                states = None
            if states is None:
                # Not in the handler, where the error would keep the memory of the batch allocated.
                self._halve_budget(max(int(ends[stop] - ends[start]), rows))
                continue
            copies.add(states, stop - start, int(ends[stop] - ends[start]))
            start = stop
        return PendingMemory(copies, lengths, stage, self.memory_digest)

    def _checked(self, stage: Stage | None) -> Stage:
        if self.connector is None:
            if stage == "hidden":
                raise ValueError('The checkpoint has no connector: its memory has the stage "embedding" only.')
            return "embedding"
        return stage or "hidden"

    def _dim(self, stage: Stage) -> int:
        return self.hidden_dim if stage == "hidden" or self.connector is None else self.connector.out_dim

    def _pack(self, passages: Passages, chosen: np.ndarray, rows: int) -> PackedBatch:
        total = int(passages.lengths[chosen].sum())
        if not rows and total > _CPU_FILLED and self.device.type == "cpu" and isinstance(self._forward, NativeModel):
            rows = -(-total // _CPU_ROWS) * _CPU_ROWS
        return pack(passages, chosen, self._memory_token_ids, rows, self.memory_position)

    def _next_batch(self, ends: np.ndarray, start: int) -> tuple[int, int]:
        """Return the end of the batch that begins at a passage, and the number of rows to fill it up to, or 0."""
        first, left = int(ends[start + 1] - ends[start]), int(ends[-1] - ends[start])
        size, rows = self._budget.current, 0
        if sizes := [each for each in self._compiled_sizes if first <= each <= size]:
            rows = size = next((each for each in sizes if each <= left), sizes[-1])
        stop = int(np.searchsorted(ends, ends[start] + size, side="right")) - 1
        if self._pads:
            stop = min(stop, start + size // max(first, 1))
        scaled = np.flatnonzero(np.diff(ends[start : stop + 1]) > self._rotary.limit)
        if len(scaled):
            # A passage that scales its positions is alone in its batch.
            stop, rows = start + int(scaled[0]), rows if scaled[0] else 0
        return max(min(stop, start + _MAX_PASSAGES), start + 1), rows

    def _run(self, batch: PackedBatch, stage: Stage) -> torch.Tensor:
        """Return the memory of a batch in the order of its rows, ``(memory tokens, dim)``, on the device."""
        if len(batch.memory) == 0:
            return torch.empty(0, self._dim(stage), dtype=self.dtype)
        self._rotary.restart()
        states = self._forward(batch.to(self.device))
        return states if stage == "hidden" or self.connector is None else self.connector(states)

    def _halve_budget(self, failed: int) -> None:
        self._budget.halve(failed)
        log.warning(
            "%s ran out of memory with a batch of %d tokens. The compressor continues with batches of %d and tries "
            "larger ones later. If this happens again and again, set a smaller token_budget.",
            self.device,
            failed,
            self._budget.current,
        )
        if self.device.type == "cuda":
            # The failed batch leaves free memory in fragments.
            torch.cuda.empty_cache()

    def _compile(self, forward: NativeModel) -> None:
        """Compile the layers for some batch sizes; halve the budget until they fit. Without a compiler, do not."""
        remove_damaged_code()
        while True:
            self._compiled_sizes = tuple(max(self.token_budget // part, 1) for part in _COMPILED_PARTS)
            forward.compiled_rows = self._compiled_sizes
            try:
                for size in self._compiled_sizes:
                    self._probe(size)
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    self._run_uncompiled(forward, first_line(error))
                    return
                if self.token_budget == 1:
                    raise
            log.warning(
                "%s has no memory for compiled batches of %d tokens; trying half of that.",
                self.device,
                self.token_budget,
            )
            self.token_budget = max(self.token_budget // 2, 1)

    def _run_uncompiled(self, forward: NativeModel, reason: str) -> None:
        self._compiled_sizes = forward.compiled_rows = ()
        # An error that is not the compiler's comes again here.
        self._probe(min(self.token_budget, _PROBE_LENGTH))
        log.warning(
            "The compressor's layers cannot be compiled (%s). They run as they are: memory is the same up to rounding, "
            "and a build takes longer. Install what the compiler needs, or set compiled to false to skip this attempt.",
            reason,
        )

    @torch.inference_mode()
    def _probe(self, tokens: int) -> None:
        """Compute a batch of ``tokens`` tokens and drop the result."""
        lengths = np.full(-(-tokens // _PROBE_LENGTH), _PROBE_LENGTH)
        lengths[-1] = tokens - lengths[:-1].sum()
        ids = np.zeros(tokens, np.int32)
        ends = np.cumsum(lengths)
        # Two memory tokens per passage, since batches with a single memory token are not compiled.
        if self._memory_token_ids:
            ids[ends - 1] = ids[ends - 2] = self._memory_token_ids[0]
        if self._group > 1:
            lengths = np.maximum(lengths // self._group, 1) * self._group
            ids, tokens = ids[: lengths.sum()] if len(ids) >= lengths.sum() else np.zeros(lengths.sum(), np.int32), 0
        self._run(self._pack(Passages(ids, lengths), np.arange(len(lengths)), tokens), "embedding")


def _attention_for(config: Any, device: torch.device, dtype: torch.dtype, name: AttentionName) -> Attention:
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return padded_attention
    return choose_attention(
        device,
        dtype,
        heads=heads,
        key_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        name=name,
    )
