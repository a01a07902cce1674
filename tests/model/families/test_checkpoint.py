"""The seam: compressor, decoder and fingerprint ask the checkpoint for everything that a family decides."""

from types import SimpleNamespace

import pytest
import torch

from pisco_index import Compressor, Decoder
from pisco_index.configs import CompressionConfig
from pisco_index.model.families.fake import MEMORY_LENGTH
from pisco_index.model.identity import memory_components
from pisco_index.model.passages import tokenize_documents

DOCUMENTS = ["A town.", "", "A #long# day in a small town."]


@pytest.fixture
def tokenized(fake):
    compression = CompressionConfig(max_length=12)
    documents = [SimpleNamespace(text=text, title=None) for text in DOCUMENTS]
    return list(tokenize_documents(fake.passage_tokenizer(compression), documents, compression))


@pytest.fixture
def memory(fake, tokenized):
    return Compressor.load(fake, dtype=torch.float32).compress([document.passages[0] for document in tokenized])


def test_the_family_says_how_many_vectors_a_document_has(fake, tokenized, memory):
    assert [document.n_mem for document in tokenized] == list(memory.lengths) == [MEMORY_LENGTH] * len(DOCUMENTS)
    assert memory.dim == fake.memory_dim(fake.default_stage)
    assert memory.connector == fake.connector.digest


def test_the_family_says_how_the_decoder_is_prompted(fake, memory):
    decoder = Decoder.load(fake, dtype=torch.float32)
    prompt = decoder.prompt_ids("Is # one", memory.lengths)
    assert decoder.tokenizer.decode(prompt) == "###|###|### Is no  one?"
    assert decoder.embed(prompt, memory).shape == (len(prompt), fake.memory_dim("embedding"))
    ids, count = decoder.answered_ids("Who", memory.lengths, "Ada #")
    assert bytes(ids[-count:]) == b"Ada no."
    assert isinstance(decoder.answer("Who", memory, max_new_tokens=4), str)


def test_the_fingerprint_is_the_identity_and_the_settings(fake):
    components = memory_components(fake, CompressionConfig(max_length=12))
    assert components.items() >= fake.identity.items()
    assert components["max_length"] == "12"
    changed = memory_components(fake, CompressionConfig(max_length=12, overlap=3))
    assert {name for name in components if components[name] != changed[name]} == {"overlap"}
    other = memory_components(type(fake)(seed=1), CompressionConfig(max_length=12))
    assert {name for name in components if components[name] != other[name]} == {"compressor", "connector"}
