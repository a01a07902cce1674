"""Family "oscar", the released OSCAR of 2025: memory of a question and a document by a compressor of its own.

::

    config.json, adapters.pth, decoder_first_last_layers.pth     as in family "cocom", with decoder_adapter only
    compressor/mlp.pth                                           the connector, if compr_use_mlp
    compressor/compressor.pth                                    the compressor's weights, or, with lora_compressor,
    compressor/first_layer.pth, compressor_adapters.pth          its embedding and LoRA pairs; the rest is the base's

The compressor is a model of the hub, or the first layers of any base ("mistral_trimmed"). No code from the folder
runs, and no network is used.
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from ...configs import CompressionConfig
from ...configs.names import Stage
from ...errors import CheckpointError
from ..connector import Connector
from ..framed_passages import (
    FramedPassageTokenizer,
    SpecialTokens,
    WithMemory,
    default_frame,
    pair_frame,
    passage_limit,
)
from ..loading.bases import base_folder
from ..loading.content import digest_tensor_files
from ..loading.files import digest_files
from ..loading.lora import merge_adapter, require_adapter_fits, take_adapter
from ..loading.models import empty_model, load_model, load_model_config, model_of_state
from ..loading.tensors import load_tensors, tensor_shapes
from ..loading.trimming import keep_layers, kept_layers, round_rotary, trimmed_config
from ..loading.vocabulary import load_extended_tokenizer
from ..passages import TokenizedDocument
from .cocom import (
    FRAME_TOKENS,
    QUERY_FRAME_TOKENS,
    TRIMMED,
    CocomCheckpoint,
    digest_base,
    digest_base_files,
    query_heading,
)

FOLDER = "compressor"
MLP = "mlp.pth"
WHOLE = "compressor.pth"
FIRST_LAYER = "first_layer.pth"
PAIRS = "compressor_adapters.pth"
EMBEDDING = "embed_tokens.weight"
# Prefix of a trimmed compressor's names in the checkpoint, and a weight of it that nothing uses.
TRIMMED_PREFIX = "custom_model.model."
UNUSED_HEAD = "custom_model.lm_head.weight"
# Tokens of a passage without a question beyond doc_max_length.
PLAIN_FRAME_TOKENS = 2


class OscarCheckpoint(CocomCheckpoint):
    """A checkpoint folder of family "oscar". The arguments are those of ``CocomCheckpoint``."""

    family = "oscar"
    is_query_dependent = True

    @property
    def _folder(self) -> Path:
        return self.path / FOLDER

    def _require_layout(self) -> None:
        super()._require_layout()
        expected = {FIRST_LAYER, PAIRS} if self.config.lora_compressor else {WHOLE}
        expected |= {MLP} if self.config.compr_use_mlp else set()
        found = {entry.name for entry in self._folder.iterdir()} if self._folder.is_dir() else set()
        if missing := sorted(expected - found):
            raise CheckpointError(f"{self._folder}: lacks {', '.join(missing)}.")
        if strange := sorted(found - expected):
            raise CheckpointError(
                f"{self._folder}: {', '.join(strange)} has no place in an OSCAR compressor. A rerank head is not "
                "supported, since the names of its weights are not public."
            )

    @property
    def is_trimmed(self) -> bool:
        """True if the compressor is made of the first layers of a base model."""
        return self.config.compr_model_name == TRIMMED

    @property
    def _prefix(self) -> str:
        return TRIMMED_PREFIX if self.is_trimmed else ""

    @property
    def stages(self) -> tuple[Stage, ...]:  # pyrefly: ignore[bad-override]
        """Stages at which memory can be taken: both if there is a connector."""
        return ("hidden", "embedding") if self.config.compr_use_mlp else ("embedding",)

    @property
    def n_mem_rule(self) -> dict[str, str]:
        """Number of vectors of a passage, and its largest number of tokens if it is made without a question."""
        tokens = self.config.doc_max_length + PLAIN_FRAME_TOKENS
        return {
            "n_mem": str(self.config.n_mem),
            "passage_tokens": str(tokens),
            "passage_extra": str(PLAIN_FRAME_TOKENS),
        }

    # The compressor's base

    @property
    def compressor_base(self) -> str:
        """Name or folder of the model that the compressor was made from."""
        name = self.config.compr_base_model_name if self.is_trimmed else self.config.compr_model_name
        return self._given_compressor_base or name or ""

    @cached_property
    def compressor_folder(self) -> Path:
        """Folder of the compressor's base.

        Raises:
            CheckpointError: naming the base and the flag, if it is not there.
        """
        return base_folder(
            self.path,
            self.compressor_base,
            is_trusted=self._is_compressor_base_given,
            key="compr_base_model_name" if self.is_trimmed else "compr_model_name",
            model="compressor's base",
            flag="--compressor-base",
        )

    @cached_property
    def compressor_config(self) -> Any:
        """The compressor's transformers configuration: the base's, with the layers that are kept and all tokens."""
        base = load_model_config(self.compressor_folder)
        config = trimmed_config(base, self._kept_layers(base)) if self.is_trimmed else copy.deepcopy(base)
        config.vocab_size = self._compressor_rows
        return config

    def _kept_layers(self, base: Any) -> list[int]:
        return kept_layers(
            base.num_hidden_layers, self.config.compr_n_layers, self.config.compr_every_n_layer, self.path
        )

    # Tokens

    @cached_property
    def compressor_tokenizer(self) -> Any:
        """The tokenizer of the compressor's base, with the memory tokens."""
        tokens = [f"<MEM{i}>" for i in range(self.config.n_mem)]
        return load_extended_tokenizer(str(self.compressor_folder), tokens, self._compressor_rows, self._folder)

    @cached_property
    def _compressor_special(self) -> SpecialTokens:
        return SpecialTokens(self.compressor_tokenizer)

    @property
    def _passage_memory(self) -> list[int]:
        first = len(self.compressor_tokenizer) - self.config.n_mem
        return list(range(first, first + self.config.n_mem))

    @property
    def memory_position(self) -> int | None:  # pyrefly: ignore[bad-override]
        """Position of the first memory token.

        A trimmed compressor was trained on passages padded to their largest length. If its tokenizer pads on the right,
        the padding stands before the memory tokens, so that their positions are the same after any text.
        """
        if self.is_trimmed and self.compressor_tokenizer.padding_side == "right":
            return self._query_limit
        return None

    @property
    def _query_limit(self) -> int:
        extra = QUERY_FRAME_TOKENS if self.is_trimmed else FRAME_TOKENS
        return self.config.doc_max_length + self.query_extra + extra

    def passage_tokenizer(self, compression: CompressionConfig) -> FramedPassageTokenizer:
        """Return the tokenizer that cuts documents into passages without a question.

        Raises:
            ConfigError: the settings leave no room for text.
        """
        limit = passage_limit(compression, self.config.doc_max_length + PLAIN_FRAME_TOKENS, PLAIN_FRAME_TOKENS)
        return self._passages(default_frame(self.compressor_tokenizer), limit, compression)

    def query_passages(
        self, question: str, texts: Sequence[str], compression: CompressionConfig
    ) -> list[TokenizedDocument]:
        """Return the compressor's input for a question with each of some texts, one passage each.

        A longer text loses its end. ``max_length`` of the settings does not count here.

        Raises:
            PromptError: the question leaves no room for a text.
        """
        settings = compression.model_copy(update={"on_long": "truncate", "overlap": 0})
        tokenizer, question = self.compressor_tokenizer, self._compressor_special.break_up(question)
        if self.is_trimmed:
            frame = default_frame(tokenizer, query_heading(question))
        else:
            frame = pair_frame(tokenizer, question)
        passages = self._passages(frame, self._query_limit, settings)
        passages.require_room(question)
        return list(passages.tokenize(texts))

    def _passages(self, frame: Any, limit: int, compression: CompressionConfig) -> FramedPassageTokenizer:
        return FramedPassageTokenizer(
            frame,
            limit,
            WithMemory(tuple(self._passage_memory)),
            self._compressor_special.break_up,
            on_long=compression.on_long,
            overlap=compression.overlap,
            memory_token_ids=self.memory_token_ids,
        )

    # Weights

    @property
    def _adapter_groups(self) -> tuple[str, ...]:
        return ("decoder_adapter",)

    @cached_property
    def connector(self) -> Connector | None:
        """The connector in fp32, checked against the widths of the compressor and the decoder; None without one."""
        width, needed = self.compressor_config.hidden_size, self.decoder_config.hidden_size
        if not self.config.compr_use_mlp:
            if width != needed:
                raise CheckpointError(f"{self.path}: the compressor gives {width} values, the decoder takes {needed}.")
            return None
        path = self._folder / MLP
        connector = Connector.from_state(self._connector_state(), str(path))
        found = (connector.in_dim, connector.mlp_dim, connector.out_dim)
        expected = (width, self.config.compr_mlp_hidden_dim, needed)
        if found != expected:
            raise CheckpointError(
                f"{path}: has the widths {', '.join(map(str, found))}; the compressor, compr_mlp_hidden_dim and the "
                f"decoder have {', '.join(map(str, expected))}."
            )
        return connector

    def _connector_state(self) -> dict[str, torch.Tensor]:
        return load_tensors(self._folder / MLP)

    @cached_property
    def _compressor_shapes(self) -> dict[str, torch.Size]:
        """Shapes of the compressor's saved weights, by their names within the model."""
        path = self._folder / (FIRST_LAYER if self.config.lora_compressor else WHOLE)
        shapes = tensor_shapes(path)
        unused = {UNUSED_HEAD} if self.is_trimmed else set()
        if strange := sorted(name for name in shapes.keys() - unused if not name.startswith(self._prefix)):
            raise CheckpointError(f"{path}: {len(strange)} tensors have no place, the first: {strange[0]}.")
        named = {name.removeprefix(self._prefix): shape for name, shape in shapes.items() if name not in unused}
        if EMBEDDING not in named or len(named[EMBEDDING]) != 2:
            raise CheckpointError(f"{path}: lacks {self._prefix}{EMBEDDING}.")
        return named

    @property
    def _compressor_rows(self) -> int:
        return self._compressor_shapes[EMBEDDING][0]

    @cached_property
    def _is_checked(self) -> bool:
        path = self._folder / (FIRST_LAYER if self.config.lora_compressor else WHOLE)
        pairs = {} if not self.config.lora_compressor else self._pair_shapes
        tensors = len(self._compressor_shapes) + len(pairs)
        empty = empty_model(AutoModel, self.compressor_config, self.compressor_folder, tensors)
        expected = {name: parameter.shape for name, parameter in empty.named_parameters()}
        if self.is_trimmed and not self.config.compr_rms_norm:
            if "norm.weight" not in expected:
                raise CheckpointError(f"{self.path}: {empty.config.model_type} models have no final norm to remove.")
            del expected["norm.weight"]
        if self.config.lora_compressor:
            state = {name: torch.empty(shape, device="meta") for name, shape in pairs.items()}
            adapter = take_adapter(state, self._pair_prefix, self._folder / PAIRS)
            require_adapter_fits(adapter, empty, self.config.lora_r_compressor, self._folder / PAIRS)
            expected = {EMBEDDING: expected[EMBEDDING]}
        found = self._compressor_shapes
        if missing := sorted(expected.keys() - found.keys()):
            raise CheckpointError(f"{path}: lacks {len(missing)} weights, the first: {self._prefix}{missing[0]}.")
        if strange := sorted(found.keys() - expected.keys()):
            raise CheckpointError(
                f"{path}: {len(strange)} tensors have no place, the first: {self._prefix}{strange[0]}. A rerank head "
                "is not supported, since the names of its weights are not public."
            )
        for name, shape in expected.items():
            if found[name] != shape:
                raise CheckpointError(
                    f"{path}: {self._prefix}{name} is {tuple(found[name])}, but {tuple(shape)} in its base. "
                    "Is it the base this checkpoint was trained on?"
                )
        _ = self.compressor_tokenizer, self.connector
        return super()._is_checked

    @cached_property
    def _pair_shapes(self) -> dict[str, torch.Size]:
        return tensor_shapes(self._folder / PAIRS)

    @property
    def _pair_prefix(self) -> str:
        return "model." if self.is_trimmed else ""

    def load_compressor(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
        """Return the compressor without ``lm_head``, in eval mode.

        Raises:
            CheckpointError: its base cannot be found, or a tensor of the checkpoint does not fit it.
        """
        self.check()
        model = self._compressor_with_norm(dtype)
        if self.is_trimmed:
            if not self.config.compr_rms_norm:
                model.norm = nn.Identity()
            round_rotary(model)
        return model.to(device)

    def _compressor_with_norm(self, dtype: torch.dtype) -> Any:
        """Return the compressor with all its weights, and with a final norm even if its last states have none."""
        return self._compressor_with_pairs(dtype) if self.config.lora_compressor else self._whole_compressor(dtype)

    def _whole_compressor(self, dtype: torch.dtype) -> Any:
        path = self._folder / WHOLE
        named = self._compressor_shapes
        state = {name.removeprefix(self._prefix): tensor for name, tensor in load_tensors(path).items()}
        state = {name: tensor for name, tensor in state.items() if name in named}
        if "norm.weight" not in state:
            state["norm.weight"] = torch.ones(self.compressor_config.hidden_size)
        return model_of_state(AutoModel, self.compressor_config, state, dtype, path)

    def _compressor_with_pairs(self, dtype: torch.dtype) -> Any:
        is_leftover = lambda name: name != "lm_head.weight"  # noqa: E731
        model = load_model(AutoModel, str(self.compressor_folder), dtype, is_leftover=is_leftover)
        if self.is_trimmed:
            keep_layers(model, self._kept_layers(model.config))
        (table,) = load_tensors(self._folder / FIRST_LAYER).values()
        embedding = model.get_input_embeddings()
        embedding.weight = nn.Parameter(table.to(dtype), requires_grad=False)
        embedding.num_embeddings, embedding.padding_idx = len(table), None
        model.config.vocab_size = len(table)
        merge_adapter(take_adapter(load_tensors(self._folder / PAIRS), self._pair_prefix, PAIRS), model)
        return model

    def _digests(self) -> dict[str, str]:
        tokenizer, is_used = self.compressor_tokenizer, self.config.lora_compressor
        # The side on which a trimmed compressor's passages are padded decides where its memory tokens stand.
        base = digest_base("compressor_base", self.compressor_folder, tokenizer, self.memory_position, is_used=is_used)
        return {"compressor": digest_tensor_files(self._files), **base}

    def _file_digests(self) -> dict[str, str]:
        base = digest_base_files(self.compressor_folder, is_used=self.config.lora_compressor)
        return {"compressor": digest_files(self._files), "compressor_base": base}

    @property
    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if path.suffix == ".pth")

    # Descriptions

    def _recognised(self) -> str:
        kind = (
            f"{len(self._kept_layers(load_model_config(self.compressor_folder)))} layers of its base"
            if (self.is_trimmed)
            else "a model of its own"
        )
        return f"OSCAR of 2025: {kind} compresses a document for a question"

    def _described_compressor(self) -> dict[str, Any]:
        empty = empty_model(AutoModel, self.compressor_config, self.compressor_folder)
        parameters = sum(parameter.numel() for parameter in empty.parameters())
        return {
            "base": self.compressor_base,
            "folder": str(self.compressor_folder),
            "layers": self.compressor_config.num_hidden_layers,
            "hidden": self.compressor_config.hidden_size,
            "vocabulary": len(self.compressor_tokenizer),
            "connector": "none"
            if self.connector is None
            else str([self.connector.in_dim, self.connector.mlp_dim, self.connector.out_dim]),
            "padding_side": self.compressor_tokenizer.padding_side,
            "query_extra": self.query_extra,
            "parameters": parameters,
            "memory_needed_bf16": f"{2 * parameters:,} bytes",
        }
