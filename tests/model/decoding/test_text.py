"""The pieces of an answer's text are its text, and none is taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisco_index.model.decoding.text import TextStream, answer_text


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return tiny.decoder_tokenizer


@given(text=st.text(max_size=30), cut=st.integers(0, 3), ends=st.booleans())
def test_the_pieces_are_the_text(tokenizer, text, cut, ends):
    ids = tokenizer(f" {text}\n", add_special_tokens=False)["input_ids"]
    # An answer may end inside a character.
    ids = ids[: len(ids) - cut] + [tokenizer.eos_token_id] * ends
    stream = TextStream(tokenizer)
    pieces = [stream.add([token]) for token in ids]
    assert "".join([*pieces, stream.end()]) == answer_text(tokenizer, ids)


def test_a_character_waits_for_its_last_byte(tokenizer):
    ids = tokenizer("a 🜁 b", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.add([token]) for token in ids] + [stream.end()]
    assert "".join(pieces) == "a 🜁 b"
    assert not any("�" in piece for piece in pieces)
