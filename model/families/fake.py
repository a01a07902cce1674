"""A checkpoint without files, for tests of the code that asks a ``Checkpoint``.

It differs from family "pisco" in everything that a family decides: memory has a fixed length, another token stands for
it, and the prompt has other words.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from ...configs import CompressionConfig
from ...configs.names import Stage
from ..connector import Connector
from ..create import seeded
from ..passages import TokenizedDocument
from .checkpoint import Checkpoint

MEMORY = "#"
END = "."
# Characters beyond ASCII all become the last token.
VOCABULARY = 128
MEMORY_LENGTH = 3


class FakeCheckpoint:
    """Tiny random models that are the same in every process, and a tokenizer with one token per character.

    Args:
        seed: seed of the weights; another seed is another checkpoint.
    """

    rate = 8
    path = Path("fake")
    decoder_base = "fake"
    decoder_folder = Path("fake")
    default_stage: Stage = "hidden"
    family = "fake"
    stages: tuple[Stage, ...] = ("hidden", "embedding")
    is_query_dependent = False
    memory_token_ids = (ord(MEMORY),)
    memory_position = None
    generation = None
    n_mem_rule: Mapping[str, str] = MappingProxyType(
        {"n_mem": str(MEMORY_LENGTH), "passage_tokens": "1000000", "passage_extra": "0"}
    )

    def __init__(self, seed: int = 0):
        self._seed = seed
        self.compressor_tokenizer = self.decoder_tokenizer = FakeTokenizer()
        self.prompt = FakePrompt()
        with seeded(self._seed):
            self.connector = Connector.from_state(Connector(16, 8, 24).state(), "fake")

    @property
    def identity(self) -> dict[str, str]:
        """The seed and the connector's digest, which determine memory."""
        return {
            "compressor": f"fake {self._seed}",
            "connector": self.connector.digest,
            "rate": str(self.rate),
            **self.n_mem_rule,
        }

    @property
    def file_identity(self) -> dict[str, str]:
        """The same: there are no files."""
        return self.identity

    @property
    def memory_digest(self) -> str:
        """The connector's digest."""
        return self.connector.digest

    def owns_memory(self, digest: str) -> bool:
        """Return True for the connector's digest."""
        return digest == self.connector.digest

    def memory_dim(self, stage: Stage) -> int:
        """Return the width of memory at a stage."""
        return self.connector.dim(stage)

    def passage_tokenizer(self, compression: CompressionConfig) -> "FakePassageTokenizer":
        """Return a tokenizer that truncates each text to one passage."""
        return FakePassageTokenizer(compression.max_length)

    def query_passages(
        self, question: str, texts: Sequence[str], compression: CompressionConfig
    ) -> list[TokenizedDocument]:
        """Return the passages of the question and each text."""
        return list(self.passage_tokenizer(compression).tokenize([f"{question} {text}" for text in texts]))

    def load_compressor(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
        """Return a Qwen3 model of two layers."""
        with seeded(self._seed):
            model: Any = Qwen3Model(_config(16))
        return model.to(device, dtype).eval().requires_grad_(False)

    def load_decoder(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
        """Return a Qwen3 causal LM of two layers."""
        with seeded(self._seed):
            model: Any = Qwen3ForCausalLM(_config(24))
        return model.to(device, dtype).eval().requires_grad_(False)

    def describe(self) -> dict[str, Any]:
        """Return the rate and the identity."""
        return {"rate": self.rate, "identity": self.identity}


class FakeTokenizer:
    """One token per character: the part of a transformers tokenizer that compressors and decoders use."""

    pad_token_id = 0
    eos_token_id = ord(END)

    def __call__(self, text: str, **_: Any) -> dict[str, list[Any]]:
        """Return token ids and the characters that they stand for."""
        ids = [min(ord(character), VOCABULARY - 1) for character in text]
        return {"input_ids": ids, "offset_mapping": [(i, i + 1) for i in range(len(ids))]}

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return the id of a token."""
        return ord(token)

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Return the text of token ids, without the end token."""
        return "".join(map(chr, ids)).replace(END, "")


class FakePassageTokenizer:
    """Truncates a text to one passage and appends a fixed number of memory tokens."""

    memory_token_ids = (ord(MEMORY),)

    def __init__(self, max_length: int):
        self._max_length = max_length
        self._tokenizer = FakeTokenizer()

    def tokenize(self, texts: Sequence[str], repeated: Sequence[str] | None = None) -> Iterator[TokenizedDocument]:  # noqa: ARG002
        """Yield the passage of each text."""
        for text in texts:
            ids = self._tokenizer(FakePrompt().clean(text))["input_ids"]
            kept = ids[: self._max_length]
            passage = kept + [*self.memory_token_ids] * MEMORY_LENGTH
            yield TokenizedDocument((passage,), MEMORY_LENGTH, len(ids), len(kept))


class FakePrompt:
    """The documents' content, the question, and the answer with an end token."""

    memory_tokens = (MEMORY,)
    adds_special_tokens = False

    def clean(self, text: str) -> str:
        """Return a text without literal memory tokens."""
        return text.replace(MEMORY, "no ")

    def __call__(self, question: str, documents: Sequence[int | str], *, answer: str | None = None) -> str:
        """Return the prompt's text."""
        contents = (MEMORY * d if isinstance(d, int) else self.clean(d) for d in documents)
        ending = "" if answer is None else f"{answer}{END}"
        return f"{'|'.join(contents)} {self.clean(question)}?{ending}"


def _config(width: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.2,
        eos_token_id=ord(END),
        pad_token_id=0,
    )


if TYPE_CHECKING:
    _: Checkpoint = FakeCheckpoint()
