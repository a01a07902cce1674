"""Tiny models of many architectures, and checkpoints made from them."""

import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pisco_index import Compressor, Decoder, new_checkpoint, new_tiny_checkpoint, open_checkpoint
from pisco_index.model.families.fake import FakeCheckpoint
from pisco_index.model.families.pisco import PiscoCheckpoint

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHAT_WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROTARY = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
# Configuration of each base model, and arguments of its tokenizer.
BASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3": (ROTARY | {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True}, {"chat": CHAT}),
    "qwen2": (
        ROTARY | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        {"chat": CHAT},
    ),
    "llama": (ROTARY | {"model_type": "llama", "num_key_value_heads": 4}, {"bos": True}),
    "llama3": (
        ROTARY | {"model_type": "llama", "rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True},
        {"bos": True, "chat": CHAT},
    ),
    "mistral": (
        ROTARY | {"model_type": "mistral", "sliding_window": 7},
        {"bos": True, "eos": True, "chat": CHAT_WITHOUT_SYSTEM},
    ),
    # Architectures without a native forward pass: learned positions, parallel layers, a biased head, scaled embeddings.
    "gpt2": ({"model_type": "gpt2", "n_layer": 2, "n_head": 4, "initializer_range": 0.2}, {}),
    "gpt_neox": (ROTARY | {"model_type": "gpt_neox"}, {}),
    "phi": (ROTARY | {"model_type": "phi", "num_key_value_heads": 4}, {"chat": CHAT}),
    "gemma2": (ROTARY | {"model_type": "gemma2", "head_dim": 8, "sliding_window": 7}, {"bos": True}),
}
# Rows of the embedding tables. The default of 300 is padded beyond the tokenizer, as in many released models; tables of
# 259 must grow.
ROWS = {"llama": 259, "mistral": 259}


def new_tokenizer(*, bos: bool = False, eos: bool = False, chat: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte, so a text of n ASCII letters has n tokens. Special tokens are optional."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = {"eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {"pad_token": "<pad>"})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = chat
    if bos or eos:
        around = f"{'<s> ' * bos}$A{' </s>' * eos}"
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in around.split() if token != "$A"]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(around, special_tokens=special)
    return tokenizer


def new_base(folder: Path, name: str, width: int, **changes: Any) -> Path:
    """Write a tiny base model with random weights, and its tokenizer."""
    values, tokens = BASES[name]
    tokenizer = new_tokenizer(**tokens)
    config = AutoConfig.for_model(
        **values,
        hidden_size=width,
        vocab_size=ROWS.get(name, 300),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )
    torch.manual_seed(len(name) + width)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sent(tokenizer: Any) -> Any:
    """Return a passage tokenizer as a reader process receives it: without torch and transformers."""
    content = pickle.dumps(tokenizer)
    assert not any(heavy in content for heavy in (b"torch", b"transformers", b"families", b"loading"))
    return pickle.loads(content)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A tokenizer of bytes with ``<MEM>``: ``make_tokenizer(bos=True)``."""

    def make_tokenizer(**around: Any) -> PreTrainedTokenizerFast:
        tokenizer = new_tokenizer(**around)
        tokenizer.add_special_tokens({"extra_special_tokens": ["<MEM>"]})
        return tokenizer

    return make_tokenizer


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Base models, each made once: ``make_base("llama", 32)``."""
    made: dict[tuple[str, int], Path] = {}

    def make_base(name: str, width: int = 32) -> Path:
        if (name, width) not in made:
            made[name, width] = new_base(tmp_path_factory.mktemp(name) / f"{name}-{width}", name, width)
        return made[name, width]

    return make_base


@pytest.fixture(scope="session", params=BASES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def made(
    architecture: str, make_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> PiscoCheckpoint:
    """A checkpoint whose compressor and decoder are of one architecture."""
    out = tmp_path_factory.mktemp("made") / architecture
    return new_checkpoint(
        out, make_base(architecture, 32), make_base(architecture, 48), rate=4, mlp_dim=40, lora_rank=2, seed=3
    )


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    new_tiny_checkpoint(folder)
    return folder


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> PiscoCheckpoint:
    """The tiny checkpoint, opened."""
    return PiscoCheckpoint(tiny_folder)


@pytest.fixture(scope="session")
def fake() -> FakeCheckpoint:
    """A checkpoint without files, of a family that differs from pisco."""
    return FakeCheckpoint()


@pytest.fixture(scope="session")
def load_everything() -> Callable[..., Decoder]:
    """A function that opens a checkpoint folder and reads all of it."""

    def load_everything(folder: Path, **overrides: Any) -> Decoder:
        checkpoint = open_checkpoint(folder, **overrides)
        assert checkpoint.identity
        assert checkpoint.describe()
        Compressor.load(checkpoint)
        return Decoder.load(checkpoint)

    return load_everything


@pytest.fixture
def nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check that nothing creates ``touched`` in the working folder, which pickles and code in these tests do if run."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "touched").exists()


@pytest.fixture
def little_memory_is_taken() -> Iterator[None]:
    """Limit the address space to what is in use now and 4 GiB, so that a larger allocation fails with a MemoryError."""
    if not Path("/proc/self/statm").exists():
        yield
        return
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
