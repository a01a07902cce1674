"""Checkpoints that ``checkpoint convert`` wrote: adapters are merged into the weights, and no base model is needed.

::

    config.json     the original's, with the record ``merged``
    decoder/        a causal LM, its tokenizer with the added tokens, its generation settings
    compressor/     a model without ``lm_head``, and its tokenizer; absent if the decoder compresses by the same weights
    connector/      weights of the connector of "oscar", or of the projection of a light "cocom-v1"

Everything else is the family's: passages, prompt, and the identity of memory, which is that of the original checkpoint.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from ...errors import CheckpointError
from ..loading.content import described_config, digest_tensors, digest_tokenizer, same_config
from ..loading.files import digest_weights
from ..loading.lora import Adapter
from ..loading.models import load_model, load_model_config, load_tokenizer
from ..loading.vocabulary import load_extended_tokenizer
from ..loading.weights import WeightFiles
from .cocom import HEAD, CocomCheckpoint
from .cocom_v1 import CocomV1Checkpoint
from .on_base import OnBaseCheckpoint, require_files
from .oscar import OscarCheckpoint

DECODER, COMPRESSOR, CONNECTOR, CONFIG = "decoder", "compressor", "connector", "config.json"


class MergedCheckpoint(OnBaseCheckpoint):
    """The part of a family that reads a merged folder. Names of base models are kept for the record, and not used."""

    def _require_layout(self) -> None:
        require_files(self.path, (f"{DECODER}/{CONFIG}",), f"merged {self.family}")

    @cached_property
    def _is_checked(self) -> bool:
        _ = self.decoder_tokenizer, self.compressor_tokenizer, self.connector, self.generation
        record = self.config.merged
        found = digest_merged(self.path) if record.configs else digest_merged_files(self.path)
        configs = {name: described_config(self.path / name) for name in record.configs}
        if record.files != found or not all(same_config(record.configs[name], configs[name]) for name in configs):
            raise CheckpointError(
                f"{self.path}: its files are not those that the conversion wrote. Fetch them again, or convert the "
                "original checkpoint again."
            )
        return True

    def check(self) -> None:
        """Check that the files are those that the conversion wrote, and that the tokenizers fit the models.

        Raises:
            CheckpointError: a file was changed, or a tokenizer does not fit.
        """
        _ = self._is_checked

    def _digests(self) -> dict[str, str]:
        return dict(self.config.merged.digests)

    def _file_digests(self) -> dict[str, str]:
        return dict(self.config.merged.file_digests or self.config.merged.digests)

    @cached_property
    def decoder_folder(self) -> Path:
        """Folder of the merged decoder."""
        return self.path / DECODER

    @cached_property
    def decoder_tokenizer(self) -> Any:
        """The decoder's tokenizer, which has the checkpoint's tokens already."""
        return load_extended_tokenizer(str(self.decoder_folder), (), self.table_rows, self.decoder_folder)

    @property
    def table_rows(self) -> int:
        """Number of rows of the decoder's embedding table."""
        return self.decoder_config.vocab_size

    @property
    def _tensors(self) -> int:
        return len(WeightFiles(self.decoder_folder).shapes)

    @cached_property
    def compressor_folder(self) -> Path:
        """Folder of the compressor."""
        return self.path / COMPRESSOR

    def _adapter(self, role: str) -> Adapter:  # noqa: ARG002
        return {}

    def _load_base(self, dtype: torch.dtype) -> Any:
        return load_model(AutoModel, str(self.decoder_folder), dtype, is_leftover=lambda name: name != HEAD)

    def _load_head(self) -> torch.Tensor | None:
        return WeightFiles(self.decoder_folder).read(HEAD).get(HEAD)

    def _load_merged_compressor(self, dtype: torch.dtype) -> Any:
        return load_model(AutoModel, str(self.compressor_folder), dtype)

    def _recognised(self) -> str:
        return f"merged checkpoint of family {self.family}: it needs no base model"


class MergedCocom(MergedCheckpoint, CocomCheckpoint):
    """A merged checkpoint of family "cocom". The arguments are those of ``CocomCheckpoint``."""

    def load_compressor(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
        """Return the compressor without ``lm_head``, in eval mode.

        Raises:
            CheckpointError: a file was changed since the conversion.
        """
        self.check()
        return self._load_merged_compressor(dtype).to(device)


class MergedOscar(MergedCheckpoint, OscarCheckpoint):
    """A merged checkpoint of family "oscar". The arguments are those of ``CocomCheckpoint``."""

    @cached_property
    def compressor_config(self) -> Any:
        """The compressor's transformers configuration."""
        return load_model_config(self.compressor_folder)

    @cached_property
    def compressor_tokenizer(self) -> Any:
        """The compressor's tokenizer, which has the memory tokens already."""
        folder = self.compressor_folder
        return load_extended_tokenizer(str(folder), (), self.compressor_config.vocab_size, folder)

    def _connector_state(self) -> dict[str, torch.Tensor]:
        return WeightFiles(self.path / CONNECTOR).read("")

    def _compressor_with_norm(self, dtype: torch.dtype) -> Any:
        return self._load_merged_compressor(dtype)


class MergedCocomV1(MergedCheckpoint, CocomV1Checkpoint):
    """A merged checkpoint of family "cocom-v1". The arguments are those of ``CocomV1Checkpoint``."""

    def _load_encoder(self, dtype: torch.dtype) -> Any:
        return self._load_merged_compressor(dtype)

    def _projection_state(self) -> dict[str, torch.Tensor]:
        return WeightFiles(self.path / CONNECTOR).read("")


def merged_configs(path: Path) -> dict[str, str]:
    """Return the settings of the models of a merged checkpoint, by folder."""
    return {name: described_config(path / name) for name in (COMPRESSOR, DECODER) if (path / name / CONFIG).is_file()}


def digest_merged(path: Path) -> str:
    """Return a digest of the weights and tokenizers of a merged checkpoint."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in [path / name for name in (COMPRESSOR, CONNECTOR, DECODER) if (path / name).is_dir()]:
        # A light "cocom-v1" has the tokenizer of its encoder, and an "oscar" may have a folder of a tokenizer only.
        if any(folder.glob("*.safetensors")):
            digest.update(digest_tensors(WeightFiles(folder).mapped(), whole=False).encode())
        if (folder / "tokenizer_config.json").is_file():
            digest.update(digest_tokenizer(load_tokenizer(folder)).encode())
    return digest.hexdigest()


def digest_merged_files(path: Path) -> str:
    """Return a digest of all files of a merged checkpoint but its ``config.json``, as older conversions record it."""
    folders = [path / name for name in (COMPRESSOR, CONNECTOR, DECODER) if (path / name).is_dir()]
    return digest_weights([file for folder in folders for file in sorted(folder.iterdir())])
