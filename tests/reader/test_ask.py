"""Answers from the store equal answers from memory computed on the spot, bit for bit in fp32."""

import pytest
import torch

from pisco_index import (
    Checkpoint,
    Compressor,
    Decoder,
    FingerprintMismatchError,
    MissingDocumentsError,
    PassageTokenizer,
    PromptError,
    Reader,
    ask,
    new_tiny_checkpoint,
)

IDS = ["doc-4", "doc-0", "doc-13"]
QUESTION = "What is it about?"


@pytest.fixture(scope="module")
def decoder(checkpoint):
    return Decoder.load(checkpoint, dtype=torch.float32)


def on_the_spot(checkpoint, documents, stage):
    """Memory of IDS, each document compressed alone, as a build with one document a batch would."""
    opened = Checkpoint(checkpoint)
    tokenizer = PassageTokenizer(opened.compressor_tokenizer, rate=8, max_length=32)
    tokenized = tokenizer.tokenize([documents[doc_id] for doc_id in IDS])
    return Compressor.load(opened, dtype=torch.float32).compress(
        [passage for document in tokenized for passage in document.passages], stage=stage
    )


def test_an_answer_from_the_store_equals_one_from_memory_on_the_spot(store, checkpoint, documents, decoder):
    with Reader(store) as reader:
        stored = reader.fetch(IDS)
    fresh = on_the_spot(checkpoint, documents, stored.stage)
    assert stored.lengths == fresh.lengths
    prompt = decoder.prompt_ids(QUESTION, stored.lengths)
    torch.testing.assert_close(decoder.logits(prompt, stored), decoder.logits(prompt, fresh), rtol=0, atol=1e-4)
    assert decoder.answer(QUESTION, stored, max_new_tokens=12) == decoder.answer(QUESTION, fresh, max_new_tokens=12)


def test_stored_bytes_give_the_same_bits(tmp_path, checkpoint, documents, decoder):
    """The same batch, once through the store and once not: nothing is lost on the way."""
    import json

    from pisco_index import BuildConfig, build

    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": i, "text": documents[i]}) + "\n" for i in IDS))
    settings = {
        "compression": {"dtype": "float32", "max_length": 32},
        "store": {"codec": "fp32", "stage": "hidden"},
    }
    build([corpus], checkpoint, tmp_path / "store", BuildConfig.parse(settings, "test"))
    fresh = on_the_spot(checkpoint, documents, "hidden")
    with Reader(tmp_path / "store") as reader:
        stored = reader.fetch(IDS)
    assert torch.equal(stored.values, fresh.values)
    prompt = decoder.prompt_ids(QUESTION, stored.lengths)
    assert torch.equal(decoder.logits(prompt, stored), decoder.logits(prompt, fresh))


def test_ask_answers(store, checkpoint, decoder):
    answer = ask(store, checkpoint, QUESTION, IDS, dtype="float32", max_new_tokens=12)
    with Reader(store) as reader:
        memory = reader.fetch(IDS)
    assert answer.text == decoder.answer(QUESTION, memory, max_new_tokens=12)
    assert answer.memory_tokens == sum(memory.lengths)
    assert answer.prompt_tokens == len(decoder.prompt_ids(QUESTION, memory.lengths))


def test_another_checkpoint_is_refused(store, tmp_path):
    other = new_tiny_checkpoint(tmp_path / "other", rate=8, seed=7).path
    with pytest.raises(FingerprintMismatchError, match=r"compressor: \w+ \| \w+.*built with"):
        ask(store, other, QUESTION, IDS)


def test_a_missing_document_is_named(store, checkpoint):
    with pytest.raises(MissingDocumentsError, match="'nope'"):
        ask(store, checkpoint, QUESTION, ["nope"])


def test_a_prompt_that_does_not_fit(store, checkpoint):
    with pytest.raises(PromptError, match="do not fit the decoder's context of 4096"):
        ask(store, checkpoint, QUESTION, ["doc-4"] * 700)
