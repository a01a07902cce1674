"""The seam between checkpoint families and the rest of the package."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from ...configs import CompressionConfig
from ...configs.names import Stage
from ..connector import Connector
from ..generation import GenerationDefaults
from ..passages import DocumentTokenizer, TokenizedDocument
from ..prompt import Prompt


class Checkpoint(Protocol):
    """A checkpoint of any family.

    A family decides how a document becomes passages with memory tokens, how wide memory is and at which stage it is
    stored, how the decoder is prompted, and what determines memory. The compressor, the decoder and all other rooms
    ask it, so that a new family is a new file beside this one.

    Attributes:
        path: folder of the checkpoint.
        decoder_base: name or folder of the base decoder.
        family: name of the family.
        is_query_dependent: True if memory belongs to a question and a document, so that it cannot be precomputed.
    """

    path: Path
    decoder_base: str
    family: str
    is_query_dependent: bool

    @property
    def rate(self) -> int:
        """Number of source tokens per memory token."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """Everything in the checkpoint that determines memory, by name; part of a store's fingerprint.

        Names in ``_config`` have settings as JSON, which may be written in several ways. All others are compared as
        they are.
        """
        ...

    @property
    def file_identity(self) -> Mapping[str, str]:
        """``identity`` as older stores hold it: digests of files instead of their content."""
        ...

    @property
    def n_mem_rule(self) -> Mapping[str, str]:
        """The entries of ``identity`` that say how many vectors a document has (see ``memory_bounds_of``)."""
        ...

    @property
    def connector(self) -> Connector | None:
        """The connector, in fp32; None if memory has the decoder's width without one."""
        ...

    @property
    def memory_digest(self) -> str:
        """Digest that memory carries and that the decoder compares: the connector's if there is one."""
        ...

    def owns_memory(self, digest: str) -> bool:
        """Return True if memory with this digest was made by this checkpoint: now, or for an older store."""
        ...

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages at which memory can be stored."""
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

    def query_passages(
        self, question: str, texts: Sequence[str], compression: CompressionConfig
    ) -> list[TokenizedDocument]:
        """Return the compressor's input for a question with each of some documents' texts, one passage each.

        Raises:
            PromptError: the question leaves no room for a text.
            ConfigError: the family does not compress a document for a question.
        """
        ...

    @property
    def compressor_tokenizer(self) -> Any:
        """The compressor's tokenizer, memory tokens included."""
        ...

    def load_compressor(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
        """Return the compressor without ``lm_head``, in eval mode."""
        ...

    @property
    def memory_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens at whose positions the compressor's last hidden states are memory; empty for all tokens."""
        ...

    @property
    def memory_position(self) -> int | None:
        """Position of the first memory token of each passage; None if it follows the text."""
        ...

    @property
    def decoder_tokenizer(self) -> Any:
        """The decoder's tokenizer, memory tokens included."""
        ...

    @property
    def decoder_folder(self) -> Path:
        """Folder of the base decoder.

        Raises:
            CheckpointError: the base decoder cannot be found.
        """
        ...

    def load_decoder(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
        """Return the decoder with the checkpoint's weights, in eval mode."""
        ...

    @property
    def generation(self) -> GenerationDefaults | None:
        """Generation settings of the base decoder; None for its end tokens and nothing else."""
        ...

    @property
    def prompt(self) -> Prompt:
        """The decoder's prompt: its text, and the token in it that stands for a memory vector."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return names, sizes, widths and digests, for ``checkpoint inspect``."""
        ...
