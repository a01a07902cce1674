"""The "pisco" checkpoint folder: what is in it, and how its parts are loaded without executing anything from it.

::

    config.json                 names of the base models, rate, widths, LoRA rank
    compressor/                 a causal LM folder, full weights
    connector.pt                Linear, ReLU, Linear
    decoder_state.pt            embeddings and LoRA pairs, laid over the base decoder
    compressor_tokenizer/  decoder_tokenizer/

Tensors are read with ``weights_only=True`` or from safetensors, no remote code is run, and no network is used.
"""

import hashlib
import json
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
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

from ..errors import CheckpointError
from .connector import Connector
from .passages import AUTOENCODING_TOKEN, MEMORY_TOKEN

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
    lora_r_decoder: int = Field(64, gt=0)


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
        """
        for root in (self.path, self.path.absolute().parent, Path.cwd()):
            folder = root / Path(name).expanduser()
            if (folder / "config.json").is_file():
                return str(folder.resolve())
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

    def _read_config(self) -> CheckpointConfig:
        path = self.path / "config.json"
        try:
            values = json.loads(path.read_text("utf-8"))
            config = CheckpointConfig.model_validate(values)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: not valid JSON: {error}.") from None
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
        rows, tokens = model.get_input_embeddings().weight.shape[0], len(self.compressor_tokenizer)
        if rows < tokens:
            raise CheckpointError(
                f"{self.path / 'compressor'}: {rows} embedding rows for a tokenizer of {tokens} tokens; "
                "the memory token has no embedding."
            )
        return model

    def _count_compressor_parameters(self) -> int:
        folder = self.path / "compressor"
        with _errors_name(f"{folder}: its configuration makes no model"), torch.device("meta"), quiet_transformers():
            model = AutoModel.from_config(self.compressor_config, attn_implementation=None, trust_remote_code=False)
        return sum(p.numel() for p in model.parameters())

    def _load_tokenizer(self, name: str, required: tuple[str, ...]) -> Any:
        folder = self.path / name
        tokenizer = load_tokenizer(folder)
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in required if token not in vocabulary]
        if missing:
            raise CheckpointError(f"{folder}: the tokenizer lacks the added tokens {', '.join(missing)}.")
        return tokenizer


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a plain tensor dictionary; nothing else is unpickled.

    Raises:
        CheckpointError: if the file is damaged, holds anything but named tensors, or a value is not finite.
    """
    try:
        with _errors_name(f"{path}: damaged or truncated, fetch it again"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            # Not torch's own words, which advise to load it all the same.
            raise CheckpointError(
                f"{path}: refused, nothing of it was run: it is damaged or holds something other than a plain "
                "dictionary of tensors."
            ) from None
        raise
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds {type(state).__name__}; expected a dictionary of named tensors.")
    strange = [k for k, v in state.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if strange:
        raise CheckpointError(f"{path}: {strange[0]!r} is no named tensor; expected nothing else.")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{path}: {broken[0]} has values that are not finite.")
    return dict(state)


def local_folder(name: str | Path) -> Path:
    """The folder itself, or the cached snapshot of a hub name.

    transformers, given a hub name, asks the network even for what it was told to find locally.

    Raises:
        CheckpointError: if neither is there.
    """
    if Path(name).is_dir():
        return Path(name)
    with suppress(HFValidationError):
        cached = try_to_load_from_cache(str(name), "config.json")
        if isinstance(cached, str):
            return Path(cached).parent
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
    with _errors_name(f"{name}: cannot be loaded"), quiet_transformers():
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
    return model.eval().requires_grad_(False)


def load_tokenizer(name: str | Path) -> Any:
    """Load a tokenizer: local files, no remote code; BOS pads where nothing else does.

    Raises:
        CheckpointError: if it is not there or damaged.
    """
    folder = local_folder(name)
    with _errors_name(f"{name}: no tokenizer could be loaded"):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.bos_token or tokenizer.eos_token
    return tokenizer


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


@contextmanager
def _errors_name(problem: str) -> Iterator[None]:
    """Raise whatever a library makes of a file it cannot use as a CheckpointError that says where it was."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{problem}: {_first_line(error)}") from error


def _load_config(folder: Path) -> Any:
    with _errors_name(f"{folder}: no model configuration could be loaded"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _digest_files(paths: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()
        digest.update(f"{path.name}:{content};".encode())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
