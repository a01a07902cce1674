"""The decoder: answers questions from memory in place of the documents' text."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from ..configs.names import Stage
from ..errors import FingerprintMismatchError, PromptError, some
from .connector import Connector
from .decoding.batches import default_token_budget, split_into_batches
from .decoding.greedy import decode
from .families import Checkpoint, open_checkpoint
from .generation import GenerationDefaults
from .memory import Memory
from .prompt import PiscoPrompt, Prompt, require_question, require_texts


class Decoder:
    """A causal LM that takes memory at the memory tokens of its prompt.

    Args:
        model: the causal LM with the checkpoint's weights merged. Its generation settings are dropped, except for the
            end tokens.
        tokenizer: the checkpoint's decoder tokenizer.
        connector: the checkpoint's connector, applied to memory of stage ``"hidden"``; None if it has none.
        prompt: the family's prompt; default: that of family "pisco".
        memory_digest: digest that memory must carry; default: the connector's.
        owns_memory: function that returns True for other digests that memory may carry, those of older stores.
        generation: stop tokens and repetition penalty; default: the model's end tokens, and no penalty.

    Attributes:
        token_budget: largest number of tokens in a batch, its prompts padded to the longest and its answers counted
            with their largest length. A prompt above it is answered alone. Questions are answered fastest if they come
            by the thousand, since they are sorted by the lengths of their prompts.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        connector: Connector | None,
        prompt: Prompt | None = None,
        *,
        memory_digest: str | None = None,
        owns_memory: Callable[[str], bool] = lambda _: False,
        generation: GenerationDefaults | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self._prompt: Prompt = prompt or PiscoPrompt(tokenizer)
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.connector = None if connector is None else connector.to(self.device, self.dtype)
        if memory_digest is None:
            memory_digest = "" if connector is None else connector.digest
        self.memory_digest = memory_digest
        self._owns_memory = owns_memory
        memory_tokens = sorted(set(self._prompt.memory_tokens))
        self._memory_token_ids = frozenset(tokenizer.convert_tokens_to_ids(token) for token in memory_tokens)
        self.token_budget = default_token_budget(self.device)
        self.generation = generation or GenerationDefaults(tuple(_end_token_ids(model, tokenizer)))

    @property
    def generation(self) -> GenerationDefaults:
        """Stop tokens and repetition penalty."""
        return self._generation

    @generation.setter
    def generation(self, generation: GenerationDefaults) -> None:
        self._generation = generation
        # The model's own generate() takes from here what a call leaves out: the end tokens, but none of a base's
        # penalty, beams and sampling.
        self.model.generation_config = GenerationConfig(
            eos_token_id=list(generation.stop_token_ids) or None, pad_token_id=self.tokenizer.pad_token_id
        )

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | Checkpoint,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
        repetition_penalty: float | None = None,
        stop_token_ids: Sequence[int] | None = None,
    ) -> "Decoder":
        """Load the decoder of a checkpoint onto a device.

        Args:
            checkpoint: folder of the checkpoint, or an opened checkpoint.
            dtype: dtype of the decoder and of its connector.
            device: device to compute on.
            repetition_penalty: factor by which tokens that an answer already has become less likely, 1.0 for none;
                default: the base decoder's, or none in family "pisco".
            stop_token_ids: ids of the tokens that end an answer; default: the base decoder's.

        Raises:
            CheckpointError: the base decoder cannot be found, or a tensor of the checkpoint has no place in it.
        """
        if isinstance(checkpoint, str | Path):
            checkpoint = open_checkpoint(checkpoint)
        decoder = cls(
            checkpoint.load_decoder(dtype=dtype, device=device),
            checkpoint.decoder_tokenizer,
            copy.deepcopy(checkpoint.connector),
            checkpoint.prompt,
            memory_digest=checkpoint.memory_digest,
            owns_memory=checkpoint.owns_memory,
            generation=checkpoint.generation,
        )
        if repetition_penalty is not None:
            decoder.generation = replace(decoder.generation, repetition_penalty=repetition_penalty)
        if stop_token_ids is not None:
            decoder.generation = replace(decoder.generation, stop_token_ids=tuple(stop_token_ids))
        return decoder

    def answer(
        self, question: str, memory: Memory, *, max_new_tokens: int = 128, repetition_penalty: float | None = None
    ) -> str:
        """Answer one question from the memory of its documents, by greedy decoding."""
        return self.answer_batch(
            [question], [memory], max_new_tokens=max_new_tokens, repetition_penalty=repetition_penalty
        )[0]

    def answer_batch(
        self,
        questions: Sequence[str],
        memories: Sequence[Memory],
        *,
        max_new_tokens: int = 128,
        repetition_penalty: float | None = None,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> list[str]:
        """Answer several questions, each from its own documents of any number and length.

        The questions are sorted and split into batches by ``token_budget``.

        Args:
            questions: the questions.
            memories: memory of each question's documents.
            max_new_tokens: largest number of tokens of an answer.
            repetition_penalty: see ``generate``.
            prompts: token ids of the questions' prompts, if ``prompt_ids`` has made them before.

        Raises:
            PromptError: a prompt with its answer does not fit the decoder's context, or memory is not finite.
            FingerprintMismatchError: memory belongs to another connector than the checkpoint's.
        """
        require_texts(questions, "questions")
        for memory in memories:
            if not isinstance(memory, Memory):
                raise TypeError(f"memories must be a list of Memory, one for each question; found {memory!r:.80}")
        if len(questions) != len(memories):
            raise ValueError(f"{len(questions)} questions for the memory of {len(memories)}")
        if prompts is None:
            for question in questions:
                require_question(question)
            prompts = [self.prompt_ids(q, memory.lengths) for q, memory in zip(questions, memories, strict=True)]
        generated = self.generate(
            prompts, memories, max_new_tokens=max_new_tokens, repetition_penalty=repetition_penalty
        )
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in generated]

    def prompt_ids(self, question: str, documents: Sequence[int | str], *, answer: str | None = None) -> list[int]:
        """Return the token ids of a prompt, with one memory token for each memory vector (see ``Prompt``)."""
        text = self._prompt(question, documents, answer=answer)
        return self.tokenizer(text, add_special_tokens=self._prompt.adds_special_tokens)["input_ids"]

    def answered_ids(self, question: str, documents: Sequence[int | str], answer: str) -> tuple[list[int], int]:
        """Return the token ids of a prompt that ends with its answer, and the number of the answer's tokens.

        If the chat template closes a turn with an end token, that is the last token and counts as the answer's.

        Raises:
            PromptError: the chat template does not keep the answer as it is.
        """
        answer = self._prompt.clean(answer).strip()
        text = self._prompt(question, documents, answer=answer)
        # The text that closes the turn is the same after any answer. The answer is not searched for, since it may also
        # be part of the end token's name.
        other = self._prompt(question, documents, answer="x" if answer[-1:] != "x" else "y")
        closing = next((n for n, (a, b) in enumerate(zip(text[::-1], other[::-1], strict=False)) if a != b), len(text))
        end = len(text) - closing
        start = end - len(answer)
        encoded = self.tokenizer(text, add_special_tokens=self._prompt.adds_special_tokens, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        of_answer = [i for i, (begins, ends) in enumerate(offsets) if begins < end and ends > start]
        if not of_answer or text[start:end] != answer:
            raise PromptError(f"The decoder's chat template or tokenizer does not keep the answer {answer!r} as it is.")
        ends = self.generation.stop_token_ids
        last = next((i for i in range(of_answer[-1] + 1, len(ids)) if ids[i] in ends), of_answer[-1])
        return ids[: last + 1], last + 1 - of_answer[0]

    def embed(self, ids: Sequence[int], memory: Memory) -> torch.Tensor:
        """Return a prompt's input embeddings ``(length, hidden)``, memory in the place of its memory tokens, in order.

        These are also the ``prompt_embeds`` of vLLM.

        Raises:
            FingerprintMismatchError: the memory belongs to another connector than the checkpoint's.
            PromptError: the memory has another number of vectors than the prompt has memory tokens, or is not finite.
        """
        return self.embed_batch([ids], [memory])[0]

    @torch.inference_mode()
    def embed_batch(self, prompts: Sequence[Sequence[int]], memories: Sequence[Memory]) -> list[torch.Tensor]:
        """Return the input embeddings of several prompts, computed together (see ``embed``)."""
        for ids, memory in zip(prompts, memories, strict=True):
            self._require_slots(ids, memory)
        filled = [memory for memory in memories if len(memory.values)]
        if not filled:
            return self._fill(prompts, None)
        values = self._connect(filled).to(self.device, self.dtype)
        if not values.isfinite().all():
            for memory, part in zip(filled, values.split([len(memory.values) for memory in filled]), strict=True):
                _require_finite(memory, part)
        return self._fill(prompts, values)

    def embed_values(self, prompts: Sequence[Sequence[int]], values: torch.Tensor, stage: Stage) -> list[torch.Tensor]:
        """Return the input embeddings of several prompts such that gradients pass to the memory in them.

        Args:
            prompts: token ids with memory tokens.
            values: memory of all prompts in order, ``(Σ n_mem, dim)``, on the decoder's device.
            stage: stage of the memory.
        """
        if self.connector is not None and stage == "hidden":
            values = self.connector(values)
        return self._fill(prompts, values)

    def _fill(self, prompts: Sequence[Sequence[int]], values: torch.Tensor | None) -> list[torch.Tensor]:
        """Return the input embeddings of prompts, with values ``(Σ n_mem, hidden)`` at their memory tokens in order."""
        joined = torch.tensor(list(chain.from_iterable(prompts)), dtype=torch.int64, device=self.device)
        embeddings = self.model.get_input_embeddings()(joined)
        if values is not None:
            slots = torch.isin(joined, torch.tensor(sorted(self._memory_token_ids), device=self.device))
            embeddings[slots] = values.to(embeddings.device, embeddings.dtype)
        return list(embeddings.split(list(map(len, prompts))))

    def _connect(self, memories: Sequence[Memory]) -> torch.Tensor:
        """Return the vectors of all memory at stage ``"embedding"``, one memory after another."""
        if self.connector is None:
            return torch.cat([memory.values for memory in memories])
        if len({memory.stage for memory in memories}) > 1:
            return torch.cat([self.connector.connect(memory).values for memory in memories])
        values = torch.cat([memory.values for memory in memories])
        return self.connector.connect(replace(memories[0], values=values, lengths=(len(values),), doc_ids=())).values

    def _require_slots(self, ids: Sequence[int], memory: Memory) -> None:
        if memory.connector != self.memory_digest and not self._owns_memory(memory.connector):
            raise FingerprintMismatchError(
                f"The memory belongs to the connector {memory.connector}, the decoder's checkpoint has "
                f"{self.memory_digest}. Load the checkpoint that the store was built with."
            )
        slots = sum(token in self._memory_token_ids for token in ids)
        if slots != len(memory.values):
            raise PromptError(f"The prompt has {slots} memory tokens for {len(memory.values)} vectors.")

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        memories: Sequence[Memory],
        *,
        max_new_tokens: int = 128,
        repetition_penalty: float | None = None,
    ) -> list[list[int]]:
        """Return the greedy continuation of each prompt as token ids, up to and including the first end token.

        Args:
            prompts: token ids with memory tokens.
            memories: memory of each prompt's documents.
            max_new_tokens: largest number of tokens of an answer.
            repetition_penalty: factor by which tokens that an answer already has become less likely, 1.0 for none;
                default: the decoder's ``generation.repetition_penalty``.
        """
        self.require_fit(prompts, max_new_tokens)
        if not prompts:
            return []
        penalty = self.generation.repetition_penalty if repetition_penalty is None else repetition_penalty
        answers: list[list[int]] = [[] for _ in prompts]
        for batch in split_into_batches(list(map(len, prompts)), max_new_tokens, self.token_budget):
            found = decode(
                self.model,
                self.embed_batch([prompts[i] for i in batch], [memories[i] for i in batch]),
                self.generation.stop_token_ids,
                limit=max_new_tokens,
                penalty=penalty,
                pad=self.tokenizer.pad_token_id or 0,
            )
            for i, ids in zip(batch, found, strict=True):
                answers[i] = ids
        return answers

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], memory: Memory) -> torch.Tensor:
        """Return the logits ``(length, vocabulary)`` at every position of a prompt, in fp32."""
        return self.model(inputs_embeds=self.embed(ids, memory)[None]).logits[0].float()

    def loss(self, ids: Sequence[int], labels: Sequence[int], memory: Memory) -> torch.Tensor:
        """Return the mean negative log-likelihood of the labels, in nats per token. Labels of -100 do not count."""
        logits = self.logits(ids, memory)[:-1]
        return nn.functional.cross_entropy(logits, torch.as_tensor(labels, device=self.device)[1:])

    @torch.inference_mode()
    def answer_log_probs(
        self, prompts: Sequence[Sequence[int]], answer_tokens: Sequence[int], memories: Sequence[Memory]
    ) -> list[torch.Tensor]:
        """Return the log-probabilities of the whole vocabulary at each token of each answer, given the tokens before.

        Args:
            prompts: token ids that end with their answers, as ``answered_ids`` returns them.
            answer_tokens: number of tokens of each answer, at least one.
            memories: memory of each prompt's documents.

        Returns:
            One tensor ``(answer tokens, vocabulary)`` per prompt, in fp32.
        """
        self.require_fit(prompts, 0)
        if not prompts:
            return []
        # The last token is only predicted, so the model need not read it.
        embeddings = [self.embed(ids[:-1], memory) for ids, memory in zip(prompts, memories, strict=True)]
        return [logits.float().log_softmax(-1) for logits in self.answer_logits(embeddings, answer_tokens)]

    def answer_logits(self, embeddings: Sequence[torch.Tensor], answer_tokens: Sequence[int]) -> list[torch.Tensor]:
        """Return the logits at each token of each answer ``(answer tokens, vocabulary)``. Gradients pass through.

        Args:
            embeddings: input embeddings ``(length, hidden)`` of each prompt up to its answer's last token but one.
            answer_tokens: number of tokens of each answer, at least one.
        """
        attended = [torch.ones(len(each), dtype=torch.int64, device=self.device) for each in embeddings]
        mask = pad_sequence(attended, batch_first=True, padding_side="left")
        longest = max(answer_tokens)
        logits = self.model(
            inputs_embeds=pad_sequence(list(embeddings), batch_first=True, padding_side="left"),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=longest,
            use_cache=False,
        ).logits
        return [row[longest - count :] for row, count in zip(logits, answer_tokens, strict=True)]

    def require_fit(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Check that every prompt fits the decoder's context, with the new tokens after it.

        Raises:
            PromptError: stating the length of the longest prompt.
        """
        limit = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(map(len, prompts), default=0)
        if limit is not None and longest + max_new_tokens > limit:
            raise PromptError(
                f"A prompt of {longest} tokens and an answer of up to {max_new_tokens} do not fit the decoder's "
                f"context of {limit}. Give fewer documents, or a smaller number of new tokens."
            )


def _require_finite(memory: Memory, values: torch.Tensor) -> None:
    """Check the vectors of documents, at either stage."""
    if values.isfinite().all():
        return
    found = [number for number, part in enumerate(values.split(list(memory.lengths))) if not part.isfinite().all()]
    named = [memory.doc_ids[number] for number in found] if memory.doc_ids else [number + 1 for number in found]
    raise PromptError(
        f"The memory of {some(named)} is not finite. Check the store with pisco-index verify, or compress "
        "the document again."
    )


def _end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    ends = model.generation_config.eos_token_id if model.generation_config else None
    if ends is None:
        ends = tokenizer.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
