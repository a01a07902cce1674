"""Family "cocom-v1": the first COCOM checkpoints, with one adapter for both roles, or a BERT that compresses ("light").

::

    config.json                                     name of the base, rate, LoRA rank
    model.safetensors, or shards with an index      the decoder with its base weights and pairs; light: BERT, Linear

The base model gives its configuration and its tokenizer only. A passage has at most 128 tokens, which ``config.json``
does not say. No code from the folder runs, and no network is used.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import AutoModel

from ...configs import CompressionConfig
from ...errors import CheckpointError
from ..forward.grouped import GroupedEncoder
from ..framed_passages import (
    FramedPassageTokenizer,
    Padded,
    WithMemory,
    default_frame,
    passage_limit,
    unchanged,
    written_frame,
)
from ..loading.bases import base_folder
from ..loading.content import digest_model
from ..loading.files import digest_weights
from ..loading.lora import Adapter, require_adapter_fits, take_adapter
from ..loading.models import empty_model, load_model_config, load_tokenizer, model_of_state
from ..loading.weights import WeightFiles
from ..passages import GROUPED
from ..prompt import CocomV1Prompt
from .cocom import digest_base, digest_base_files
from .on_base import FamilyConfig, OnBaseCheckpoint, read_family_config

ENCODE_TOKEN, MEMORY_TOKEN, SEPARATOR = "<ENC>", "<MEM>", "<SEP>"
# Tokens of a passage, as the models were trained.
DOC_MAX_LENGTH = 128
DECODER = "decoder.base_model.model."
ENCODER = "compr.model."
PROJECTION = "compr.linear."
# BERT has it, and memory does not come from it.
POOLER = "pooler."


class CocomV1Config(FamilyConfig):
    """Content of ``config.json``."""

    compr_rate: int = Field(gt=0, le=1 << 16)
    compr_model_name: str | None = None
    compr_linear_type: str | None = "concat"
    sep: bool = False
    lora: Literal[True] = True
    lora_r: int = Field(16, gt=0, le=4096)
    quantization: str | None = "no"

    @model_validator(mode="after")
    def _check(self) -> "CocomV1Config":
        if self.compr_model_name and self.compr_linear_type != "concat":
            raise ValueError(f"compr_linear_type {self.compr_linear_type!r} is unknown, expected 'concat'")
        return self


class CocomV1Checkpoint(OnBaseCheckpoint):
    """A checkpoint folder of family "cocom-v1".

    Args:
        path: folder of the checkpoint.
        doc_max_length: largest number of tokens of a passage; default: 128.
        has_two_bos: True for two BOS before a prompt, as the released model is called; False for one.
        bases: ``decoder_base`` and ``compressor_base`` (see ``OnBaseCheckpoint``).
    """

    family = "cocom-v1"
    config: CocomV1Config

    def __init__(self, path: Any, *, doc_max_length: int | None = None, has_two_bos: bool = True, **bases: str | None):
        super().__init__(path, **bases)
        self.doc_max_length = DOC_MAX_LENGTH if doc_max_length is None else doc_max_length
        self.has_two_bos = has_two_bos

    @cached_property
    def _weights(self) -> WeightFiles:
        return WeightFiles(self.path)

    def _require_layout(self) -> None:
        _ = self._weights

    def _read_config(self) -> CocomV1Config:
        return read_family_config(self.path, CocomV1Config)

    @property
    def rate(self) -> int:
        """Number of source tokens per memory token."""
        return self.config.compr_rate

    @property
    def is_light(self) -> bool:
        """True if a BERT compresses."""
        return bool(self.config.compr_model_name)

    @property
    def n_mem(self) -> int:
        """Number of vectors of a full passage; of every passage unless the checkpoint is light."""
        return -(-self.doc_max_length // self.rate)

    @property
    def n_mem_rule(self) -> dict[str, str]:
        """Number of vectors of a passage, and its largest number of tokens."""
        n_mem = GROUPED if self.is_light else str(self.n_mem)
        return {"n_mem": n_mem, "passage_tokens": str(self.doc_max_length), "passage_extra": "0"}

    # Tokens

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Tokens that the checkpoint adds to the base decoder's tokenizer, in order."""
        return (MEMORY_TOKEN, "<AE>", ENCODE_TOKEN, SEPARATOR)

    @property
    def prompt(self) -> CocomV1Prompt:
        """The decoder's prompt."""
        return CocomV1Prompt(
            self.decoder_tokenizer,
            (MEMORY_TOKEN,) * (1 if self.is_light else self.n_mem),
            SEPARATOR if self.config.sep else "",
            self.special_tokens,
            self.has_two_bos,
        )

    @property
    def compressor_base(self) -> str:
        """Name or folder of the model that the compressor was made from."""
        return self._given_compressor_base or self.config.compr_model_name or self.decoder_base

    @cached_property
    def compressor_folder(self) -> Path:
        """Folder of the encoder that a light checkpoint compresses with: its configuration and tokenizer.

        Raises:
            CheckpointError: naming the model and the flag, if it is not there.
        """
        return base_folder(
            self.path,
            self.compressor_base,
            is_trusted=self._is_compressor_base_given,
            key="compr_model_name",
            model="compressor's base",
            flag="--compressor-base",
        )

    @cached_property
    def compressor_tokenizer(self) -> Any:
        """The compressor's tokenizer: the decoder's, or the encoder's in a light checkpoint."""
        return load_tokenizer(self.compressor_folder) if self.is_light else self.decoder_tokenizer

    @property
    def memory_token_ids(self) -> tuple[int, ...]:
        """Id of ``<MEM>``; empty in a light checkpoint, where every token takes part in memory."""
        return () if self.is_light else (self.decoder_tokenizer.convert_tokens_to_ids(MEMORY_TOKEN),)

    def passage_tokenizer(self, compression: CompressionConfig) -> FramedPassageTokenizer:
        """Return the tokenizer that cuts documents into passages of at most ``doc_max_length`` tokens.

        A smaller ``max_length`` of the settings is used instead. The number of vectors of a passage stays the same,
        unless the checkpoint is light.

        Raises:
            ConfigError: the settings leave no room for text.
        """
        tokenizer = self.compressor_tokenizer
        if self.is_light:
            finish = Padded(tokenizer.pad_token_id, self.rate)
            frame, clean = default_frame(tokenizer), unchanged
        else:
            before = ENCODE_TOKEN + (tokenizer.bos_token or "")
            frame = written_frame(tokenizer, before, tokenizer.eos_token or "")
            finish, clean = WithMemory(self.memory_token_ids * self.n_mem), self.special_tokens.break_up
        return FramedPassageTokenizer(
            frame,
            passage_limit(compression, self.doc_max_length, 0),
            finish,
            clean,
            on_long=compression.on_long,
            overlap=compression.overlap,
            memory_token_ids=self.memory_token_ids,
        )

    # Weights

    @property
    def table_rows(self) -> int:
        """Number of rows of the decoder's embedding table."""
        name = f"{DECODER}model.embed_tokens.weight"
        shape = self._weights.shapes.get(name)
        if shape is None or len(shape) != 2:
            raise CheckpointError(f"{self.path}: its weights lack {name}.")
        return shape[0]

    @property
    def _tensors(self) -> int:
        return len(self._weights.shapes)

    def check(self) -> None:
        """Check names, shapes and vocabulary of all files against the base model, before weights are read.

        Raises:
            CheckpointError: naming the first tensor that is missing, left over, or of a wrong shape.
        """
        _ = self._is_checked

    @cached_property
    def _is_checked(self) -> bool:
        shapes = {name: torch.empty(shape, device="meta") for name, shape in self._weights.shapes.items()}
        own = {name.removeprefix(DECODER): each for name, each in shapes.items() if name.startswith(DECODER)}
        decoder, pairs = self._split(own)
        empty = self.empty_decoder
        require_adapter_fits(pairs, empty.base_model, self.config.lora_r, self.path)
        expected = {name: tuple(parameter.shape) for name, parameter in empty.named_parameters()}
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            expected[name] = (self.table_rows, self.decoder_config.hidden_size)
        if getattr(self.decoder_config, "tie_word_embeddings", False) and "lm_head.weight" not in decoder:
            del expected["lm_head.weight"]
        expected = {DECODER + name: shape for name, shape in expected.items()}
        found = {DECODER + name: tuple(each.shape) for name, each in decoder.items()}
        others = {name: tuple(each.shape) for name, each in shapes.items() if not name.startswith(DECODER)}
        if self.is_light:
            expected |= self._expected_of_encoder()
        require_shapes(expected, found | others, self.path)
        _ = self.decoder_tokenizer, self.generation
        return True

    def _expected_of_encoder(self) -> dict[str, tuple[int, ...]]:
        config = self.compressor_config
        empty = empty_model(AutoModel, config, self.compressor_folder, self._tensors)
        expected = {ENCODER + name: tuple(parameter.shape) for name, parameter in empty.named_parameters()}
        width = self.decoder_config.hidden_size
        expected |= {f"{PROJECTION}weight": (width, self.rate * config.hidden_size), f"{PROJECTION}bias": (width,)}
        tokens = len(self.compressor_tokenizer)
        if tokens > config.vocab_size:
            raise CheckpointError(
                f"{self.compressor_folder}: its tokenizer has {tokens} tokens, its configuration {config.vocab_size}."
            )
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and self.n_mem * self.rate > limit:
            raise CheckpointError(
                f"{self.path}: passages have {self.doc_max_length} tokens, but its compressor takes {limit}."
            )
        return expected

    @cached_property
    def compressor_config(self) -> Any:
        """The encoder's transformers configuration, in a light checkpoint."""
        return load_model_config(self.compressor_folder)

    def _split(self, state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Adapter]:
        """Return the decoder's own weights by their names in the base model, and its LoRA pairs."""
        pairs = {name: tensor for name, tensor in state.items() if ".lora_" in name}
        own = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if name not in pairs}
        return own, take_adapter(pairs, f"{self.empty_decoder.base_model_prefix}.", self.path)

    def _adapter(self, role: str) -> Adapter:  # noqa: ARG002
        pairs = self._weights.read(DECODER, ".lora_")
        return self._split({name.removeprefix(DECODER): each for name, each in pairs.items()})[1]

    def load_compressor(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
        """Return the base model with the adapter, without ``lm_head``, or a light checkpoint's encoder; in eval mode.

        Raises:
            CheckpointError: the base cannot be found, or a tensor of the checkpoint does not fit it.
        """
        if not self.is_light:
            return self._base("both", dtype, device)
        self.check()
        encoder, linear = self._load_encoder(dtype), self._projection_state()
        weight, bias = linear["weight"], linear["bias"]
        projection = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        projection.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        projection.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        model = GroupedEncoder(encoder, projection, self.rate, self.compressor_tokenizer.pad_token_id)
        return model.to(device).eval().requires_grad_(False)

    def _load_encoder(self, dtype: torch.dtype) -> Any:
        state = {name.removeprefix(ENCODER): each for name, each in self._weights.read(ENCODER).items()}
        return model_of_state(AutoModel, self.compressor_config, state, dtype, self.path)

    def _projection_state(self) -> dict[str, torch.Tensor]:
        return {name.removeprefix(PROJECTION): each for name, each in self._weights.read(PROJECTION).items()}

    def _base(self, role: str, dtype: torch.dtype, device: str | torch.device) -> Any:  # noqa: ARG002
        return super()._base("both", dtype, device)

    def _load_base(self, dtype: torch.dtype) -> Any:
        weights = self._weights.read(DECODER)
        own, _ = self._split({name.removeprefix(DECODER): each for name, each in weights.items()})
        prefix = f"{self.empty_decoder.base_model_prefix}."
        state = {name.removeprefix(prefix): each for name, each in own.items() if name != "lm_head.weight"}
        config = load_model_config(self.decoder_folder)
        config.vocab_size = self.table_rows
        return model_of_state(AutoModel, config, state, dtype, self.path)

    def _load_head(self) -> torch.Tensor | None:
        return self._weights.read(f"{DECODER}lm_head.weight").get(f"{DECODER}lm_head.weight")

    def _digests(self) -> dict[str, str]:
        digests = {
            "weights": digest_model(self._weights, whole=False),
            **digest_base("base", self.decoder_folder, self.decoder_tokenizer, is_used=False),
        }
        if self.is_light:
            tokenizer = self.compressor_tokenizer
            # The states of its padding enter the last vector.
            digests |= digest_base(
                "compressor_base", self.compressor_folder, tokenizer, tokenizer.pad_token_id, is_used=False
            )
        return digests

    def _file_digests(self) -> dict[str, str]:
        digests = {
            "weights": digest_weights(self._weights.paths),
            "base": digest_base_files(self.decoder_folder, is_used=False),
        }
        if self.is_light:
            digests["compressor_base"] = digest_base_files(self.compressor_folder, is_used=False)
        return digests

    # Descriptions

    @property
    def _vectors(self) -> int:
        return self.n_mem

    @property
    def _passage_tokens(self) -> int:
        return self.doc_max_length

    def _recognised(self) -> str:
        return "COCOM light: an encoder compresses" if self.is_light else "COCOM: one adapter compresses and answers"

    def _described_compressor(self) -> dict[str, Any]:
        if not self.is_light:
            return {"is": "the decoder", "lora_rank": self.config.lora_r}
        empty = empty_model(AutoModel, self.compressor_config, self.compressor_folder)
        return {
            "base": self.compressor_base,
            "folder": str(self.compressor_folder),
            "layers": self.compressor_config.num_hidden_layers,
            "hidden": self.compressor_config.hidden_size,
            "vocabulary": len(self.compressor_tokenizer),
            "parameters": sum(parameter.numel() for parameter in empty.parameters()),
        }


def require_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], origin: object
) -> None:
    """Check that tensors are those that are expected, with the same shapes.

    Raises:
        CheckpointError: naming the first that is missing, left over, or of another shape.
    """
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"{origin}: its weights lack {len(missing)} tensors, the first: {missing[0]}.")
    if strange := sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"{origin}: {len(strange)} of its tensors have no place, the first: {strange[0]}.")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                f"{origin}: {name} is {found[name]}, but {shape} by the base model's configuration. Is it the base "
                "this checkpoint was trained on?"
            )
