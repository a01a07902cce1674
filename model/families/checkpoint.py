"""The seam between checkpoint families and the rest of the package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from ...configs import CompressionConfig
from ...configs.names import Stage
from ..connector import Connector
from ..passages import DocumentTokenizer
from ..prompt import Prompt


class Checkpoint(Protocol):
    """A checkpoint of any family.

    A family decides how a document becomes passages with memory tokens, how wide memory is and at which stage it is
    stored, how the decoder is prompted, and what determines memory. The compressor, the decoder and all other rooms
    ask it, so that a new family is a new file beside this one.

    Attributes:
        path: folder of the checkpoint.
        decoder_base: name or folder of the base decoder.
    """

    path: Path
    decoder_base: str

    @property
    def rate(self) -> int:
        """Number of source tokens per memory token."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """Digests of everything in the checkpoint that determines memory, by name; part of a store's fingerprint."""
        ...

    @property
    def connector(self) -> Connector:
        """The connector, in fp32."""
        ...

    @property
    def default_stage(self) -> Stage:
        """Stage at which a store keeps memory by default."""
        ...

    def memory_dim(self, stage: Stage) -> int:
        """Return the width of memory at a stage."""
        ...

    def passage_tokenizer(self, compression: CompressionConfig) -> DocumentTokenizer:
        """Return the tokenizer that cuts documents into passages as configured.

        Raises:
            ConfigError: the settings leave no room for text.
        """
        ...

    @property
    def compressor_tokenizer(self) -> Any:
        """The compressor's tokenizer, memory tokens included."""
        ...

    def load_compressor(self, *, dtype: torch.dtype) -> Any:
        """Return the compressor without ``lm_head``, in eval mode on the CPU."""
        ...

    @property
    def memory_token_id(self) -> int:
        """Id of the token at whose positions the compressor's last hidden states are memory."""
        ...

    @property
    def decoder_tokenizer(self) -> Any:
        """The decoder's tokenizer, memory tokens included."""
        ...

    def load_decoder(self, *, dtype: torch.dtype) -> Any:
        """Return the decoder with the checkpoint's weights merged into it, in eval mode on the CPU."""
        ...

    @property
    def prompt(self) -> Prompt:
        """The decoder's prompt: its text, and the token in it that stands for a memory vector."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return names, sizes, widths and digests, for ``checkpoint inspect``."""
        ...
