"""A checkpoint's compressor, connector and decoder as one trainable module, which is saved as a checkpoint again.

The compressor and the connector are trained in full. Of the decoder either the LoRA pairs and the embeddings are
trained, as the papers do, or every weight, for a decoder that is itself new.
"""

import copy
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import TrainingError
from .create import new_decoder_state, save_checkpoint, save_model
from .families.pisco import PiscoCheckpoint
from .forward.failures import remove_damaged_code
from .passages import MEMORY_TOKEN
from .trainable_decoder import decoder_state, full_decoder, lora_decoder

log = logging.getLogger(__name__)

DecoderTraining = Literal["lora", "full"]
# Folder of a fully trained decoder in the new checkpoint.
BASE_DECODER = "base_decoder"
# Label of positions that the loss ignores.
IGNORED = -100
# Number of tokens from which the fused attention kernel is faster on a CPU in bfloat16. In float32 it always is.
FUSED_FROM = 300


class TrainableModel(nn.Module):
    """Compressor, connector and decoder, joined at the memory tokens of the prompts.

    Args:
        checkpoint: checkpoint to start from.
        decoder: ``"lora"`` trains the checkpoint's LoRA pairs and its copies of the embeddings, ``"full"`` every
            weight; the trained base is then written into the new checkpoint's folder.
        lora_dropout: dropout of the LoRA pairs' input during training.
        base_dtype: dtype of the frozen weights. All trained weights are fp32, and autocast rounds them.

    Raises:
        CheckpointError: weights are missing or do not fit.
    """

    # Tells transformers' Trainer that forward divides by the number of labels of the whole step.
    accepts_loss_kwargs = True

    def __init__(
        self,
        checkpoint: PiscoCheckpoint,
        *,
        decoder: DecoderTraining = "lora",
        lora_dropout: float = 0.0,
        base_dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.checkpoint = checkpoint
        self.decoder_training: DecoderTraining = decoder
        self.compressor = checkpoint.load_causal_compressor(dtype=torch.float32)
        self.connector = copy.deepcopy(checkpoint.connector).float()
        if decoder == "full":
            self.decoder = full_decoder(checkpoint)
        else:
            self.decoder = lora_decoder(checkpoint, lora_dropout, base_dtype)
        checkpoint.require_decoder_fits(self.decoder)
        self._recomputes_activations = False
        self.compressor.requires_grad_(True)
        # The compressor's lm_head has no part in memory. If it is tied to the embedding, it is trained as that.
        head, embedding = self.compressor.get_output_embeddings(), self.compressor.get_input_embeddings()
        head.weight.requires_grad_(head.weight is embedding.weight)
        self.connector.requires_grad_(True)
        self._compressor_memory_id: int = checkpoint.memory_token_id
        self._decoder_memory_id: int = checkpoint.decoder_tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)

    def forward(
        self,
        passages: torch.Tensor,
        passage_mask: torch.Tensor,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the loss of prompts that read memory.

        Args:
            passages: compressor ids with their memory tokens, padded on the right, ``(passages, length)``.
            passage_mask: False at padding, ``(passages, length)`` bool.
            input_ids: decoder ids, padded on the right, ``(prompts, length)``. The passages' memory takes the place of
                their ``<MEM>`` tokens, in order.
            labels: ids to predict, -100 at all other positions, ``(prompts, length)``.
            num_items_in_batch: number of labels to divide the sum by, if a step has several batches; default: the
                number of this batch's labels.

        Returns:
            ``{"loss": mean negative log-likelihood in nats per label}``.

        Raises:
            TrainingError: passages and prompts have different numbers of memory tokens.
        """
        # Activations that the backward pass recomputes must be computed with the same attention. The choice made here
        # would not apply there.
        is_plain = not self._recomputes_activations and _is_plain_faster(input_ids)
        with sdpa_kernel(SDPBackend.MATH) if is_plain else nullcontext():
            return {"loss": self._loss(passages, passage_mask, input_ids, labels, num_items_in_batch)}

    def _loss(
        self,
        passages: torch.Tensor,
        passage_mask: torch.Tensor,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        embeddings = self.decoder.get_input_embeddings()(input_ids)
        slots = input_ids == self._decoder_memory_id
        if passages.shape[0]:
            memory = self.connector(self._compress(passages, passage_mask)).to(embeddings.dtype)
            if int(slots.sum()) != len(memory):
                raise TrainingError(f"the prompts have {int(slots.sum())} memory tokens, the passages {len(memory)}.")
            embeddings = embeddings.masked_scatter(slots[..., None], memory)
        predicted = labels[:, 1:] != IGNORED
        total = nn.functional.cross_entropy(
            self._logits(embeddings, predicted).float(), labels[:, 1:][predicted], reduction="sum"
        )
        return total / (predicted.sum() if num_items_in_batch is None else num_items_in_batch)

    def _logits(self, embeddings: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(labels, vocabulary)`` at the positions that predict a label.

        Logits at every position would be the largest tensor of all. The states are selected on their way into the
        output head, so that what an architecture does after the head (scaling, soft-capping) still applies.
        """

        def select(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return given[0][:, :-1][predicted][None], *given[1:]

        with self.decoder.get_output_embeddings().register_forward_pre_hook(select):
            return self.decoder(inputs_embeds=embeddings, use_cache=False).logits[0]

    def _compress(self, passages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # No attention mask: padding follows a passage, and causal attention does not look ahead.
        states = self.compressor.base_model(input_ids=passages, use_cache=False).last_hidden_state
        return states[(passages == self._compressor_memory_id) & mask]

    def compile_models(self) -> None:
        """Compile both models with torch.compile, once for batches of all shapes.

        Code that an interrupted compilation left incomplete in torch's cache is removed.
        """
        for path in remove_damaged_code():
            log.warning("Removed %s, which an interrupted compilation left incomplete.", path)
        decoder = self.decoder if self.decoder_training == "full" else self.decoder.get_base_model()
        # The output heads are left out, since they take a varying number of states.
        for model in (self.compressor, decoder):
            model.base_model.compile(dynamic=True)

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Keep only the input of each layer, and recompute its activations in the backward pass."""
        self._recomputes_activations = True
        for model in (self.compressor, self.decoder):
            model.activation_checkpointing_enable(**settings)

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Alias that earlier versions of transformers call."""
        self._recomputes_activations = True
        for model in (self.compressor, self.decoder):
            model.gradient_checkpointing_enable(**settings)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the trained tensors. A resumed training needs only these and the checkpoint that it started from."""
        if args or kwargs:
            return super().state_dict(*args, **kwargs)
        return {name: values.detach() for name, values in self.named_parameters() if values.requires_grad}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:  # noqa: ARG002
        """Load the tensors that ``state_dict`` returned.

        Raises:
            TrainingError: the state has other tensors than this model trains.
        """
        expected = {name for name, values in self.named_parameters() if values.requires_grad}
        if set(state_dict) != expected:
            differing = sorted(expected ^ set(state_dict))
            raise TrainingError(
                f"the saved training state has other tensors than this training, the first: {differing[0]}. "
                "Resume with the settings that it was started with."
            )
        report = super().load_state_dict(state_dict, strict=False, assign=assign)
        report.missing_keys.clear()
        return report

    def save(self, out: str | Path, dtype: torch.dtype = torch.bfloat16) -> PiscoCheckpoint:
        """Write a checkpoint that ``build`` and ``ask`` can use.

        Args:
            out: a folder that does not exist or is empty.
            dtype: dtype of the weights on disk.
        """
        out, opened = Path(out), self.checkpoint
        if self.decoder_training == "full":
            base, base_name = _copy(self.decoder, dtype), BASE_DECODER
            state = new_decoder_state(base, len(opened.decoder_tokenizer), opened.config.lora_r_decoder)
        else:
            base, base_name = None, self._base_name()
            state = decoder_state(self.decoder, dtype)
        save_checkpoint(
            out,
            opened.config.model_copy(update={"decoder_model_name": base_name}),
            compressor=_copy(self.compressor, dtype),
            connector=_copy(self.connector, dtype),
            decoder_state=state,
            compressor_tokenizer=opened.compressor_tokenizer,
            decoder_tokenizer=opened.decoder_tokenizer,
        )
        if base is not None:
            save_model(base, out / BASE_DECODER)
            opened.decoder_tokenizer.save_pretrained(out / BASE_DECODER)
        elif not Path(base_name).is_absolute() and (opened.path / base_name).is_dir():
            # A base inside the checkpoint's folder is copied with it.
            shutil.copytree(opened.path / base_name, out / base_name)
        return PiscoCheckpoint(out)

    def _base_name(self) -> str:
        """Return a name by which a new checkpoint finds the base decoder from any place."""
        name = self.checkpoint.find_decoder_base()
        own = self.checkpoint.path.resolve()
        return Path(name).relative_to(own).as_posix() if Path(name).is_relative_to(own) else name


def _is_plain_faster(ids: torch.Tensor) -> bool:
    """Return True if plain matrix products are faster than the fused attention kernel."""
    is_short = ids.shape[1] < FUSED_FROM
    return ids.device.type == "cpu" and is_short and torch.is_autocast_enabled("cpu")


def _copy(model: Any, dtype: torch.dtype) -> Any:
    """Return a copy of a model in main memory with another dtype. Each tensor is copied once, even if it is tied."""
    # deepcopy takes the objects in this memo for copied already.
    copies: dict[int, Any] = {
        id(values): nn.Parameter(values.detach().to("cpu", dtype, copy=True), requires_grad=False)
        for values in model.parameters()
    }
    copies |= {
        id(values): values.to("cpu", dtype if values.is_floating_point() else values.dtype, copy=True)
        for values in model.buffers()
    }
    return copy.deepcopy(model, copies)
