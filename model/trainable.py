"""A checkpoint's compressor, connector and decoder as one module with a loss, and back to a checkpoint.

The compressor and the connector are trained in full. Of the decoder, either LoRA pairs and the embeddings are trained
(as the papers do), or all of it, for a decoder that is itself new.
"""

import copy
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import CheckpointError, TrainingError
from .create import new_decoder_state, save_checkpoint, save_model
from .decoder import LORA_SCALE, ORIGINAL, SAVED_COPY, merge_decoder_state
from .families.pisco import Checkpoint, rows_needed
from .passages import MEMORY_TOKEN

DecoderTraining = Literal["lora", "full"]
BASE_DECODER = "base_decoder"
# Of a wrapped decoder, what its decoder_state.pt holds.
STATE_PARTS = (".lora_", f".{ORIGINAL}.", f".{SAVED_COPY}.")
# What the loss passes over.
IGNORED = -100
# Tokens from which on the fused kernel's backward pass is faster on a CPU in bfloat16, too. In float32 it always is.
LONG_FOR_PLAIN = 300


class TrainableModel(nn.Module):
    """Compressor, connector and decoder, joined where memory takes the place of ``<MEM>`` embeddings.

    Args:
        checkpoint: what to start from.
        decoder: ``"lora"`` trains the checkpoint's LoRA pairs and its copies of the embeddings, ``"full"`` every
            weight; the trained base is then written into the new checkpoint's folder.
        lora_dropout: of the LoRA pairs' input, while training.
        base_dtype: of the weights that stay as they are; all that is trained is fp32, for autocast to round.

    Raises:
        CheckpointError: if weights are missing or do not fit.
    """

    # Tells transformers' Trainer that forward divides by the number of labels of the whole step.
    accepts_loss_kwargs = True

    def __init__(
        self,
        checkpoint: Checkpoint,
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
            self.decoder = _whole_decoder(checkpoint)
        else:
            self.decoder = _adapted_decoder(checkpoint, lora_dropout, base_dtype)
        self._computes_again = False
        self._require_fit()
        self.compressor.requires_grad_(True)
        # Its lm_head has no part in memory; tied to the embedding, it is trained as that.
        head, embedding = self.compressor.get_output_embeddings(), self.compressor.get_input_embeddings()
        head.weight.requires_grad_(head.weight is embedding.weight)
        self.connector.requires_grad_(True)
        self._compressor_memory_id: int = checkpoint.compressor_tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)
        self._decoder_memory_id: int = checkpoint.decoder_tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)

    def _require_fit(self) -> None:
        rows, needed = self.decoder.get_input_embeddings().weight.shape
        tokens, width = rows_needed(self.checkpoint.decoder_tokenizer), self.connector.out_dim
        if rows < tokens:
            origin = self.checkpoint.path / "decoder_state.pt"
            raise CheckpointError(f"{origin}: {rows} embedding rows for a tokenizer of {tokens} tokens.")
        if width != needed:
            raise CheckpointError(
                f"{self.checkpoint.path}: the connector gives {width} values, the decoder takes {needed}."
            )

    def forward(
        self,
        passages: torch.Tensor,
        passage_mask: torch.Tensor,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> dict[str, torch.Tensor]:
        """The loss of prompts that read memory.

        Args:
            passages: ``(passages, length)`` compressor ids with their memory tokens, padded on the right.
            passage_mask: ``(passages, length)`` bool, False at padding.
            input_ids: ``(prompts, length)`` decoder ids, padded on the right; their ``<MEM>`` take the passages'
                memory in order.
            labels: ``(prompts, length)`` ids to be predicted, -100 elsewhere and at padding.
            num_items_in_batch: labels to divide the sum by, where a step has several batches; default: this one's.

        Returns:
            ``{"loss": mean negative log-likelihood, nats a label}``.

        Raises:
            TrainingError: if passages and prompts differ in memory tokens.
        """
        # What is computed again in the backward pass is out of reach here, and must be computed the same way.
        plain = not self._computes_again and _is_plain_faster(input_ids)
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
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
                raise TrainingError(f"The prompts have {int(slots.sum())} memory tokens, the passages {len(memory)}.")
            embeddings = embeddings.masked_scatter(slots[..., None], memory)
        predicted = labels[:, 1:] != IGNORED
        total = nn.functional.cross_entropy(
            self._logits(embeddings, predicted).float(), labels[:, 1:][predicted], reduction="sum"
        )
        return total / (predicted.sum() if num_items_in_batch is None else num_items_in_batch)

    def _logits(self, embeddings: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Logits ``(labels, vocabulary)``, only where something is predicted.

        A vocabulary of them at every position would be the largest tensor. The states are picked on their way into the
        output head, so that what an architecture does behind it (scaling, soft-capping) stays its own.
        """

        def pick(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return given[0][:, :-1][predicted][None], *given[1:]

        with self.decoder.get_output_embeddings().register_forward_pre_hook(pick):
            return self.decoder(inputs_embeds=embeddings, use_cache=False).logits[0]

    def _compress(self, passages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # No attention mask: padding stands behind a passage, where causal attention does not look.
        states = self.compressor.base_model(input_ids=passages, use_cache=False).last_hidden_state
        return states[(passages == self._compressor_memory_id) & mask]

    def compile_models(self) -> None:
        """Let torch.compile fuse what both models compute, once for batches of all shapes."""
        decoder = self.decoder if self.decoder_training == "full" else self.decoder.get_base_model()
        # Not their output heads, into which only some states go.
        for model in (self.compressor, decoder):
            model.base_model.compile(dynamic=True)

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Keep each layer's input only, and compute the rest again in the backward pass."""
        self._computes_again = True
        for model in (self.compressor, self.decoder):
            model.activation_checkpointing_enable(**settings)

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """The same, by the name that earlier versions of transformers have for it."""
        self._computes_again = True
        for model in (self.compressor, self.decoder):
            model.gradient_checkpointing_enable(**settings)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What is trained, each tensor once: all that a resumed training needs beside the checkpoint it began from."""
        if args or kwargs:
            return super().state_dict(*args, **kwargs)
        return {name: values.detach() for name, values in self.named_parameters() if values.requires_grad}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:  # noqa: ARG002
        """Take over what ``state_dict`` gave."""
        expected = {name for name, values in self.named_parameters() if values.requires_grad}
        if set(state_dict) != expected:
            strange = sorted(expected ^ set(state_dict))
            raise TrainingError(
                f"The saved training state has other tensors than this training, the first: {strange[0]}. "
                "Go on with the settings it was begun with."
            )
        report = super().load_state_dict(state_dict, strict=False, assign=assign)
        report.missing_keys.clear()
        return report

    def save(self, out: str | Path, dtype: torch.dtype = torch.bfloat16) -> Checkpoint:
        """Write a checkpoint of the "pisco" layout, as ``build`` and ``ask`` take it.

        Args:
            out: a folder that does not exist or is empty.
            dtype: of the weights on disk.
        """
        out = Path(out)
        opened = self.checkpoint
        config, state = opened.config, {}
        if self.decoder_training == "full":
            base = _copy(self.decoder, dtype)
            state = new_decoder_state(base, len(opened.decoder_tokenizer), config.lora_r_decoder)
            config = config.model_copy(update={"decoder_model_name": BASE_DECODER})
        else:
            base = None
            state = {
                name: values.to("cpu", dtype)
                for name, values in self.decoder.base_model.model.state_dict().items()
                if any(part in name for part in STATE_PARTS)
            }
            config = config.model_copy(update={"decoder_model_name": self._base_name()})
        save_checkpoint(
            out,
            config,
            compressor=_copy(self.compressor, dtype),
            connector=_copy(self.connector, dtype),
            decoder_state=state,
            compressor_tokenizer=opened.compressor_tokenizer,
            decoder_tokenizer=opened.decoder_tokenizer,
        )
        if base is not None:
            save_model(base, out / BASE_DECODER)
            opened.decoder_tokenizer.save_pretrained(out / BASE_DECODER)
        elif not Path(config.decoder_model_name).is_absolute() and (opened.path / config.decoder_model_name).is_dir():
            # A base that lies in the checkpoint's own folder goes with it.
            shutil.copytree(opened.path / config.decoder_model_name, out / config.decoder_model_name)
        return Checkpoint(out)

    def _base_name(self) -> str:
        """What a new checkpoint, wherever it lies, finds the base decoder by."""
        name = self.checkpoint.resolve(self.checkpoint.decoder_base, "decoder")
        own = self.checkpoint.path.resolve()
        return Path(name).relative_to(own).as_posix() if Path(name).is_relative_to(own) else name


def _is_plain_faster(ids: torch.Tensor) -> bool:
    """Whether plain products do attention faster than the fused kernel: short prompts in bfloat16, on a CPU."""
    is_short = ids.shape[1] < LONG_FOR_PLAIN
    return ids.device.type == "cpu" and is_short and torch.is_autocast_enabled("cpu")


def _copy(model: Any, dtype: torch.dtype) -> Any:
    """A copy in main memory, of another dtype: one tensor at a time, and tied ones once."""
    # What deepcopy finds here it takes for copied.
    copies: dict[int, Any] = {
        id(values): nn.Parameter(values.detach().to("cpu", dtype, copy=True), requires_grad=False)
        for values in model.parameters()
    }
    copies |= {
        id(values): values.to("cpu", dtype if values.is_floating_point() else values.dtype, copy=True)
        for values in model.buffers()
    }
    return copy.deepcopy(model, copies)


def _whole_decoder(checkpoint: Checkpoint) -> Any:
    """The decoder with the checkpoint's weights merged, every weight of it to be trained."""
    model = checkpoint.load_decoder_base(dtype=torch.float32)
    merge_decoder_state(model, checkpoint.load_decoder_state(), str(checkpoint.path / "decoder_state.pt"))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if torch.equal(embedding.weight, head.weight):
        # Merging makes two of tied ones.
        head.weight = embedding.weight
        model.config.tie_word_embeddings = True
    return model.requires_grad_(True)


def _adapted_decoder(checkpoint: Checkpoint, dropout: float, base_dtype: torch.dtype) -> Any:
    """The base decoder wrapped by peft, the checkpoint's LoRA pairs and embeddings laid into it."""
    origin = checkpoint.path / "decoder_state.pt"
    base = checkpoint.load_decoder_base(dtype=base_dtype)
    state = checkpoint.load_decoder_state()
    adapted = [name.partition(".lora_A.")[0] for name in state if ".lora_A." in name]
    if not adapted:
        raise CheckpointError(f"{origin}: has no LoRA pairs to train.")
    rank = state[f"{adapted[0]}.lora_A.default.weight"].shape[0]
    base.resize_token_embeddings(len(checkpoint.decoder_tokenizer), mean_resizing=False)
    # The checkpoint holds two, which are trained apart.
    base.config.tie_word_embeddings = False
    names = {id(module): name for name, module in base.named_modules()}
    whole = [names[id(module)] for module in (base.get_input_embeddings(), base.get_output_embeddings())]
    if lacking := [name for name in whole if f"{name}.{SAVED_COPY}.weight" not in state]:
        raise CheckpointError(f"{origin}: lacks {lacking[0]}.{SAVED_COPY}.weight.")
    settings = LoraConfig(
        r=rank,
        lora_alpha=int(LORA_SCALE * rank),
        lora_dropout=dropout,
        target_modules=adapted,
        modules_to_save=sorted({name.rpartition(".")[2] for name in whole}),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers something by a name that is going away.
        warnings.simplefilter("ignore", FutureWarning)
        model: Any = get_peft_model(base, settings)
    try:
        report = model.base_model.model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{origin}: does not fit the base decoder: {reason}") from None
    if report.unexpected_keys:
        raise CheckpointError(f"{origin}: {report.unexpected_keys[0]} has no place in the base decoder.")
    # A copy of the embeddings as they were plays no part.
    if lacking := [name for name in report.missing_keys if ".lora_" in name or f".{SAVED_COPY}." in name]:
        raise CheckpointError(f"{origin}: lacks {lacking[0]}.")
    for values in model.parameters():
        if values.requires_grad:
            values.data = values.data.float()
    return model
