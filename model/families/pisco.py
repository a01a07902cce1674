"""The "pisco" checkpoint folder: what is in it, and how its parts are loaded without executing anything from it.

::

    config.json                 names of the base models, rate, widths, LoRA rank
    compressor/                 a causal LM folder, full weights
    connector.pt                Linear, ReLU, Linear
    decoder_state.pt            embeddings and LoRA pairs, laid over the base decoder
    compressor_tokenizer/  decoder_tokenizer/

Tensors are read as plain tensors or from safetensors (``weights``), no remote code is run, and no network is used.
"""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ...errors import CheckpointError
from ..connector import Connector
from ..passages import AUTOENCODING_TOKEN, MEMORY_TOKEN
from ..weights import (
    errors_name,
    load_tensors,
    read_json,
    read_model_config,
    require_finite,
    require_own_files,
    require_weights,
)

FILES = ("config.json", "connector.pt", "decoder_state.pt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
FOLDERS = ("compressor", "compressor_tokenizer", "decoder_tokenizer")


class CheckpointConfig(BaseModel):
    """``config.json`` of a "pisco" checkpoint. Keys this package does not use are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    model_type: str = "PISCO"
    decoder_model_name: str
    compressor_model_name: str
    compr_rate: int = Field(gt=0)
    compressor_mlp_hidden_dim: int = Field(gt=0)
    lora_decoder: bool = True
    lora_r_decoder: int = Field(64, gt=0, le=4096)


class Checkpoint:
    """An opened checkpoint folder; its parts are loaded when asked for.

    Args:
        path: the folder.
        decoder_base: folder or cached hub name of the base decoder, in place of ``decoder_model_name``.
        compressor_base: likewise for ``compressor_model_name``; only described, since ``compressor/`` has the weights.

    Raises:
        CheckpointError: if the folder, a file in it or a key of its ``config.json`` is missing or wrong.
    """

    def __init__(self, path: str | Path, *, decoder_base: str | None = None, compressor_base: str | None = None):
        self.path = Path(path)
        self._require_layout()
        self.config = self._read_config()
        # By the user, who may name any place; the checkpoint may not.
        self._given = {decoder_base, compressor_base}
        self.decoder_base = decoder_base or self.config.decoder_model_name
        self.compressor_base = compressor_base or self.config.compressor_model_name

    @property
    def rate(self) -> int:
        """Source tokens per memory token."""
        return self.config.compr_rate

    @cached_property
    def compressor_tokenizer(self) -> Any:
        """The compressor's tokenizer, ``<MEM>`` included."""
        return self._load_tokenizer("compressor_tokenizer", (MEMORY_TOKEN,))

    @cached_property
    def decoder_tokenizer(self) -> Any:
        """The decoder's tokenizer, ``<MEM>`` and ``<AE>`` included."""
        return self._load_tokenizer("decoder_tokenizer", (MEMORY_TOKEN, AUTOENCODING_TOKEN))

    @cached_property
    def compressor_config(self) -> Any:
        """The compressor's transformers configuration."""
        return _load_config(self.path / "compressor")

    def load_compressor(self, *, dtype: torch.dtype) -> Any:
        """The compressor without its ``lm_head``, in eval mode on the CPU."""
        return self._checked_compressor(AutoModel, dtype)

    def load_causal_compressor(self, *, dtype: torch.dtype) -> Any:
        """The compressor as the causal LM it is stored as: for training and for saving."""
        return self._checked_compressor(AutoModelForCausalLM, dtype)

    @cached_property
    def connector(self) -> Connector:
        """The connector in fp32, checked against the compressor's width."""
        path = self.path / "connector.pt"
        connector = Connector.from_state(load_tensors(path), str(path))
        expected = (self.compressor_config.hidden_size, self.config.compressor_mlp_hidden_dim)
        if (connector.in_dim, connector.mlp_dim) != expected:
            raise CheckpointError(
                f"{path}: maps {connector.in_dim} to {connector.mlp_dim} values, but the compressor's hidden width "
                f"and config.json's compressor_mlp_hidden_dim are {expected[0]} and {expected[1]}."
            )
        return connector

    def load_decoder_state(self) -> dict[str, torch.Tensor]:
        """The tensors of ``decoder_state.pt``."""
        return load_tensors(self.path / "decoder_state.pt")

    def load_decoder_base(self, *, dtype: torch.dtype) -> Any:
        """The base decoder before the checkpoint's weights are laid over it, in eval mode on the CPU."""
        return load_model(AutoModelForCausalLM, self.resolve(self.decoder_base, "decoder"), dtype)

    @cached_property
    def decoder_context(self) -> int:
        """Most tokens of a prompt with its answer, by the base decoder's configuration."""
        config = _load_config(local_folder(self.resolve(self.decoder_base, "decoder")))
        return getattr(config, "max_position_embeddings", None) or sys.maxsize

    def resolve(self, name: str, role: str) -> str:
        """Find a base model: a folder (absolute, beside the checkpoint's files, beside its folder), else a hub name.

        A hub name is looked up in the local cache only, when it is loaded.

        Raises:
            CheckpointError: if it is no folder where it has to be one, or the checkpoint itself names one by ``..`` or
                by a link that leads out of its own folder.
        """
        leads_out = CheckpointError(
            f"{self.path / 'config.json'}: {role}_model_name {name!r} leads out of the checkpoint's folder. If you "
            f"trust what is there, name it yourself (--{role}-base)."
        )
        if name not in self._given and ".." in Path(name).parts:
            raise leads_out
        own = self.path.resolve()
        for root in (own, self.path.absolute().parent, Path.cwd()):
            folder = _model_folder(root, name)
            if folder is None:
                continue
            by_link = root == own and not Path(name).expanduser().is_absolute() and not folder.is_relative_to(own)
            if by_link and name not in self._given:
                raise leads_out
            return str(folder)
        if Path(name).is_absolute() or name.startswith((".", "~")):
            raise CheckpointError(
                f"{self.path}: the base {role} {name!r} is no model folder. Name another one (--{role}-base)."
            )
        return name

    @cached_property
    def identity(self) -> dict[str, str]:
        """Digests of all that determines memory: compressor, connector and tokenizer."""
        compressor = self.path / "compressor"
        weights = sorted(compressor.glob("*.safetensors"))
        tokenizer = self.path / "compressor_tokenizer"
        # tokenizer_config.json counts: it names the class, and some classes put in a BOS because it says so.
        vocabulary = [path for name in TOKENIZER_FILES if (path := tokenizer / name).is_file()]
        if TOKENIZER_FILES[0] not in {path.name for path in vocabulary}:
            vocabulary = sorted(path for path in tokenizer.iterdir() if path.is_file())
        return {
            "compressor": _digest_files([compressor / "config.json", *weights]),
            "connector": self.connector.digest,
            "compressor_tokenizer": _digest_files(vocabulary),
            "rate": str(self.rate),
        }

    def describe(self) -> dict[str, Any]:
        """What a person wants to know of the checkpoint: names, sizes, widths and digests."""
        compressor = self.compressor_config
        state = self.load_decoder_state()
        adapted = [name for name in state if ".lora_A." in name]
        return {
            "path": str(self.path),
            "model_type": self.config.model_type,
            "rate": self.rate,
            "compressor": {
                "base": self.compressor_base,
                "architecture": (compressor.architectures or ["?"])[0],
                "layers": compressor.num_hidden_layers,
                "hidden": compressor.hidden_size,
                "vocabulary": len(self.compressor_tokenizer),
                "parameters": self._count_compressor_parameters(),
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
                "lora_linears": len(adapted),
                "state_parameters": sum(t.numel() for t in state.values()),
            },
            "identity": self.identity,
        }

    def _require_layout(self) -> None:
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path}: no such checkpoint folder.")
        missing = [name for name in FILES if not (self.path / name).is_file()]
        missing += [f"{name}/" for name in FOLDERS if not (self.path / name).is_dir()]
        if missing:
            raise CheckpointError(
                f"{self.path}: not a complete pisco checkpoint, missing {', '.join(missing)}. "
                f"Found: {', '.join(sorted(p.name for p in self.path.iterdir())[:10]) or 'nothing'}."
            )
        require_own_files(self.path, FILES + FOLDERS)

    def _read_config(self) -> CheckpointConfig:
        path = self.path / "config.json"
        values = read_json(path)
        try:
            config = CheckpointConfig.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise CheckpointError(f"{path}: {problems}.") from None
        if config.model_type.upper() != "PISCO":
            raise CheckpointError(
                f"{path}: model_type is {config.model_type!r}; this version reads checkpoints of the PISCO family."
            )
        return config

    def _checked_compressor(self, auto_class: Any, dtype: torch.dtype) -> Any:
        model: Any = load_model(auto_class, str(self.path / "compressor"), dtype)
        rows, tokens = model.get_input_embeddings().weight.shape[0], rows_needed(self.compressor_tokenizer)
        if rows < tokens:
            raise CheckpointError(
                f"{self.path / 'compressor'}: {rows} embedding rows for a tokenizer of {tokens} tokens; "
                "the memory token has no embedding."
            )
        return model

    def _count_compressor_parameters(self) -> int:
        folder = self.path / "compressor"
        with quiet_transformers():
            return require_weights(folder, str(folder), AutoModel, self.compressor_config)

    def _load_tokenizer(self, name: str, required: tuple[str, ...]) -> Any:
        folder = self.path / name
        tokenizer = load_tokenizer(folder)
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in required if token not in vocabulary]
        if missing:
            raise CheckpointError(f"{folder}: the tokenizer lacks the added tokens {', '.join(missing)}.")
        return tokenizer


def local_folder(name: str | Path) -> Path:
    """The folder itself, or the cached snapshot of a hub name.

    transformers, given a hub name, asks the network even for what it was told to find locally.

    Raises:
        CheckpointError: if neither is there, or a file in it is a link that leads out of it.
    """
    folder = None
    with suppress(HFValidationError, OSError):
        if Path(name).is_dir():
            folder = Path(name)
        elif isinstance(cached := try_to_load_from_cache(str(name), "config.json"), str):
            folder = Path(cached).parent
    if folder is not None:
        require_own_files(folder)
        return folder
    raise CheckpointError(
        f"{name}: neither a model folder nor in the Hugging Face cache. Name a folder (for a base decoder: "
        f"--decoder-base), or download it first (hf download {name})."
    )


def load_model(auto_class: Any, name: str, dtype: torch.dtype | Literal["auto"]) -> Any:
    """Load a transformers model completely: safetensors, local files, no remote code, no weight left random.

    Raises:
        CheckpointError: if it is not there, or its weights do not fill its architecture.
    """
    folder = local_folder(name)
    config = _load_config(folder)
    with quiet_transformers():
        require_weights(folder, name, auto_class, config)
    with errors_name(f"{name}: cannot be loaded"), quiet_transformers():
        model, report = auto_class.from_pretrained(
            folder,
            dtype=dtype,
            # None is SDPA where the architecture has it. Unsaid, or said without the configuration at hand, a
            # config.json could name a kernel to be downloaded.
            config=config,
            attn_implementation=None,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are in the report, by name
            output_loading_info=True,
        )
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        raise CheckpointError(
            f"{name}: {len(wrong)} weights are missing or of a wrong shape, the first: {sorted(map(str, wrong))[0]}."
        )
    for parameter_name, values in model.named_parameters():
        require_finite(name, parameter_name, values)
    return model.eval().requires_grad_(False)


def load_tokenizer(name: str | Path) -> Any:
    """Load a tokenizer: local files, no remote code; BOS pads where nothing else does.

    Raises:
        CheckpointError: if it is not there or damaged.
    """
    folder = local_folder(name)
    with errors_name(f"{name}: no tokenizer could be loaded"):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.bos_token or tokenizer.eos_token
    return tokenizer


def rows_needed(tokenizer: Any) -> int:
    """Rows that an embedding table needs for every token of a tokenizer to have one."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing bars and reporting unused weights while a model is read or written."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _model_folder(root: Path, name: str) -> Path | None:
    """The folder of that name, links followed, if a model is in it."""
    # A name from a file may be none that the system takes.
    with suppress(OSError, ValueError, RuntimeError):
        folder = root / Path(name).expanduser()
        if (folder / "config.json").is_file():
            return folder.resolve()
    return None


def _load_config(folder: Path) -> Any:
    read_model_config(folder)
    with errors_name(f"{folder}: no model configuration could be loaded"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _digest_files(paths: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()
        digest.update(f"{path.name}:{content};".encode())
    return digest.hexdigest()
