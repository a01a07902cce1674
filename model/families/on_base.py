"""The common part of the families whose decoder is a base model with tokens and LoRA pairs added."""

import copy
import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import AutoModelForCausalLM

from ...configs import CompressionConfig
from ...configs.names import Stage
from ...errors import CheckpointError, ConfigError
from ..connector import Connector
from ..framed_passages import SpecialTokens
from ..generation import GenerationDefaults, read_generation_defaults
from ..loading.bases import base_folder
from ..loading.files import read_json, require_own_files
from ..loading.heads import with_head
from ..loading.lora import Adapter, exchange_adapter, merge_adapter
from ..loading.models import empty_model, load_model_config
from ..loading.sharing import SharedBase, canonical_device
from ..loading.vocabulary import load_extended_tokenizer
from ..passages import TokenizedDocument
from ..prompt import Prompt

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.txt")
EXAMPLE_QUESTION = "What is the capital of France?"


class MergedRecord(BaseModel):
    """Record that ``checkpoint convert`` leaves in ``config.json``.

    Attributes:
        digests: the original checkpoint's part of ``identity``. Older conversions have that of ``file_identity``.
        files: digest of the models that the conversion wrote. Older conversions have a digest of all their files.
        file_digests: the original checkpoint's part of ``file_identity``; empty in older conversions.
        configs: settings of the models that the conversion wrote, by folder; empty in older conversions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digests: dict[str, str]
    files: str
    file_digests: dict[str, str] = {}
    configs: dict[str, str] = {}


class FamilyConfig(BaseModel):
    """Keys of ``config.json`` that all these families have. Keys that this package does not use are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    decoder_model_name: str
    merged: MergedRecord | None = None


class OnBaseCheckpoint(ABC):
    """A checkpoint on a base decoder. Its parts are loaded when they are first used.

    The compressor and the decoder that one checkpoint object loads with the same dtype onto the same device share the
    weights of the base model.

    Args:
        path: folder of the checkpoint.
        decoder_base: folder or cached hub name of the base decoder; default: ``decoder_model_name``.
        compressor_base: folder or cached hub name of the compressor's base; default: the name in ``config.json``.

    Raises:
        CheckpointError: a file or a key of ``config.json`` is missing or wrong.
    """

    family: str
    is_query_dependent = False
    stages: tuple[Stage, ...] = ("embedding",)
    memory_position: int | None = None

    def __init__(self, path: str | Path, *, decoder_base: str | None = None, compressor_base: str | None = None):
        self.path = Path(path)
        require_own_files(self.path)
        self._is_decoder_base_given = bool(decoder_base)
        self._is_compressor_base_given = bool(compressor_base)
        self._given_compressor_base = compressor_base
        self.config = self._read_config()
        self.decoder_base = decoder_base or self.config.decoder_model_name
        self._shared = SharedBase()
        self._require_layout()

    def unshared(self) -> Self:
        """Return this checkpoint without its loaded models, so that the next one gets weights of its own."""
        other = copy.copy(self)
        other._shared = SharedBase()
        return other

    # Each family defines these

    @abstractmethod
    def _require_layout(self) -> None:
        """Check that the folder has the files of the family."""

    @abstractmethod
    def _read_config(self) -> Any:
        """Return the checked content of ``config.json``."""

    @property
    @abstractmethod
    def added_tokens(self) -> tuple[str, ...]:
        """Tokens that the checkpoint adds to the base decoder's tokenizer, in order."""

    @property
    @abstractmethod
    def table_rows(self) -> int:
        """Number of rows of the decoder's embedding table."""

    @property
    @abstractmethod
    def n_mem_rule(self) -> Mapping[str, str]:
        """The entries of ``identity`` that say how many vectors a document has."""

    @property
    @abstractmethod
    def rate(self) -> int:
        """Number of source tokens per memory token."""

    @property
    @abstractmethod
    def prompt(self) -> Prompt:
        """The decoder's prompt."""

    @property
    @abstractmethod
    def compressor_tokenizer(self) -> Any:
        """The compressor's tokenizer, memory tokens included."""

    @abstractmethod
    def check(self) -> None:
        """Check names, shapes and vocabulary of all files against the base model, before weights are read."""

    @abstractmethod
    def _digests(self) -> dict[str, str]:
        """Return digests of everything that determines memory, and the settings of its models."""

    @abstractmethod
    def _file_digests(self) -> dict[str, str]:
        """Return the digests of files that older stores have in place of ``_digests``."""

    @abstractmethod
    def _adapter(self, role: str) -> Adapter:
        """Return the adapter of a role, which need not be merged yet."""

    @abstractmethod
    def _load_base(self, dtype: torch.dtype) -> Any:
        """Return the base model without ``lm_head``, with the checkpoint's embedding table, on the CPU."""

    @abstractmethod
    def _load_head(self) -> torch.Tensor | None:
        """Return the weight of the decoder's head; None if it is tied to the embedding."""

    @property
    @abstractmethod
    def _tensors(self) -> int:
        """Number of tensors in the files of the base decoder's weights."""

    # Identity of memory

    @cached_property
    def identity(self) -> dict[str, str]:
        """Digests of everything that determines memory, its models' settings, the rate, and the rule of its length."""
        self.check()
        return self._identity(self._digests())

    @cached_property
    def file_identity(self) -> dict[str, str]:
        """``identity`` with the digests of files that older stores hold."""
        self.check()
        return self._identity(self._file_digests())

    def _identity(self, digests: dict[str, str]) -> dict[str, str]:
        own = {"family": self.family, **digests, "rate": str(self.rate), **self.n_mem_rule}
        if self.connector is not None:
            return own | {"connector": self.connector.digest}
        # The same settings may be written in several ways.
        fixed = "".join(f"{name}={own[name]};" for name in sorted(own) if not name.endswith("_config"))
        return own | {"connector": hashlib.blake2b(fixed.encode(), digest_size=16).hexdigest()}

    @property
    def memory_digest(self) -> str:
        """Digest that memory carries: the connector's, or one of the identity if there is no connector."""
        return self.identity["connector"]

    def owns_memory(self, digest: str) -> bool:
        """Return True if memory with this digest was made by this checkpoint: now, or for an older store."""
        return digest == self.memory_digest or digest == self.file_identity["connector"]

    @property
    def connector(self) -> Connector | None:
        """None: memory has the decoder's width."""
        return None

    @property
    def default_stage(self) -> Stage:
        """Stage at which a store keeps memory by default: before a connector that widens."""
        return (
            "hidden" if self.connector is not None and self.connector.in_dim < self.connector.out_dim else "embedding"
        )

    def memory_dim(self, stage: Stage) -> int:
        """Return the width of memory at a stage.

        Raises:
            ConfigError: the checkpoint has no such stage.
        """
        if stage not in self.stages:
            raise ConfigError(f"{self.path}: family {self.family} has memory at the stage {self.stages[0]} only.")
        return self.decoder_config.hidden_size if self.connector is None else self.connector.dim(stage)

    def query_passages(
        self,
        question: str,  # noqa: ARG002
        texts: Sequence[str],  # noqa: ARG002
        compression: CompressionConfig,  # noqa: ARG002
    ) -> list[TokenizedDocument]:
        """Refuse, since the family's compressor takes no question.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.path}: family {self.family} does not compress a document for a question.")

    # Decoder

    @cached_property
    def decoder_folder(self) -> Path:
        """Folder of the base decoder.

        Raises:
            CheckpointError: naming the base and the flag, if it is not there.
        """
        return base_folder(
            self.path,
            self.decoder_base,
            is_trusted=self._is_decoder_base_given,
            key="decoder_model_name",
            model="base decoder",
            flag="--decoder-base",
        )

    @cached_property
    def decoder_config(self) -> Any:
        """The base decoder's transformers configuration."""
        return load_model_config(self.decoder_folder)

    @cached_property
    def empty_decoder(self) -> Any:
        """The base decoder without weights, to compare names and shapes with."""
        return empty_model(AutoModelForCausalLM, self.decoder_config, self.decoder_folder, self._tensors)

    @cached_property
    def decoder_tokenizer(self) -> Any:
        """The base decoder's tokenizer with the checkpoint's tokens."""
        return load_extended_tokenizer(str(self.decoder_folder), self.added_tokens, self.table_rows, self.path)

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """Special tokens of the decoder, which questions and texts must not spell."""
        return SpecialTokens(self.decoder_tokenizer)

    @cached_property
    def generation(self) -> GenerationDefaults:
        """Stop tokens and repetition penalty of the base decoder."""
        return read_generation_defaults(self.decoder_folder, self.decoder_tokenizer)

    @property
    def decoder_context(self) -> int:
        """Largest number of tokens of a prompt with its answer."""
        return getattr(self.decoder_config, "max_position_embeddings", None) or sys.maxsize

    def load_decoder(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
        """Return the decoder with the checkpoint's weights, in eval mode.

        Raises:
            CheckpointError: the base cannot be found, or a tensor of the checkpoint does not fit it.
        """
        return with_head(self._base("decoder", dtype, device), self._load_head(), self.path)

    def _base(self, role: str, dtype: torch.dtype, device: str | torch.device) -> Any:
        """Return the base model with the adapter of a role. Its weights are shared with one that is in use."""
        self.check()
        device = canonical_device(device)
        if (found := self._shared.find(dtype, device)) is not None:
            base, merged = found
            if merged != role:
                exchange_adapter(self._adapter(merged), self._adapter(role), base)
            return base
        base = self._load_base(dtype).to(device)
        merge_adapter(self._adapter(role), base)
        self._shared.keep(base, role, dtype, device)
        return base

    # Descriptions

    def describe(self) -> dict[str, Any]:
        """Return what was recognised, sizes and widths, prompt, settings and digests, for ``checkpoint inspect``."""
        self.check()
        config, stage = self.decoder_config, self.default_stage
        vectors, width = self._vectors, self.memory_dim(stage)
        parameters = sum(parameter.numel() for parameter in self.empty_decoder.parameters())
        generation = self.generation
        return {
            "path": str(self.path),
            "family": self.family,
            "recognised": self._recognised(),
            "rate": self.rate,
            "memory": {
                "stage": stage,
                "width": width,
                "vectors": vectors,
                "bytes_bf16": f"{2 * vectors * width:,} a passage of {self._passage_tokens} tokens",
                "made": "at question time, for a question and a document"
                if self.is_query_dependent
                else "once, stored",
            },
            "compressor": self._described_compressor(),
            "decoder": {
                "base": self.decoder_base,
                "folder": str(self.decoder_folder),
                "architecture": (config.architectures or ["?"])[0],
                "layers": config.num_hidden_layers,
                "hidden": config.hidden_size,
                "vocabulary": len(self.decoder_tokenizer),
                "parameters": parameters,
                "memory_needed_bf16": f"{2 * parameters:,} bytes",
            },
            "prompt": {
                "system_role": self._system_role(),
                "bos_tokens": self._bos_tokens(),
                "example": self.prompt(EXAMPLE_QUESTION, [vectors]),
            },
            "generation": {
                "stop_tokens": [self.decoder_tokenizer.convert_ids_to_tokens(i) for i in generation.stop_token_ids],
                "repetition_penalty": generation.repetition_penalty,
            },
            "identity": self.identity,
        }

    def _recognised(self) -> str:
        return f"family {self.family}"

    @property
    @abstractmethod
    def _vectors(self) -> int:
        """Number of vectors of a full passage."""

    @property
    @abstractmethod
    def _passage_tokens(self) -> int:
        """Number of tokens of a full passage."""

    def _described_compressor(self) -> dict[str, Any]:
        return {"is": "the decoder"}

    def _system_role(self) -> str:
        """Return where the chat template puts the system's text."""
        return "none: the prompt has no chat template"

    def _bos_tokens(self) -> int:
        bos = self.decoder_tokenizer.bos_token_id
        text = self.prompt(EXAMPLE_QUESTION, [])
        ids = self.decoder_tokenizer(text, add_special_tokens=self.prompt.adds_special_tokens)["input_ids"]
        return 0 if bos is None else ids.count(bos)


def read_family_config(path: Path, config_class: Any) -> Any:
    """Return the checked content of a checkpoint's ``config.json``.

    Raises:
        CheckpointError: a key is missing or has a wrong value.
    """
    try:
        return config_class.model_validate(read_json(path / "config.json"))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{path / 'config.json'}: {problems}.") from None


def require_files(path: Path, names: Sequence[str], family: str) -> None:
    """Check that a checkpoint's folder holds some files.

    Raises:
        CheckpointError: naming those that are missing, and what was found.
    """
    if missing := [name for name in names if not (path / name).is_file()]:
        found = ", ".join(sorted(p.name for p in path.iterdir())[:10]) or "nothing"
        what = f"not a complete {family} checkpoint, missing {', '.join(missing)}"
        raise CheckpointError(f"{path}: {what}. Found: {found}.")
