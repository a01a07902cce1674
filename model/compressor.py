"""The compressor: passages in, memory out."""

import copy
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .connector import Connector
from .families.pisco import Checkpoint
from .forward.attention import Attention, choose_attention, padded_attention
from .forward.budget import KnownBudgets, TokenBudget, find_token_budget
from .forward.other_models import any_model
from .forward.packed import PackedDecoder
from .forward.packing import Packed, Passages, offsets, pack
from .memory import Memory, Stage
from .passages import MEMORY_TOKEN

# Changes whenever the same checkpoint, text and settings would give other memory.
COMPRESSION_VERSION = "1"

# Larger ones fall out of a CPU's cache. On a GPU it is what fits.
CPU_TOKEN_BUDGET = 2048
# Tokens of a passage where any will do.
_TYPICAL = 128
# Batches are filled up to these parts of the budget, so that a graph is compiled for few sizes.
_COMPILED_PARTS = (1, 4, 16)
# Of a batch. Some kernels have a block of threads for each, of which a GPU takes no more.
_MOST_PASSAGES = 65_535

log = logging.getLogger(__name__)


class Compressor:
    """Computes memory for passages.

    Passages are packed one behind the other under a budget of tokens, without padding, and the model runs without
    its ``lm_head`` and without cache. A batch that does not fit the device's memory is halved, and so are, for some
    calls, those behind it. The last layer is computed at the memory tokens only, where the architecture is known; the
    models of others run as transformers has them.

    Args:
        model: the base model (no ``lm_head``), which this object takes over and changes.
        connector: the checkpoint's connector.
        memory_token_id: the id whose positions are read.
        token_budget: most tokens in a batch; None is 2,048 on a CPU, and on a GPU the most that fit.
        whole_last_layer: compute the last layer at every token.
        compiled: compile the layers, for a few sizes of batches (minutes at first, seconds from a cache); for
            architectures that are known.
    """

    def __init__(
        self,
        model: Any,
        connector: Connector,
        *,
        memory_token_id: int,
        token_budget: int | None = None,
        whole_last_layer: bool = False,
        compiled: bool = False,
    ):
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.hidden_dim: int = model.config.hidden_size
        self.connector = connector.to(self.device, self.dtype)
        self._memory_token_id = memory_token_id
        attention = _attention_for(model.config, self.device, self.dtype)
        self._forward: Callable[[Packed], torch.Tensor]
        if PackedDecoder.knows(model):
            self._forward = PackedDecoder(model, attention, whole_last_layer=whole_last_layer)
            self._pads = attention is padded_attention
        else:
            self._forward = forward = any_model(model, attention, memory_token_id)
            self._pads = forward.pads or attention is padded_attention
        self.token_budget = token_budget or CPU_TOKEN_BUDGET
        self._compiled_sizes: tuple[int, ...] = ()
        if self.device.type == "cuda" and token_budget is None:
            self._find_budget(model.config, KnownBudgets())
        if compiled and isinstance(self._forward, PackedDecoder):
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
    ) -> "Compressor":
        """Load the compressor and connector of a checkpoint onto a device.

        Args:
            checkpoint: the checkpoint.
            dtype: of the arithmetic.
            device: where it runs.
            token_budget: most tokens in a batch; None is 2,048 on a CPU, and on a GPU the most that fit.
            whole_last_layer: compute the last layer at every token.
            compiled: compile the layers; None does so on a GPU.

        Raises:
            CheckpointError: if weights are missing or do not fit.
        """
        tokenizer = checkpoint.compressor_tokenizer
        model = checkpoint.load_compressor(dtype=dtype).to(device)
        return cls(
            model,
            copy.deepcopy(checkpoint.connector),
            memory_token_id=tokenizer.convert_tokens_to_ids(MEMORY_TOKEN),
            token_budget=token_budget,
            whole_last_layer=whole_last_layer,
            compiled=torch.device(device).type == "cuda" if compiled is None else compiled,
        )

    @property
    def token_budget(self) -> int:
        """Most tokens in a batch."""
        return self._budget.most

    @token_budget.setter
    def token_budget(self, tokens: int) -> None:
        self._budget = TokenBudget(tokens)

    def compress(
        self,
        passages: Passages | Sequence[Sequence[int]],
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
        return self.launch(passages, stage=stage, on_batch=on_batch).finish()

    @torch.inference_mode()
    def launch(
        self,
        passages: Passages | Sequence[Sequence[int]],
        *,
        stage: Stage = "hidden",
        on_batch: Callable[[int, int], None] | None = None,
    ) -> "Launched":
        """Give the passages to the device, without waiting for the last of them; all else is as in ``compress``.

        One thread may launch while another finishes what was launched before, so that a GPU never waits between them.
        """
        passages = Passages.of(passages)
        lengths = np.diff(offsets(passages.ids == self._memory_token_id)[offsets(passages.lengths)])
        # Where passages are padded for attention, those of like length together. The order depends on the lengths
        # alone, so that equal shards give equal batches wherever they run.
        order = np.argsort(-passages.lengths, kind="stable") if self._pads else np.arange(len(passages))
        ends = offsets(passages.lengths[order])
        landing = _Landing(int(lengths.sum()), self._dim(stage), self.dtype, self.device, on_batch)
        start = 0
        self._budget.begin_call()
        while start < len(order):
            stop, rows = self._next_batch(ends, start)
            try:
                states = self._run(pack(passages, order[start:stop], self._memory_token_id, rows), stage)
            except torch.OutOfMemoryError:
                if stop - start == 1 and not rows:
                    raise
                states = None
            if states is None:
                # Not in the handler, where the error keeps what the batch had allocated.
                self._halve_budget(max(int(ends[stop] - ends[start]), rows))
                continue
            landing.add(states, stop - start, int(ends[stop] - ends[start]))
            start = stop
        return Launched(landing, lengths, order if self._pads else None, stage, self.connector.digest)

    def _dim(self, stage: Stage) -> int:
        return self.hidden_dim if stage == "hidden" else self.connector.out_dim

    def _next_batch(self, ends: np.ndarray, start: int) -> tuple[int, int]:
        """Where the batch ends that begins there, and to how many rows it is filled up, if it is."""
        first, left = int(ends[start + 1] - ends[start]), int(ends[-1] - ends[start])
        size, rows = self._budget.now, 0
        if sizes := [each for each in self._compiled_sizes if first <= each <= size]:
            rows = size = next((each for each in sizes if each <= left), sizes[-1])
        stop = int(np.searchsorted(ends, ends[start] + size, side="right")) - 1
        if self._pads:
            stop = min(stop, start + size // max(first, 1))
        return max(min(stop, start + _MOST_PASSAGES), start + 1), rows

    def _run(self, packed: Packed, stage: Stage) -> torch.Tensor:
        """The memory of a batch, on the device: ``(memory tokens, dim)``, in the order of its rows."""
        if len(packed.memory) == 0:
            return torch.empty(0, self._dim(stage), dtype=self.dtype)
        states = self._forward(packed.to(self.device))
        return self.connector(states) if stage == "embedding" else states

    def _halve_budget(self, failed: int) -> None:
        self._budget.halve(failed)
        log.warning(
            "%s ran out of memory with a batch of %d tokens. It goes on with %d and tries larger ones later; if this "
            "comes again and again, give a smaller token_budget.",
            self.device,
            failed,
            self._budget.now,
        )
        if self.device.type == "cuda":
            # What the failed batch left in pieces.
            torch.cuda.empty_cache()

    def _find_budget(self, config: Any, budgets: KnownBudgets) -> None:
        """Find the largest budget that fits this GPU."""

        def peak_of(tokens: int) -> int:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self._try(tokens)
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - before

        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        # A card that others use too is another card.
        key = f"{_name_of(self.device, config, self.dtype)}, {free >> 30} GiB free"
        known = budgets.get(key)
        self.token_budget = find_token_budget(peak_of, free, known)
        if self.token_budget != known:
            budgets.set(key, self.token_budget)
        log.info("%s computes batches of up to %d tokens", self.device, self.token_budget)

    def _compile(self, forward: PackedDecoder) -> None:
        """Compile the layers for some sizes of batches, smaller ones where these do not fit after all."""
        while True:
            self._compiled_sizes = tuple(max(self.token_budget // part, 1) for part in _COMPILED_PARTS)
            forward.compiled_rows = self._compiled_sizes
            try:
                for size in self._compiled_sizes:
                    self._try(size)
                return
            except torch.OutOfMemoryError:
                if self.token_budget == 1:
                    raise
            log.warning(
                "%s cannot compute compiled batches of %d tokens, and takes half.", self.device, self.token_budget
            )
            self.token_budget = max(self.token_budget // 2, 1)

    @torch.inference_mode()
    def _try(self, tokens: int) -> None:
        """Compute a batch of so many tokens, whatever they are."""
        lengths = np.full(-(-tokens // _TYPICAL), _TYPICAL)
        lengths[-1] = tokens - lengths[:-1].sum()
        ids = np.zeros(tokens, np.int32)
        ends = np.cumsum(lengths)
        # Two, as memory tokens are several.
        ids[ends - 1] = ids[ends - 2] = self._memory_token_id
        packed = pack(Passages(ids, lengths), np.arange(len(lengths)), self._memory_token_id, tokens)
        self._run(packed, "embedding")


class Launched:
    """Passages that the device computes, or has computed."""

    def __init__(
        self, landing: "_Landing", lengths: np.ndarray, order: np.ndarray | None, stage: Stage, connector: str
    ):
        self._landing = landing
        self._lengths = lengths
        self._order = order
        self._stage: Stage = stage
        self._connector = connector

    @torch.inference_mode()
    def finish(self) -> Memory:
        """Wait for the rest. Call it once."""
        values, lengths = self._landing.finish(), self._lengths
        if self._order is not None:
            landed = offsets(lengths[self._order])[np.argsort(self._order)]
            values = values[
                torch.from_numpy(np.repeat(landed - offsets(lengths)[:-1], lengths)) + torch.arange(len(values))
            ]
        return Memory(values, tuple(lengths.tolist()), self._stage, self._connector)


class _Landing:
    """Memory on its way from the device: batch after batch, the next being computed while one is copied."""

    def __init__(
        self,
        rows: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        on_batch: Callable[[int, int], None] | None,
    ):
        self._asynchronous = device.type == "cuda"
        self._device = device
        self._values = torch.empty(rows, dim, dtype=dtype, pin_memory=self._asynchronous)
        self._end = 0
        self._on_batch = on_batch
        self._flying: deque[tuple[torch.cuda.Event | None, int, int]] = deque()

    def add(self, states: torch.Tensor, passages: int, tokens: int) -> None:
        begin, self._end = self._end, self._end + len(states)
        self._values[begin : self._end].copy_(states, non_blocking=self._asynchronous)
        event = None
        if self._asynchronous:
            # One that sleeps until then: cores are few, and the tokenizer needs them.
            event = torch.cuda.Event(blocking=True)
            # Without a stream it would be that of the current device, which may be another.
            event.record(torch.cuda.current_stream(self._device))
        self._flying.append((event, passages, tokens))
        self._land(1 if self._asynchronous else 0)

    def finish(self) -> torch.Tensor:
        """All that was added, one behind the other, on the CPU."""
        self._land(0)
        return self._values

    def _land(self, but: int) -> None:
        while len(self._flying) > but:
            event, passages, tokens = self._flying.popleft()
            if event is not None:
                event.synchronize()
            if self._on_batch is not None:
                self._on_batch(passages, tokens)


def _attention_for(config: Any, device: torch.device, dtype: torch.dtype) -> Attention:
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return padded_attention
    return choose_attention(
        device,
        dtype,
        heads=heads,
        key_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _name_of(device: torch.device, config: Any, dtype: torch.dtype) -> str:
    """What the memory that a batch needs depends on."""
    properties = torch.cuda.get_device_properties(device)
    sizes = "x".join(
        str(getattr(config, name, "?")) for name in ("num_hidden_layers", "hidden_size", "intermediate_size")
    )
    return f"{properties.name}, {properties.total_memory >> 20} MiB, {config.model_type} {sizes}, {dtype}"
