"""The decoder of a training: either LoRA pairs and embeddings are trained, or every weight."""

import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from ..errors import CheckpointError
from .families.pisco import PiscoCheckpoint
from .loading.adapters import LORA_SCALE, ORIGINAL, SAVED_COPY, embedding_names, merge_decoder_state, require_pairs

# Parts of the names of a wrapped decoder's tensors that belong into a decoder_state.pt.
_STATE_PARTS = (".lora_", f".{ORIGINAL}.", f".{SAVED_COPY}.")


def full_decoder(checkpoint: PiscoCheckpoint) -> Any:
    """Return the decoder with the checkpoint's weights merged, every weight trainable, in fp32."""
    model = checkpoint.load_decoder_base(dtype=torch.float32)
    merge_decoder_state(model, checkpoint.load_decoder_state(), str(checkpoint.decoder_state_path))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if torch.equal(embedding.weight, head.weight):
        # Merging makes two weights of tied ones.
        head.weight = embedding.weight
        model.config.tie_word_embeddings = True
    return model.requires_grad_(True)


def lora_decoder(checkpoint: PiscoCheckpoint, dropout: float, base_dtype: torch.dtype) -> Any:
    """Return the base decoder wrapped by peft, with the checkpoint's LoRA pairs and embeddings trainable, in fp32.

    Args:
        checkpoint: the checkpoint.
        dropout: dropout of the LoRA pairs' input.
        base_dtype: dtype of the frozen weights.

    Raises:
        CheckpointError: the checkpoint has no LoRA pairs, or its tensors do not fit the base decoder.
    """
    origin = checkpoint.decoder_state_path
    base = checkpoint.load_decoder_base(dtype=base_dtype)
    state = checkpoint.load_decoder_state()
    adapted = [name.partition(".lora_A.")[0] for name in state if ".lora_A." in name]
    if not adapted:
        raise CheckpointError(f"{origin}: has no LoRA pairs to train.")
    require_pairs(base, adapted, str(origin))
    rank = state[f"{adapted[0]}.lora_A.default.weight"].shape[0]
    base.resize_token_embeddings(len(checkpoint.decoder_tokenizer), mean_resizing=False)
    # The checkpoint holds an embedding and a head of its own, which are trained separately.
    base.config.tie_word_embeddings = False
    whole = embedding_names(base)
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
        # peft calls transformers by a deprecated name.
        warnings.simplefilter("ignore", FutureWarning)
        model: Any = get_peft_model(base, settings)
    _load_state(model, state, str(origin))
    for values in model.parameters():
        if values.requires_grad:
            values.data = values.data.float()
    return model


def _load_state(model: Any, state: dict[str, torch.Tensor], origin: str) -> None:
    """Load the tensors of a ``decoder_state.pt`` into a wrapped decoder."""
    try:
        report = model.base_model.model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{origin}: does not fit the base decoder: {reason}") from None
    if report.unexpected_keys:
        raise CheckpointError(f"{origin}: {report.unexpected_keys[0]} has no place in the base decoder.")
    # The original embeddings may be missing, since nothing reads them.
    if lacking := [name for name in report.missing_keys if ".lora_" in name or f".{SAVED_COPY}." in name]:
        raise CheckpointError(f"{origin}: lacks {lacking[0]}.")


def decoder_state(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors of a ``decoder_state.pt`` from a decoder of ``lora_decoder``, on the CPU."""
    return {
        name: values.to("cpu", dtype)
        for name, values in model.base_model.model.state_dict().items()
        if any(part in name for part in _STATE_PARTS)
    }
