"""Family "cocom", the released PISCO of 2025: one base decoder with two LoRA adapters, one of which compresses.

::

    config.json                        name of the base, length and rate, LoRA rank
    adapters.pth                       encoder_adapter, decoder_adapter
    decoder_first_last_layers.pth      embedding table and lm_head with rows for the added tokens

A passage has always ``doc_max_length // compr_rate`` vectors, the last hidden states at its memory tokens. They have
the decoder's width. No code from the folder runs, and no network is used.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import AutoModel

from ...configs import CompressionConfig
from ...errors import CheckpointError
from ..framed_passages import FramedPassageTokenizer, WithMemory, passage_limit, written_frame
from ..loading.content import described_config, digest_model, digest_tensor_files, digest_tokenizer
from ..loading.files import digest_files, digest_weights
from ..loading.lora import Adapter, require_adapter_fits, take_adapter
from ..loading.models import load_model
from ..loading.tensors import load_tensor_groups, load_tensors, tensor_shapes
from ..loading.weight_files import require_single, weight_files
from ..loading.weights import WeightFiles
from ..passages import TokenizedDocument
from ..prompt import CocomPrompt, chat_text, message
from .on_base import TOKENIZER_FILES, FamilyConfig, OnBaseCheckpoint, read_family_config, require_files

ADAPTERS = "adapters.pth"
TABLES = "decoder_first_last_layers.pth"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
ENCODE_TOKEN = "<ENC>"  # noqa: S105
SEPARATOR = "<SEP>"
# Tokens of a passage beyond doc_max_length: the encoding token, BOS and EOS.
FRAME_TOKENS = 3
# The same for a passage with a question, whose words are counted by query_extra.
QUERY_FRAME_TOKENS = 8
# Tokens that a question may take beyond doc_max_length, as the public evaluation sets it.
QUERY_EXTRA = 64
# The name in compr_model_name of a compressor made of a base's first layers.
TRIMMED = "mistral_trimmed"


class CocomConfig(FamilyConfig):
    """Content of ``config.json``."""

    compr_rate: int = Field(gt=0)
    doc_max_length: int = Field(gt=0, le=1 << 20)
    sep: Literal[True] = True
    different_mem_tokens: bool = True
    kbtc_training: bool = False
    lora: Literal[True] = True
    lora_r: int = Field(16, gt=0, le=4096)
    quantization: str | None = "no"
    compr_model_name: str | None = None
    compr_base_model_name: str | None = None
    compr_n_layers: int | None = Field(None, gt=0)
    compr_every_n_layer: int | None = Field(None, gt=0)
    compr_rms_norm: bool = False
    compr_use_mlp: bool = True
    compr_mlp_hidden_dim: int = Field(8096, gt=0)
    lora_compressor: bool = False
    lora_r_compressor: int = Field(16, gt=0, le=4096)

    @model_validator(mode="after")
    def _check(self) -> "CocomConfig":
        if self.doc_max_length < self.compr_rate:
            raise ValueError(f"compr_rate {self.compr_rate} is larger than doc_max_length {self.doc_max_length}")
        if self.compr_model_name == TRIMMED:
            if (self.compr_n_layers is None) == (self.compr_every_n_layer is None):
                raise ValueError("a trimmed compressor needs one of compr_n_layers and compr_every_n_layer")
            if not self.compr_base_model_name:
                raise ValueError("a trimmed compressor needs compr_base_model_name")
        return self

    @property
    def n_mem(self) -> int:
        """Number of vectors of a passage."""
        return self.doc_max_length // self.compr_rate


class CocomCheckpoint(OnBaseCheckpoint):
    """A checkpoint folder of family "cocom".

    Args:
        path: folder of the checkpoint.
        query_extra: tokens that a question may take beyond ``doc_max_length``; the released entry has 0.
        bases: ``decoder_base`` and ``compressor_base`` (see ``OnBaseCheckpoint``).
    """

    family = "cocom"
    config: CocomConfig

    def __init__(self, path: Any, *, query_extra: int = QUERY_EXTRA, **bases: str | None):
        super().__init__(path, **bases)
        self.query_extra = query_extra

    def _require_layout(self) -> None:
        require_files(self.path, (ADAPTERS, TABLES), self.family)
        for name in (ADAPTERS, TABLES):
            require_single(self.path / name)

    def _read_config(self) -> CocomConfig:
        return read_family_config(self.path, CocomConfig)

    @property
    def rate(self) -> int:
        """Number of source tokens per memory token."""
        return self.config.compr_rate

    @property
    def n_mem_rule(self) -> dict[str, str]:
        """Number of vectors of a passage, and its largest number of tokens."""
        tokens = self.config.doc_max_length + FRAME_TOKENS
        return {"n_mem": str(self.config.n_mem), "passage_tokens": str(tokens), "passage_extra": str(FRAME_TOKENS)}

    # Tokens

    @property
    def memory_tokens(self) -> tuple[str, ...]:
        """The memory tokens of a passage in the decoder's prompt, in order."""
        n = self.config.n_mem
        return tuple(f"<MEM{i}>" for i in range(n)) if self.config.different_mem_tokens else ("<MEM>",) * n

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Tokens that the checkpoint adds to the base decoder's tokenizer, in order."""
        others = ("<AE>", ENCODE_TOKEN, SEPARATOR, *(["<KBTC>"] if self.config.kbtc_training else []))
        return (*dict.fromkeys(self.memory_tokens), *others)

    @property
    def prompt(self) -> CocomPrompt:
        """The decoder's prompt, written by the base's chat template."""
        return CocomPrompt(self.decoder_tokenizer, self.memory_tokens, SEPARATOR, self.special_tokens)

    @property
    def compressor_tokenizer(self) -> Any:
        """The compressor's tokenizer: the decoder's."""
        return self.decoder_tokenizer

    @cached_property
    def _passage_memory(self) -> list[int]:
        """Ids of the memory tokens of a passage, in order."""
        return self.decoder_tokenizer.convert_tokens_to_ids(list(self.memory_tokens))

    @property
    def memory_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens at whose positions the compressor's last hidden states are memory."""
        return tuple(dict.fromkeys(self._passage_memory))

    def passage_tokenizer(self, compression: CompressionConfig) -> FramedPassageTokenizer:
        """Return the tokenizer that cuts documents into passages of at most ``doc_max_length`` tokens of text.

        A smaller ``max_length`` of the settings is used instead. The number of vectors of a passage stays the same.

        Raises:
            ConfigError: the settings leave no room for text.
        """
        limit = passage_limit(compression, self.config.doc_max_length + FRAME_TOKENS, FRAME_TOKENS)
        return self._framed("", limit, compression)

    def query_passages(
        self, question: str, texts: Sequence[str], compression: CompressionConfig
    ) -> list[TokenizedDocument]:
        """Return the compressor's input for a question with each of some texts, one passage each.

        A longer text loses its end. ``max_length`` of the settings does not count here.

        Raises:
            PromptError: the question leaves no room for a text.
        """
        settings = compression.model_copy(update={"on_long": "truncate", "overlap": 0})
        limit = self.config.doc_max_length + self.query_extra + QUERY_FRAME_TOKENS
        heading = query_heading(self.special_tokens.break_up(question))
        tokenizer = self._framed(heading, limit, settings)
        tokenizer.require_room(question)
        return list(tokenizer.tokenize(texts))

    def _framed(self, heading: str, limit: int, compression: CompressionConfig) -> FramedPassageTokenizer:
        tokenizer = self.decoder_tokenizer
        before = ENCODE_TOKEN + (tokenizer.bos_token or "") + heading
        return FramedPassageTokenizer(
            written_frame(tokenizer, before, tokenizer.eos_token or ""),
            limit,
            WithMemory(tuple(self._passage_memory)),
            self.special_tokens.break_up,
            on_long=compression.on_long,
            overlap=compression.overlap,
            memory_token_ids=self.memory_token_ids,
        )

    # Weights

    def load_compressor(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
        """Return the base model with ``encoder_adapter``, without ``lm_head``, in eval mode.

        Raises:
            CheckpointError: the base cannot be found, or a tensor of the checkpoint does not fit it.
        """
        return self._base("encoder", dtype, device)

    @property
    def table_rows(self) -> int:
        """Number of rows of the decoder's embedding table."""
        return self._table_shapes[EMBEDDING][0]

    @cached_property
    def _table_shapes(self) -> dict[str, torch.Size]:
        path = self.path / TABLES
        shapes = tensor_shapes(path)
        if EMBEDDING not in shapes or shapes.keys() - {EMBEDDING, HEAD}:
            raise CheckpointError(f"{path}: expected {EMBEDDING} and {HEAD}, found {', '.join(sorted(shapes)[:5])}.")
        if any(len(shape) != 2 or shape != shapes[EMBEDDING] for shape in shapes.values()):
            found = ", ".join(str(tuple(shape)) for shape in shapes.values())
            raise CheckpointError(f"{path}: its tables are {found}; expected two dimensions and the same shape.")
        return shapes

    @property
    def _tensors(self) -> int:
        return len(WeightFiles(self.decoder_folder).shapes)

    @property
    def _adapter_groups(self) -> tuple[str, ...]:
        """Names of the adapters in ``adapters.pth``."""
        return ("decoder_adapter", "encoder_adapter")

    def check(self) -> None:
        """Check names, shapes and vocabulary of all files against the base model, before weights are read.

        Raises:
            CheckpointError: naming the first tensor that is missing, left over, or of a wrong shape.
        """
        _ = self._is_checked

    @cached_property
    def _is_checked(self) -> bool:
        shapes, width = self._table_shapes, self.decoder_config.hidden_size
        if shapes[EMBEDDING][1] != width:
            raise CheckpointError(
                f"{self.path / TABLES}: {EMBEDDING} has the width {shapes[EMBEDDING][1]}, the base decoder {width}. Is "
                "it the base this checkpoint was trained on?"
            )
        if HEAD not in shapes and not getattr(self.decoder_config, "tie_word_embeddings", False):
            raise CheckpointError(f"{self.path / TABLES}: lacks {HEAD}, and the base decoder's head is not tied.")
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for name, shape in tensor_shapes(self.path / ADAPTERS).items():
            group, _, tensor = name.partition(": ")
            groups.setdefault(group, {})[tensor] = torch.empty(shape, device="meta")
        self._require_groups(groups)
        for group, state in groups.items():
            adapter = self._taken(group, state)
            origin = f"{self.path / ADAPTERS} ({group})"
            require_adapter_fits(adapter, self.empty_decoder.base_model, self.config.lora_r, origin)
        _ = self.decoder_tokenizer, self.generation
        return True

    def _require_groups(self, groups: dict[str, Any]) -> None:
        if set(groups) != set(self._adapter_groups):
            raise CheckpointError(
                f"{self.path / ADAPTERS}: expected {' and '.join(self._adapter_groups)}, found "
                f"{', '.join(sorted(groups)) or 'nothing'}."
            )

    def _taken(self, group: str, state: dict[str, torch.Tensor]) -> Adapter:
        # A newer PEFT saves copies of the tables here, which the other file has.
        pairs = {name: tensor for name, tensor in state.items() if name not in (EMBEDDING, HEAD)}
        prefix = f"{self.empty_decoder.base_model_prefix}."
        return take_adapter(pairs, prefix, f"{self.path / ADAPTERS} ({group})")

    def _adapter(self, role: str) -> Adapter:
        groups = load_tensor_groups(self.path / ADAPTERS)
        return self._taken(f"{role}_adapter", groups[f"{role}_adapter"])

    def _load_base(self, dtype: torch.dtype) -> Any:
        base = load_model(AutoModel, str(self.decoder_folder), dtype, is_leftover=lambda name: name != HEAD)
        table = load_tensors(self.path / TABLES)[EMBEDDING]
        embedding = base.get_input_embeddings()
        embedding.weight = nn.Parameter(table.to(dtype), requires_grad=False)
        embedding.num_embeddings, embedding.padding_idx = len(table), None
        base.config.vocab_size = len(table)
        return base

    def _load_head(self) -> torch.Tensor | None:
        return load_tensors(self.path / TABLES)[HEAD] if HEAD in self._table_shapes else None

    def _digests(self) -> dict[str, str]:
        return {
            "adapters": digest_tensor_files([self.path / ADAPTERS]),
            "tables": digest_tensor_files([self.path / TABLES]),
            **digest_base("base", self.decoder_folder, self.decoder_tokenizer),
        }

    def _file_digests(self) -> dict[str, str]:
        return {
            "adapters": digest_files([self.path / ADAPTERS]),
            "tables": digest_files([self.path / TABLES]),
            "base": digest_base_files(self.decoder_folder),
        }

    # Descriptions

    @property
    def _vectors(self) -> int:
        return self.config.n_mem

    @property
    def _passage_tokens(self) -> int:
        return self.config.doc_max_length

    def _recognised(self) -> str:
        return "PISCO of 2025: the decoder compresses with encoder_adapter and answers with decoder_adapter"

    def _described_compressor(self) -> dict[str, Any]:
        return {"is": "the decoder with encoder_adapter", "lora_rank": self.config.lora_r}

    def _system_role(self) -> str:
        messages = [message("system", "SYSTEM"), message("user", "USER")]
        text = chat_text(self.decoder_tokenizer, messages, options={})
        return "refused: its text stands before the user's" if "SYSTEM\nUSER" in text else "accepted by the template"


def query_heading(question: str) -> str:
    """Return the text that stands before a document's in a passage for a question."""
    return f"\nQuery:\n{question}Document:\n"


def digest_base(name: str, folder: Path, tokenizer: Any, *settings: object, is_used: bool = True) -> dict[str, str]:
    """Return a base model's settings, and digests of its tokenizer and, if they are used, of its weights.

    Args:
        name: name of the base among the digests.
        folder: folder of the model.
        tokenizer: its tokenizer, with the tokens that the checkpoint adds.
        settings: settings of the tokenizer that change memory.
        is_used: True if the weights are used.
    """
    digests = {
        f"{name}_config": described_config(folder),
        f"{name}_tokenizer": digest_tokenizer(tokenizer, *settings),
    }
    return digests | ({name: digest_model(WeightFiles(folder), whole=False)} if is_used else {})


def digest_base_files(folder: Path, *, is_used: bool = True) -> str:
    """Return a digest of a base model's files: of its configuration, tokenizer and, if they are used, weights."""
    tokenizer = [path for name in TOKENIZER_FILES if (path := folder / name).is_file()]
    digest = digest_files([folder / "config.json", *tokenizer])
    return f"{digest}:{digest_weights(weight_files(folder, str(folder)))}" if is_used else digest
