"""The decoder: answers questions from memory in place of documents' text."""

import copy
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from ..errors import CheckpointError, FingerprintMismatchError, PromptError
from .connector import Connector
from .families.pisco import Checkpoint, rows_needed
from .memory import Memory
from .passages import MEMORY_TOKEN, clean_text
from .prompt import prompt_text

# The family's adapters are made with alpha = 2 × rank.
LORA_SCALE = 2.0
# Whole modules stand twice in a decoder_state.pt: as they were, and as they are to be used.
ORIGINAL = "original_module"
SAVED_COPY = "modules_to_save.default"


class Decoder:
    """A causal LM with a checkpoint's embeddings and LoRA merged into it.

    Args:
        model: the merged causal LM; its own generation settings are dropped, but for its end tokens.
        tokenizer: the checkpoint's decoder tokenizer.
        connector: applied to memory of stage ``"hidden"``.
    """

    def __init__(self, model: Any, tokenizer: Any, connector: Connector):
        self.model = model
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.connector = connector.to(self.device, self.dtype)
        self._memory_token_id: int = tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)
        self._end_token_ids = _end_token_ids(model, tokenizer)
        # generate() would fill what is not said from here: a base's repetition penalty, beams, sampling.
        model.generation_config = GenerationConfig()

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | Checkpoint,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
    ) -> "Decoder":
        """Load the base decoder and lay the checkpoint's weights over it.

        Args:
            checkpoint: its folder; or opened, where it is to have another base decoder than it names.
            dtype: of the decoder, and of the connector in it.
            device: where it computes.

        Raises:
            CheckpointError: if the base is not there, or a tensor of ``decoder_state.pt`` has no place in it.
        """
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        model = checkpoint.load_decoder_base(dtype=dtype)
        origin = str(checkpoint.path / "decoder_state.pt")
        merge_decoder_state(model, checkpoint.load_decoder_state(), origin)
        rows, tokens = model.get_input_embeddings().weight.shape[0], rows_needed(checkpoint.decoder_tokenizer)
        if rows < tokens:
            raise CheckpointError(f"{origin}: {rows} embedding rows for a tokenizer of {tokens} tokens.")
        width, needed = checkpoint.connector.out_dim, model.get_input_embeddings().weight.shape[1]
        if width != needed:
            raise CheckpointError(f"{checkpoint.path}: the connector gives {width} values, the decoder takes {needed}.")
        return cls(model.to(device), checkpoint.decoder_tokenizer, copy.deepcopy(checkpoint.connector))

    def answer(self, question: str, memory: Memory, *, max_new_tokens: int = 128) -> str:
        """Answer one question from the memory of its documents (greedy)."""
        return self.answer_batch([question], [memory], max_new_tokens=max_new_tokens)[0]

    def answer_batch(
        self, questions: Sequence[str], memories: Sequence[Memory], *, max_new_tokens: int = 128
    ) -> list[str]:
        """Answer questions together, each from its own documents, of any number and length.

        Raises:
            PromptError: if a prompt with its answer does not fit the decoder's context.
            FingerprintMismatchError: if memory belongs to another connector than this checkpoint's.
        """
        if len(questions) != len(memories):
            raise ValueError(f"{len(questions)} questions for the memory of {len(memories)}")
        prompts = [self.prompt_ids(q, memory.lengths) for q, memory in zip(questions, memories, strict=True)]
        generated = self.generate(prompts, memories, max_new_tokens=max_new_tokens)
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in generated]

    def prompt_ids(self, question: str, documents: Sequence[int | str], *, answer: str | None = None) -> list[int]:
        """Token ids of the prompt, with one ``<MEM>`` for each memory vector (see ``prompt_text``)."""
        text = prompt_text(self.tokenizer, question, documents, answer=answer)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def answered_ids(self, question: str, documents: Sequence[int | str], answer: str) -> tuple[list[int], int]:
        """A prompt with its answer, and how many of its last tokens are the answer.

        The token that ends the turn is the last and belongs to the answer, where the chat template closes with one.

        Raises:
            PromptError: if the chat template does not give the answer back as it is.
        """
        answer = clean_text(answer).strip()
        text = prompt_text(self.tokenizer, question, documents, answer=answer)
        # What closes the turn is what another answer has behind it too. To search for the answer would not do: it may
        # be part of the end token's name.
        other = prompt_text(self.tokenizer, question, documents, answer="x" if answer[-1:] != "x" else "y")
        behind = next((n for n, (a, b) in enumerate(zip(text[::-1], other[::-1], strict=False)) if a != b), len(text))
        end = len(text) - behind
        start = end - len(answer)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        of_answer = [i for i, (begins, ends) in enumerate(offsets) if begins < end and ends > start]
        if not of_answer or text[start:end] != answer:
            raise PromptError(
                f"The decoder's chat template or tokenizer does not leave the answer {answer!r} as it is."
            )
        closing = next((i for i in range(of_answer[-1] + 1, len(ids)) if ids[i] in self._end_token_ids), of_answer[-1])
        return ids[: closing + 1], closing + 1 - of_answer[0]

    @torch.inference_mode()
    def embed(self, ids: Sequence[int], memory: Memory) -> torch.Tensor:
        """Input embeddings ``(length, hidden)`` of a prompt, memory standing at its ``<MEM>`` tokens, in order.

        This is also what vLLM takes as ``prompt_embeds``.
        """
        if memory.connector != self.connector.digest:
            raise FingerprintMismatchError(
                f"The memory belongs to the connector {memory.connector}, the decoder's checkpoint has "
                f"{self.connector.digest}. Load the checkpoint that the store was built with."
            )
        prompt = torch.as_tensor(ids, device=self.device)
        slots = prompt == self._memory_token_id
        if int(slots.sum()) != memory.values.shape[0]:
            raise PromptError(f"The prompt has {int(slots.sum())} memory tokens for {memory.values.shape[0]} vectors.")
        embeddings = self.model.get_input_embeddings()(prompt)
        values = self.connector.connect(memory).values
        embeddings[slots] = values.to(embeddings.device, embeddings.dtype)
        return embeddings

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], memories: Sequence[Memory], *, max_new_tokens: int = 128
    ) -> list[list[int]]:
        """Greedy continuation of each prompt: new token ids, the end token included where it came."""
        self.require_fit(prompts, max_new_tokens)
        if not prompts:
            return []
        embeddings = [self.embed(ids, memory) for ids, memory in zip(prompts, memories, strict=True)]
        attended = [torch.ones(len(ids), dtype=torch.int64, device=self.device) for ids in prompts]
        end = self._end_token_ids
        pad = self.tokenizer.pad_token_id or 0
        output = self.model.generate(
            inputs_embeds=pad_sequence(embeddings, batch_first=True, padding_side="left"),
            attention_mask=pad_sequence(attended, batch_first=True, padding_side="left"),
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end or None, pad_token_id=pad
            ),
        )
        return [_until_end(ids, end) for ids in output.tolist()]

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], memory: Memory) -> torch.Tensor:
        """Logits ``(length, vocabulary)`` in fp32 at every position of a prompt."""
        return self.model(inputs_embeds=self.embed(ids, memory)[None]).logits[0].float()

    def loss(self, ids: Sequence[int], labels: Sequence[int], memory: Memory) -> torch.Tensor:
        """Mean negative log-likelihood (nats a token) of the labels; -100 marks positions that do not count."""
        logits = self.logits(ids, memory)[:-1]
        return nn.functional.cross_entropy(logits, torch.as_tensor(labels, device=self.device)[1:])

    @torch.inference_mode()
    def answer_log_probs(
        self, prompts: Sequence[Sequence[int]], answer_tokens: Sequence[int], memories: Sequence[Memory]
    ) -> list[torch.Tensor]:
        """Log-probabilities of all tokens where each answer's tokens stand, given those before them.

        Args:
            prompts: ending in their answers, as ``answered_ids`` gives them.
            answer_tokens: how many tokens at the end of each are its answer, at least one.
            memories: of each prompt's documents.

        Returns:
            One ``(answer tokens, vocabulary)`` a prompt, in fp32.
        """
        self.require_fit(prompts, 0)
        if not prompts:
            return []
        # The last token is predicted, and need not be read.
        embeddings = [self.embed(ids[:-1], memory) for ids, memory in zip(prompts, memories, strict=True)]
        attended = [torch.ones(len(each), dtype=torch.int64, device=self.device) for each in embeddings]
        mask = pad_sequence(attended, batch_first=True, padding_side="left")
        longest = max(answer_tokens)
        logits = self.model(
            inputs_embeds=pad_sequence(embeddings, batch_first=True, padding_side="left"),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=longest,
            use_cache=False,
        ).logits
        return [
            row[longest - count :].float().log_softmax(-1) for row, count in zip(logits, answer_tokens, strict=True)
        ]

    def require_fit(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Check that prompts and what is to follow them fit the decoder's context.

        Raises:
            PromptError: saying how long the longest is.
        """
        limit = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(map(len, prompts), default=0)
        if limit is not None and longest + max_new_tokens > limit:
            raise PromptError(
                f"A prompt of {longest} tokens and an answer of up to {max_new_tokens} do not fit the decoder's "
                f"context of {limit}. Give fewer documents, or a smaller number of new tokens."
            )


def merge_decoder_state(model: Any, state: dict[str, torch.Tensor], origin: str) -> None:
    """Lay a ``decoder_state.pt`` over a base decoder, in place.

    Embedding and ``lm_head`` are replaced by the state's own copies, and so become two; each adapted Linear gets
    ``W += 2·B·A``, computed in fp32.

    Raises:
        CheckpointError: if a tensor has no place in the model, lacks its partner, or has a wrong shape.
    """
    remaining = dict(state)
    model.config.tie_word_embeddings = False
    for module_name in _embedding_names(model):
        _replace_rows(model.get_submodule(module_name), module_name, remaining, origin)
    model.config.vocab_size = model.get_input_embeddings().weight.shape[0]
    for name in [name for name in remaining if ".lora_A." in name]:
        linear_name, _, adapter = name.partition(".lora_A.")
        down, up = remaining.pop(name), remaining.pop(f"{linear_name}.lora_B.{adapter}", None)
        linear = None
        with suppress(AttributeError):
            linear = model.get_submodule(linear_name)
        if up is None or not isinstance(linear, nn.Linear):
            raise CheckpointError(f"{origin}: {name} has no partner lora_B, or no Linear in the base decoder.")
        fits = up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0]
        if not fits or (up.shape[0], down.shape[1]) != linear.weight.shape:
            raise CheckpointError(
                f"{origin}: {linear_name} is {tuple(linear.weight.shape)} in the base decoder, but its LoRA pair is "
                f"{tuple(up.shape)} × {tuple(down.shape)}. Is it the base this checkpoint was trained on?"
            )
        merged = linear.weight.float() + LORA_SCALE * (up.float() @ down.float())
        linear.weight = nn.Parameter(merged.to(linear.weight.dtype), requires_grad=False)
    if remaining:
        raise CheckpointError(f"{origin}: {len(remaining)} tensors have no place, the first: {sorted(remaining)[0]}.")


def _replace_rows(module: Any, module_name: str, remaining: dict[str, torch.Tensor], origin: str) -> None:
    """Give an embedding or ``lm_head`` its saved weight (and bias, where it has one), of any number of rows."""
    for kind, present in list(module.named_parameters()):
        name = f"{module_name}.{SAVED_COPY}.{kind}"
        saved = remaining.pop(name, None)
        remaining.pop(f"{module_name}.{ORIGINAL}.{kind}", None)
        if saved is None:
            raise CheckpointError(f"{origin}: lacks {name}.")
        if saved.ndim != present.ndim or saved.shape[1:] != present.shape[1:]:
            raise CheckpointError(
                f"{origin}: {name} is {tuple(saved.shape)}, but in the base decoder {tuple(present.shape)}. "
                "Is it the base this checkpoint was trained on?"
            )
        setattr(module, kind, nn.Parameter(saved.to(present.dtype), requires_grad=False))
    rows = {len(values) for values in module.parameters()}
    if len(rows) != 1:
        raise CheckpointError(f"{origin}: weight and bias of {module_name} differ in rows: {sorted(rows)}.")
    setattr(module, "num_embeddings" if isinstance(module, nn.Embedding) else "out_features", rows.pop())


def _end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    ends = model.generation_config.eos_token_id if model.generation_config else None
    if ends is None:
        ends = tokenizer.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _embedding_names(model: Any) -> tuple[str, str]:
    wanted = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}
    return names[id(wanted[0])], names[id(wanted[1])]


def _until_end(ids: list[int], ends: list[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids
