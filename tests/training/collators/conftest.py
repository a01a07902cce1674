"""A seeded generator, and views of a batch."""

from collections.abc import Callable

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def learned_text(tiny) -> Callable[..., str]:
    """Return the labels of a row as text."""

    def learned_text(labels):
        return tiny.decoder_tokenizer.decode([label for label in map(int, labels) if label >= 0])

    return learned_text


@pytest.fixture
def memory_counts() -> Callable[..., tuple[int, int]]:
    """Return the numbers of memory tokens in the prompts and in the passages of a batch."""

    def memory_counts(collator, batch):
        memory_id = collator.passage_tokenizer.memory_token_ids[0]
        taken = int((batch["input_ids"] == collator.decoder_memory_id).sum())
        given = int(((batch["passages"] == memory_id) & batch["passage_mask"]).sum())
        return taken, given

    return memory_counts


@pytest.fixture
def opening(tiny, monkeypatch):
    """The checkpoint with tokenizers that have a BOS; the compressor's puts it, and an EOS, around a text."""
    for name in ("compressor_tokenizer", "decoder_tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(tiny.path / "base_decoder")
        tokenizer.add_special_tokens({"additional_special_tokens": ["<MEM>", "<AE>"], "bos_token": "<|im_start|>"})
        if name == "compressor_tokenizer":
            ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
            around = TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=ends)
            tokenizer.backend_tokenizer.post_processor = around
        monkeypatch.setitem(vars(tiny), name, tokenizer)
    return tiny
