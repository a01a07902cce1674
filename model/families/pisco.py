"""Family "pisco": a compressor of its own, a connector, and a decoder with LoRA.

::

    config.json                 names of the base models, rate, widths, LoRA rank
    compressor/                 a causal LM folder, full weights
    connector.pt                Linear, ReLU, Linear
    decoder_state.pt            embeddings and LoRA pairs, merged into the base decoder
    compressor_tokenizer/  decoder_tokenizer/

Memory of a passage of ``n`` tokens is ``n // rate + 1`` vectors. No code from the folder runs, and no network is used.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import AutoModel, AutoModelForCausalLM

from ...configs import CompressionConfig
from ...configs.names import Stage
from ...errors import CheckpointError, ConfigError, PromptError
from ..connector import Connector
from ..loading.adapters import merge_decoder_state
from ..loading.bases import find_decoder_base, local_folder
from ..loading.content import described_config, digest_model, digest_tokenizer
from ..loading.files import digest_files, read_json, require_own_files
from ..loading.models import count_parameters, load_model, load_model_config, load_tokenizer, require_rows
from ..loading.tensors import load_tensors
from ..loading.weight_files import require_single
from ..loading.weights import WeightFiles
from ..passages import AUTOENCODING_TOKEN, MEMORY_TOKEN, PassageTokenizer, TokenizedDocument, clean_text
from ..prompt import PiscoPrompt

CONNECTOR, DECODER_STATE = "connector.pt", "decoder_state.pt"
FILES = ("config.json", CONNECTOR, DECODER_STATE)
FOLDERS = ("compressor", "compressor_tokenizer", "decoder_tokenizer")
# The files of a tokenizer that change its ids. tokenizer_config.json names the class, and some classes add a BOS if it
# says so.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class CheckpointConfig(BaseModel):
    """Content of ``config.json``. Keys that this package does not use are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    model_type: str = "PISCO"
    decoder_model_name: str
    compressor_model_name: str
    compr_rate: int = Field(gt=0)
    compressor_mlp_hidden_dim: int = Field(gt=0)
    lora_decoder: bool = True
    lora_r_decoder: int = Field(64, gt=0, le=4096)


class PiscoCheckpoint:
    """A checkpoint folder of family "pisco". Its parts are loaded when they are first used.

    Args:
        path: folder of the checkpoint.
        decoder_base: folder or cached hub name of the base decoder; default: ``decoder_model_name``.
        compressor_base: name of the compressor's base; default: ``compressor_model_name``. It is only described, since
            ``compressor/`` holds the weights.

    Raises:
        CheckpointError: the folder, a file in it or a key of its ``config.json`` is missing or wrong.
    """

    family = "pisco"
    stages: tuple[Stage, ...] = ("hidden", "embedding")
    # The OSCAR of 2026 has this layout too, and nothing in its configuration says so.
    is_query_dependent = False
    memory_position = None
    generation = None
    # Stores of this family are older than the rule, which their rate implies.
    n_mem_rule: Mapping[str, str] = MappingProxyType({})

    def __init__(self, path: str | Path, *, decoder_base: str | None = None, compressor_base: str | None = None):
        self.path = Path(path)
        self._require_layout()
        self.config = self._read_config()
        self._is_base_given = bool(decoder_base)
        self.decoder_base = decoder_base or self.config.decoder_model_name
        self.compressor_base = compressor_base or self.config.compressor_model_name

    @property
    def rate(self) -> int:
        """Number of source tokens per memory token."""
        return self.config.compr_rate

    # What determines memory

    @cached_property
    def identity(self) -> dict[str, str]:
        """Digests of the compressor, the connector and the tokenizer, the compressor's settings, and the rate."""
        folder = self.path / "compressor"
        return {
            "compressor": digest_model(WeightFiles(folder)),
            "compressor_config": described_config(folder),
            "compressor_tokenizer": digest_tokenizer(self.compressor_tokenizer),
            "connector": self.connector.digest,
            "rate": str(self.rate),
        }

    @cached_property
    def file_identity(self) -> dict[str, str]:
        """Digests of the files of the compressor and the tokenizer, as older stores hold them."""
        compressor, tokenizer = self.path / "compressor", self.path / "compressor_tokenizer"
        weights = sorted(compressor.glob("*.safetensors")) or sorted(compressor.glob("pytorch_model*.bin"))
        vocabulary = [path for name in TOKENIZER_FILES if (path := tokenizer / name).is_file()]
        if TOKENIZER_FILES[0] not in {path.name for path in vocabulary}:
            vocabulary = sorted(path for path in tokenizer.iterdir() if path.is_file())
        return {
            "compressor": digest_files([compressor / "config.json", *weights]),
            "connector": self.connector.digest,
            "compressor_tokenizer": digest_files(vocabulary),
            "rate": str(self.rate),
        }

    @property
    def memory_digest(self) -> str:
        """The connector's digest."""
        return self.connector.digest

    def owns_memory(self, digest: str) -> bool:
        """Return True if memory with this digest goes through the connector."""
        return digest == self.connector.digest

    @property
    def default_stage(self) -> Stage:
        """Stage at which a store keeps memory by default: before the connector if the connector widens."""
        return "hidden" if self.connector.in_dim < self.connector.out_dim else "embedding"

    def memory_dim(self, stage: Stage) -> int:
        """Return the width of memory at a stage."""
        return self.connector.dim(stage)

    def passage_tokenizer(self, compression: CompressionConfig) -> PassageTokenizer:
        """Return the tokenizer that cuts documents into passages as configured.

        Raises:
            ConfigError: ``max_length`` leaves no room beside the tokenizer's own special tokens.
        """
        try:
            return PassageTokenizer(
                self.compressor_tokenizer,
                rate=self.rate,
                max_length=compression.max_length,
                on_long=compression.on_long,
                overlap=compression.overlap,
            )
        except ValueError as error:
            raise ConfigError(f"compression: {error}.") from None

    def query_passages(
        self, question: str, texts: Sequence[str], compression: CompressionConfig
    ) -> list[TokenizedDocument]:
        """Return the compressor's input for a question with each of some texts, by the rule of the OSCAR of 2026.

        The question and its heading count toward ``max_length``. A longer text loses its end.

        Raises:
            PromptError: the question leaves no room for a text.
        """
        settings = compression.model_copy(update={"on_long": "truncate", "overlap": 0})
        heading = f"Query: {clean_text(question)}\n Document: "
        tokens = len(self.compressor_tokenizer(heading)["input_ids"])
        if tokens >= settings.max_length:
            raise PromptError(
                f"The question {question[:60]!r} leaves no room for a document: a passage has "
                f"{settings.max_length} tokens, and the question has {tokens} with the words around it. "
                "Ask a shorter question, or raise max_length."
            )
        return list(self.passage_tokenizer(settings).tokenize([heading + text for text in texts]))

    # Compressor and connector

    @cached_property
    def compressor_tokenizer(self) -> Any:
        """The compressor's tokenizer, ``<MEM>`` included."""
        return self._load_tokenizer("compressor_tokenizer", (MEMORY_TOKEN,))

    @property
    def memory_token_id(self) -> int:
        """Id of ``<MEM>`` in the compressor's vocabulary."""
        return self.compressor_tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)

    @property
    def memory_token_ids(self) -> tuple[int, ...]:
        """Id of ``<MEM>`` in the compressor's vocabulary."""
        return (self.memory_token_id,)

    @cached_property
    def compressor_config(self) -> Any:
        """The compressor's transformers configuration."""
        return load_model_config(self.path / "compressor")

    def load_compressor(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
        """Return the compressor without ``lm_head``, in eval mode."""
        return self._load_compressor(AutoModel, dtype).to(device)

    def load_causal_compressor(self, *, dtype: torch.dtype) -> Any:
        """Return the compressor as the causal LM that the folder holds, for training and for saving."""
        return self._load_compressor(AutoModelForCausalLM, dtype)

    @cached_property
    def connector(self) -> Connector:
        """The connector in fp32, checked against the compressor's width."""
        path = self.path / CONNECTOR
        connector = Connector.from_state(load_tensors(path), str(path))
        expected = (self.compressor_config.hidden_size, self.config.compressor_mlp_hidden_dim)
        if (connector.in_dim, connector.mlp_dim) != expected:
            raise CheckpointError(
                f"{path}: maps {connector.in_dim} to {connector.mlp_dim} values, but the compressor's hidden width "
                f"and config.json's compressor_mlp_hidden_dim are {expected[0]} and {expected[1]}."
            )
        return connector

    # Decoder

    @cached_property
    def decoder_tokenizer(self) -> Any:
        """The decoder's tokenizer, ``<MEM>`` and ``<AE>`` included."""
        return self._load_tokenizer("decoder_tokenizer", (MEMORY_TOKEN, AUTOENCODING_TOKEN))

    @property
    def prompt(self) -> PiscoPrompt:
        """The decoder's prompt, written by its chat template."""
        return PiscoPrompt(self.decoder_tokenizer)

    def load_decoder(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
        """Return the base decoder with this checkpoint's embeddings and LoRA pairs merged, in eval mode.

        Raises:
            CheckpointError: the base cannot be found, or a tensor of ``decoder_state.pt`` does not fit it.
        """
        model = self.load_decoder_base(dtype=dtype)
        merge_decoder_state(model, self.load_decoder_state(), str(self.decoder_state_path))
        self.require_decoder_fits(model)
        return model.to(device)

    def load_decoder_base(self, *, dtype: torch.dtype) -> Any:
        """Return the base decoder without the checkpoint's weights, in eval mode on the CPU."""
        return load_model(AutoModelForCausalLM, self.find_decoder_base(), dtype)

    def load_decoder_state(self) -> dict[str, torch.Tensor]:
        """Return the tensors of ``decoder_state.pt``."""
        return load_tensors(self.decoder_state_path)

    def require_decoder_fits(self, model: Any) -> None:
        """Check that a merged decoder has a row for each token, and the width that the connector gives.

        Raises:
            CheckpointError: it has not.
        """
        require_rows(model, self.decoder_tokenizer, self.decoder_state_path)
        width, needed = self.connector.out_dim, model.get_input_embeddings().weight.shape[1]
        if width != needed:
            raise CheckpointError(f"{self.path}: the connector gives {width} values, the decoder takes {needed}.")

    @property
    def decoder_state_path(self) -> Path:
        """File with the decoder's embeddings and LoRA pairs."""
        return self.path / DECODER_STATE

    @cached_property
    def decoder_context(self) -> int:
        """Largest number of tokens of a prompt with its answer, by the base decoder's configuration."""
        config = load_model_config(self.decoder_folder)
        return getattr(config, "max_position_embeddings", None) or sys.maxsize

    @property
    def decoder_folder(self) -> Path:
        """Folder of the base decoder.

        Raises:
            CheckpointError: the base cannot be found, or leads out of the checkpoint and is not named by the user.
        """
        return local_folder(self.find_decoder_base())

    def find_decoder_base(self) -> str:
        """Return the folder of the base decoder, or its hub name.

        Raises:
            CheckpointError: the base is a path with no model, or leads out of the checkpoint and is not named by the
                user.
        """
        return find_decoder_base(self.path, self.decoder_base, is_trusted=self._is_base_given)

    def describe(self) -> dict[str, Any]:
        """Return names, sizes, widths and digests, for ``checkpoint inspect``."""
        compressor = self.compressor_config
        state = self.load_decoder_state()
        return {
            "path": str(self.path),
            "family": self.family,
            "model_type": self.config.model_type,
            "rate": self.rate,
            "compressor": {
                "base": self.compressor_base,
                "architecture": (compressor.architectures or ["?"])[0],
                "layers": compressor.num_hidden_layers,
                "hidden": compressor.hidden_size,
                "vocabulary": len(self.compressor_tokenizer),
                "parameters": count_parameters(self.path / "compressor", AutoModel, compressor),
            },
            "connector": {
                "widths": [self.connector.in_dim, self.connector.mlp_dim, self.connector.out_dim],
                "parameters": sum(p.numel() for p in self.connector.parameters()),
            },
            "decoder": {
                "base": self.decoder_base,
                "hidden": self.connector.out_dim,
                "vocabulary": len(self.decoder_tokenizer),
                "lora_rank": self.config.lora_r_decoder,
                "lora_linears": sum(".lora_A." in name for name in state),
                "state_parameters": sum(t.numel() for t in state.values()),
            },
            "memory": {
                "stage": self.default_stage,
                "width": self.memory_dim(self.default_stage),
                "vectors": "tokens // rate + 1 a passage",
                "bytes_bf16": f"{2 * self.memory_dim(self.default_stage):,} a vector",
            },
            "prompt": {"example": self.prompt("What is the capital of France?", [2])},
            "identity": self.identity,
        }

    def _require_layout(self) -> None:
        if not self.path.is_dir():
            found = "this is a file, not a checkpoint folder" if self.path.exists() else "no such checkpoint folder"
            raise CheckpointError(f"{self.path}: {found}.")
        missing = [name for name in FILES if not (self.path / name).is_file()]
        missing += [f"{name}/" for name in FOLDERS if not (self.path / name).is_dir()]
        if missing:
            raise CheckpointError(
                f"{self.path}: not a complete pisco checkpoint, missing {', '.join(missing)}. "
                f"Found: {', '.join(sorted(p.name for p in self.path.iterdir())[:10]) or 'nothing'}."
            )
        require_own_files(self.path, FILES + FOLDERS)
        for name in (CONNECTOR, DECODER_STATE):
            require_single(self.path / name)

    def _read_config(self) -> CheckpointConfig:
        path = self.path / "config.json"
        values = read_json(path)
        try:
            config = CheckpointConfig.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise CheckpointError(f"{path}: {problems}.") from None
        if config.model_type.upper() != "PISCO":
            raise CheckpointError(f"{path}: model_type is {config.model_type!r}; family pisco has PISCO.")
        return config

    def _load_compressor(self, auto_class: Any, dtype: torch.dtype) -> Any:
        folder = self.path / "compressor"
        model = load_model(auto_class, str(folder), dtype)
        require_rows(model, self.compressor_tokenizer, folder)
        return model

    def _load_tokenizer(self, name: str, required: tuple[str, ...]) -> Any:
        folder = self.path / name
        tokenizer = load_tokenizer(folder)
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in required if token not in vocabulary]
        if missing:
            raise CheckpointError(f"{folder}: the tokenizer lacks the added tokens {', '.join(missing)}.")
        return tokenizer
