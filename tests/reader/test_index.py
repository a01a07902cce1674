"""Answers from the store equal answers from memory computed on the spot, bit for bit in fp32."""

import json
import shutil

import numpy as np
import pytest
import torch

from pisco_index import (
    BuildConfig,
    Compressor,
    Decoder,
    Index,
    Reader,
    ask,
    build,
    delete,
    new_tiny_checkpoint,
    open_checkpoint,
)
from pisco_index.errors import FingerprintMismatchError, MissingDocumentsError, PromptError, StoreError
from pisco_index.model.passages import PassageTokenizer

IDS = ["doc-4", "doc-0", "doc-13"]
QUESTION = "What is it about?"


@pytest.fixture(scope="module")
def decoder(checkpoint):
    return Decoder.load(checkpoint, dtype=torch.float32)


def on_the_spot(checkpoint, documents, stage):
    """Memory of IDS, compressed in one batch."""
    opened = open_checkpoint(checkpoint)
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
    answer = ask(store, checkpoint, QUESTION, IDS, dtype="float32", device="cpu", max_new_tokens=12)
    assert answer.answer == decoder.answer(QUESTION, fresh, max_new_tokens=12)
    assert (answer.memory_tokens, answer.prompt_tokens) == (sum(fresh.lengths), len(prompt))


def test_stored_bytes_give_the_same_bits(tmp_path, checkpoint, documents, decoder):
    """The same batch, once through the store and once not: nothing is lost on the way."""
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


def test_refusals(hidden_store, checkpoint, tmp_path):
    other = new_tiny_checkpoint(tmp_path / "other", rate=8, seed=7).path
    with pytest.raises(FingerprintMismatchError, match=r"compressor: \w+ \| \w+.*built with"):
        ask(hidden_store, other, QUESTION, IDS)
    with pytest.raises(MissingDocumentsError, match="'nope'"):
        ask(hidden_store, checkpoint, QUESTION, ["nope"])
    with pytest.raises(PromptError, match="do not fit the decoder's context of 4096"):
        ask(hidden_store, checkpoint, QUESTION, ["doc-4"] * 700)
    with pytest.raises(PromptError, match="The question is empty"):
        ask(hidden_store, checkpoint, "", IDS)
    with pytest.raises(PromptError, match="No document"):
        ask(hidden_store, checkpoint, "of the", dtype="float32")
    with Index(hidden_store, checkpoint) as index:
        with pytest.raises(TypeError, match="questions must be a list of strings, not"):
            index.answer(QUESTION)
        for wrong in (None, [None], [QUESTION, 3]):
            with pytest.raises(TypeError, match="questions must be a list of strings"):
                index.answer(wrong)
        with pytest.raises(TypeError, match="found None in it"):
            index.answer([QUESTION], doc_ids=[[None]])
        with pytest.raises(PromptError, match="The question is empty"):
            index.search(" ")
        with pytest.raises(ValueError, match="at least 1, not 0"):
            index.answer([QUESTION], hits=0)
        with pytest.raises(ValueError, match="max_new_tokens must be a whole number of at least 1, not None"):
            index.answer([QUESTION], max_new_tokens=None)
        with pytest.raises(ValueError, match="1 questions, but 2 lists"):
            index.answer([QUESTION], doc_ids=[IDS, IDS])
        with pytest.raises(TypeError, match="doc_ids of a question must be a list of strings, not 'doc-4'"):
            index.answer([QUESTION], doc_ids=["doc-4"])


def test_a_store_without_texts_is_reported_before_the_decoder_is_loaded(tmp_path, checkpoint, documents, monkeypatch):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": "a", "text": documents["doc-1"]}) + "\n")
    build([corpus], checkpoint, tmp_path / "store", BuildConfig.parse({"store": {"index": False}}, "test"))
    monkeypatch.setattr(Decoder, "load", lambda *_, **__: pytest.fail("the decoder was loaded"))
    with pytest.raises(StoreError, match="pisco-index index "):
        ask(tmp_path / "store", checkpoint, QUESTION)
    with Reader(tmp_path / "store") as reader, pytest.raises(StoreError, match="keeps no text"):
        reader.texts(["a"])


def test_questions_are_answered_from_what_the_search_finds(hidden_store, checkpoint):
    questions = ["What is document 4 about?", "the", "Document 17?"]
    with Index(hidden_store, checkpoint, dtype="float32", device="cpu") as index:
        (best,) = index.search(questions[0], hits=1)
        assert best.doc_id == "doc-4"
        found = index.answer(questions, hits=np.int64(2), max_new_tokens=5)
        (lone,) = index.answer(["\ud800"])
        with pytest.raises(PromptError, match="not valid Unicode"):
            index.search("\ud800")
        named = index.answer(questions[:1], doc_ids=[found[0].documents], max_new_tokens=5)
    assert [(each.question, len(each.documents)) for each in found] == list(zip(questions, (2, 0, 2), strict=True))
    assert (found[0].documents[0], found[2].documents[0]) == ("doc-4", "doc-17")
    assert found[1].answer is None
    assert found[1].error == "No document was found."
    assert named[0].answer == found[0].answer is not None
    assert (lone.answer, lone.error) == (None, "The question is not valid Unicode.")


def test_an_index_is_opened_anew_while_it_is_read(hidden_store, checkpoint, tmp_path):
    shutil.copytree(hidden_store, tmp_path / "store")
    with Index(tmp_path / "store", checkpoint, dtype="float32", device="cpu") as index:
        before = index.answer([QUESTION], doc_ids=[IDS], max_new_tokens=12)
        delete(tmp_path / "store", IDS[:1])
        with index.reopen() as newer:
            assert newer.decoder is index.decoder
            assert (len(newer.reader), len(index.reader)) == (19, 20)
            with pytest.raises(MissingDocumentsError):
                newer.answer([QUESTION], doc_ids=[IDS])
            assert newer.answer([QUESTION], doc_ids=[IDS[1:]])[0].answer is not None
        again = index.answer([QUESTION], doc_ids=[IDS], max_new_tokens=12)
        assert [each.answer for each in again] == [each.answer for each in before]


def test_an_index_is_not_opened_anew_over_a_store_of_another_checkpoint(hidden_store, checkpoint, tmp_path):
    shutil.copytree(hidden_store, tmp_path / "store")
    with Index(tmp_path / "store", checkpoint) as index:
        shutil.rmtree(tmp_path / "store")
        new_tiny_checkpoint(tmp_path / "other", rate=8, seed=1)
        (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "A text."}\n')
        build([tmp_path / "corpus.jsonl"], tmp_path / "other", tmp_path / "store", BuildConfig())
        with pytest.raises(FingerprintMismatchError):
            index.reopen()
